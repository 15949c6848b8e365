"""Batched color augmentation on the device: torchvision's ColorJitter on Pillow images.

Brightness, contrast, saturation and hue change in sequence, in an order drawn per image.
"""

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.data.operations import BLACK, GREY, MEAN, blend, luma, plain_origin

# The changes; the first three are named by the origin of their factor, see `operations`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = BLACK, MEAN, GREY, 3


def color_jitter(images, strengths, key):
    """uint8 [N, H, W, C] -> uint8 [N, H, W, C], with independent draws per image.

    Saturation and hue do not affect single-channel images. As in torchvision, the hue is quantized
    to bytes even if its draw is 0, but is skipped if its strength is 0.

    Args:
      images: with one or three channels.
      strengths: (b, c, s, h). Factors of brightness, contrast and saturation are drawn from
        [1 - b, 1 + b], clipped at 0; the hue shifts by a fraction of the circle in [-h, h], with h
        at most 0.5. DARTS uses (0.4, 0.4, 0.4, 0.2).
      key: PRNG key for all draws.
    """
    order, amounts = draw(strengths, len(images), key)
    has_hue = images.shape[-1] == 3 and strengths[HUE] > 0

    def step(images, turn):
        """Applies the next change in each image's order."""
        choice = turn[:, None, None, None]
        factors = jnp.take_along_axis(amounts, turn[None], axis=0)[0]
        changed = blend(plain_origin(choice, luma(images)), images, factors)
        hued = shift_hue(images, amounts[HUE]) if has_hue else images
        return jnp.where(choice == HUE, hued, changed), None

    return lax.scan(step, images, order)[0]


def draw(strengths, count, key):
    """Draws the changes of each of `count` images.

    Returns:
      order: int32 [4, N], a uniform permutation of BRIGHTNESS, CONTRAST, SATURATION and HUE.
      amounts: float32 [4, N], the factors of the first three and the hue shift as a fraction of
        the circle.
    """
    key_amount, key_order = jax.random.split(key)
    strength = jnp.array(strengths, jnp.float32)[:, None]
    neutral = jnp.array([1.0, 1.0, 1.0, 0.0])[:, None]
    lowest = jnp.array([0.0, 0.0, 0.0, -0.5])[:, None]
    amounts = jax.random.uniform(
        key_amount,
        (4, count),
        minval=jnp.maximum(neutral - strength, lowest),
        maxval=neutral + strength,
    )
    changes = jnp.broadcast_to(jnp.arange(4)[:, None], (4, count))
    return jax.random.permutation(key_order, changes, axis=0, independent=True), amounts


def shift_hue(images, shares):
    """Shifts the hue of uint8 [N, H, W, 3] by fractions [N] of the circle, in Pillow's 255 steps.

    Hue, saturation and value are quantized to bytes, so a shift of 0 is not exactly the identity.
    For 3 in 1,000 colors the hue is one step off Pillow's, which rounds before it divides.
    """
    hue, saturation, value = _to_hsv(images.astype(jnp.float32))
    shift = (255 * shares).astype(jnp.int32)[:, None, None]
    return _to_rgb((hue + shift) & 255, saturation, value)


def _to_hsv(images):
    """RGB to HSV; floats make the divisions fast, inputs and outputs are whole numbers."""
    red, green, blue = jnp.moveaxis(images, -1, 0)
    value = images.max(-1)
    chroma = value - images.min(-1)
    sixths = jnp.where(  # of the circle, in units of 1 / chroma
        red == value,
        green - blue,
        jnp.where(green == value, 2 * chroma + blue - red, 4 * chroma + red - green),
    )
    sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
    hue = 255 * sixths / jnp.maximum(6 * chroma, 1)
    saturation = 255 * chroma / jnp.maximum(value, 1)
    return hue.astype(jnp.int32), saturation.astype(jnp.int32), value.astype(jnp.int32)


def _to_rgb(hue, saturation, value):
    """int32 [N, H, W] each -> uint8 [N, H, W, 3].

    Along the circle a channel falls for one sixth, stays at its minimum for two, rises for one, and
    stays at its maximum for two.
    """

    def channel(start):
        along = (6 * hue + 255 * start) % (6 * 255)
        lack = jnp.minimum(along, 4 * 255 - along).clip(0, 255)
        return _rounded(value * (255**2 - saturation * lack), 255**2)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1).astype(jnp.uint8)


def _rounded(numerator, denominator):
    """Rounds to the nearest integer; the denominator is odd, so there are no ties."""
    return (2 * numerator + denominator) // (2 * denominator)
