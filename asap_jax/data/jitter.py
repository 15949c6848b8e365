"""Colour augmentation on the device, batch-wise: torchvision's ColorJitter for Pillow's images.

Brightness, contrast, saturation and hue change one after another, in an order that each image draws
for itself.
"""

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.data.operations import BLACK, GREY, MEAN, blend, luma, plain_origin

# What is changed: the first three by the origin of their factor, see `operations`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = BLACK, MEAN, GREY, 3


def color_jitter(images, strengths, key):
    """uint8 [N, H, W, C] -> uint8 [N, H, W, C], each image with draws of its own.

    On images of one channel saturation and hue do nothing. As in torchvision, the hue goes through
    bytes even where its draw is nothing, but is left alone where its strength is 0.

    Args:
      images: of one or three channels.
      strengths: (b, c, s, h). Factors of brightness, contrast and saturation are drawn from
        [1 - b, 1 + b], none below 0; the hue turns by a share of the circle from [-h, h], h at
        most 0.5. DARTS has (0.4, 0.4, 0.4, 0.2).
      key: of all draws.
    """
    order, amounts = draw(strengths, len(images), key)
    has_hue = images.shape[-1] == 3 and strengths[HUE] > 0

    def step(images, turn):
        """Each image goes through the change that is next in its order."""
        choice = turn[:, None, None, None]
        factors = jnp.take_along_axis(amounts, turn[None], axis=0)[0]
        changed = blend(plain_origin(choice, luma(images)), images, factors)
        hued = shift_hue(images, amounts[HUE]) if has_hue else images
        return jnp.where(choice == HUE, hued, changed), None

    return lax.scan(step, images, order)[0]


def draw(strengths, count, key):
    """What happens to each of `count` images.

    Returns:
      order: int32 [4, N], BRIGHTNESS, CONTRAST, SATURATION and HUE in any order, all 24 alike.
      amounts: float32 [4, N], the factors of the first three and the hue's share of the circle.
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
    """Turns the hue of uint8 [N, H, W, 3] by shares [N] of the circle, in Pillow's 255 steps.

    Hue, saturation and value go through bytes, so that a share of 0 is not quite the identity. The
    hue of 3 colours in 1,000 is one step off Pillow's, which rounds before it divides.
    """
    hue, saturation, value = _to_hsv(images.astype(jnp.float32))
    shift = (255 * shares).astype(jnp.int32)[:, None, None]
    return _to_rgb((hue + shift) & 255, saturation, value)


def _to_hsv(images):
    """Floats for their divisions, which are fast; whole numbers come in and go out."""
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

    Along the circle a channel falls for a sixth, lies at its least for two sixths, rises for one,
    and is full for two.
    """

    def channel(start):
        along = (6 * hue + 255 * start) % (6 * 255)
        lack = jnp.minimum(along, 4 * 255 - along).clip(0, 255)
        return _rounded(value * (255**2 - saturation * lack), 255**2)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1).astype(jnp.uint8)


def _rounded(numerator, denominator):
    """The nearest whole number; the denominator is odd, so that there are no ties."""
    return (2 * numerator + denominator) // (2 * denominator)
