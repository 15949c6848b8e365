"""Batched augmentation on the device, inside the jitted step, in DARTS' order.

Crop (with black padding), flip, AutoAugment or color jitter, scale to [0, 1], normalize, cutout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.data.autoaugment import auto_augment
from asap_jax.data.jitter import color_jitter


class Augmentation(NamedTuple):
    """How training images are augmented.

    mean, std: [C], of images in [0, 1].
    pad: pixels of black padding before a random crop to the original size.
    flip: mirror each image with probability 1/2.
    cutout: side in pixels of the square that is set to the mean; 0 for none.
    policy: AutoAugment policy, a key of `autoaugment.POLICIES`; "" for none.
    jitter: strengths of brightness, contrast, saturation and hue, see `color_jitter`; () for none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 4
    flip: bool = True
    cutout: int = 0
    policy: str = ""
    jitter: tuple[float, ...] = ()


def normalise(images, mean, std):
    """uint8 [N, H, W, C] -> floats with zero mean and unit variance per channel.

    The floats are float32, or float64 if x64 is enabled, as the weights then are.
    """
    dtype = jnp.result_type(float)
    scaled = images.astype(dtype) / 255
    return (scaled - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)


def augment(images, augmentation: Augmentation, key):
    """uint8 [N, H, W, C] -> floats, see `normalise`, with independent draws per image."""
    key_crop, key_flip, key_cutout = jax.random.split(key, 3)
    if augmentation.pad:
        images = _crop(images, augmentation.pad, key_crop)
    if augmentation.flip:
        mirrored = jax.random.bernoulli(key_flip, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    # Extra keys, distinct from the three above, which are folds 0 to 2.
    if augmentation.policy:
        images = auto_augment(images, augmentation.policy, jax.random.fold_in(key, 3))
    if augmentation.jitter:
        images = color_jitter(images, augmentation.jitter, jax.random.fold_in(key, 4))
    images = normalise(images, augmentation.mean, augmentation.std)
    if augmentation.cutout:
        images = _cutout(images, augmentation.cutout, key_cutout)
    return images


def _crop(images, pad, key):
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)

    def crop(image, corner):
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def _cutout(images, length, key):
    """Zeroes a square around a random pixel, clipped at the image borders."""
    count, height, width, _ = images.shape
    key_y, key_x = jax.random.split(key)
    y = jax.random.randint(key_y, (count, 1), 0, height)
    x = jax.random.randint(key_x, (count, 1), 0, width)

    def inside(pixels, centre):
        return (pixels >= centre - length // 2) & (pixels < centre + length // 2)

    hole = inside(jnp.arange(height), y)[:, :, None] & inside(jnp.arange(width), x)[:, None, :]
    return jnp.where(hole[..., None], 0, images)
