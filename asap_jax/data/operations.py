"""Batched Pillow image operations on the device, with a different operation per image.

Under vmap a choice of operation would compute all of them, so an operation is data instead: a table
of 256 grey levels, a matrix for where pixels come from, and a factor for the distance from a
degenerate image. The reference is Pillow on images of one or three channels (modes L and RGB), with
nearest neighbors and `FILL` outside.

Results equal Pillow's bit for bit, with two exceptions that may differ by one level. Autocontrast
divides integers here and floats in Pillow: 0.4 % of its table entries differ. XLA may fuse a
factor's product and sum with a single rounding: 0.5 % of the pixels differ at factors in tenths.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

FILL = 128  # grey level outside of the source image
_ONE = 1 << 16  # 1 in the fixed-point format of a matrix
_LEVELS = np.arange(256)

# The degenerate image that a factor moves away from.
BLACK, MEAN, GREY, SMOOTH = range(4)


class Operation(NamedTuple):
    """One operation; in `apply`, one per image, with a leading axis N on every field.

    Each constructor below sets the fields it needs and leaves the rest neutral; `apply` relies on
    that.

    table: uint8 [256], the new value of each grey level.
    autocontrast, equalize: bool, whether to use a table computed from the image instead.
    matrix: int32 [6], where a pixel comes from, in 1 / 65,536 of a pixel: (x, y) from
      (m0 x + m1 y + m2, m3 x + m4 y + m5), rounded down.
    origin, factor: each pixel's distance from the image's BLACK, MEAN, GREY or SMOOTH form is
      multiplied by the factor.
    """

    table: ArrayLike = _LEVELS.astype(np.uint8)
    autocontrast: ArrayLike = False
    equalize: ArrayLike = False
    matrix: ArrayLike = np.array([_ONE, 0, 0, 0, _ONE, 0], np.int32)
    origin: ArrayLike = BLACK
    factor: ArrayLike = 1.0


def invert() -> Operation:
    return _with_table(255 - _LEVELS)


def posterize(bits: int) -> Operation:
    """Keeps the upper `bits` bits of each grey level, 1 to 8."""
    return _with_table(_LEVELS & -(1 << (8 - bits)))


def solarize(threshold: float) -> Operation:
    """Inverts grey levels at or above `threshold`."""
    return _with_table(np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def brightness(factor: float) -> Operation:
    return Operation(origin=BLACK, factor=factor)


def contrast(factor: float) -> Operation:
    return Operation(origin=MEAN, factor=factor)


def color(factor: float) -> Operation:
    """Saturation; the identity on single-channel images."""
    return Operation(origin=GREY, factor=factor)


def sharpness(factor: float) -> Operation:
    return Operation(origin=SMOOTH, factor=factor)


def autocontrast() -> Operation:
    """Stretches each channel's levels over 0 to 255."""
    return Operation(autocontrast=True)


def equalize() -> Operation:
    """Equalizes each channel's histogram."""
    return Operation(equalize=True)


def affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Operation:
    """The pixel centered at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    matrix = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return Operation(
        matrix=np.array([math.floor(_ONE * value + 0.5) for value in matrix], np.int32)
    )


def shear_x(slope: float) -> Operation:
    return affine(1, slope, 0, 0, 1, 0)


def shear_y(slope: float) -> Operation:
    return affine(1, 0, 0, slope, 1, 0)


def translate_x(pixels: float) -> Operation:
    return affine(1, 0, pixels, 0, 1, 0)


def translate_y(pixels: float) -> Operation:
    return affine(1, 0, 0, 0, 1, pixels)


def rotate(degrees: float, height: int, width: int) -> Operation:
    """Rotates counterclockwise around the center."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return affine(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _with_table(levels) -> Operation:
    return Operation(table=levels.astype(np.uint8))


def apply(images, operation: Operation):
    """uint8 [N, H, W, C] -> uint8 [N, H, W, C]; applies each image's operation."""
    grey = luma(images)
    choice = jnp.asarray(operation.origin)[:, None, None, None]
    origin = jnp.where(choice == SMOOTH, _smooth(images), plain_origin(choice, grey))
    # Origins use the unmoved images: operations with a factor other than 1 do not move pixels.
    moved = _look_up(_move(images, operation.matrix), _tables(images, operation))
    return blend(origin, moved, operation.factor)


def luma(images):
    """uint8 [N, H, W, C] -> uint8 [N, H, W, 1], the luma of each pixel (ITU-R 601-2)."""
    if images.shape[-1] == 1:
        return images
    weighted = images.astype(jnp.int32) * jnp.array([19595, 38470, 7471])
    return ((weighted.sum(-1, keepdims=True) + (1 << 15)) >> 16).astype(jnp.uint8)


def plain_origin(choice, grey):
    """uint8 [N, H, W, 1]: BLACK, the image's MEAN, or GREY, selected by choice [N, 1, 1, 1]."""
    pixels = grey.shape[1] * grey.shape[2]
    total = grey.sum((1, 2, 3), dtype=jnp.int32, keepdims=True)
    mean = (2 * total + pixels) // (2 * pixels)  # rounded
    return jnp.select([choice == BLACK, choice == MEAN], [0, mean.astype(jnp.uint8)], grey)


def blend(origin, images, factors):
    """Scales the distance of images from an origin, and clips to 0..255.

    Args:
      origin: uint8, broadcasts against the images.
      images: uint8 [N, H, W, C].
      factors: float [N]; 0 gives the origin, 1 the image.
    """
    start = origin.astype(jnp.float32)
    blended = start + factors[:, None, None, None] * (images - start)
    return blended.clip(0, 255).astype(jnp.uint8)


def _tables(images, operation):
    """The lookup table of each image and channel: uint8 [N, 256, C]."""
    chosen = jnp.where(
        operation.autocontrast[:, None, None],
        _autocontrast_tables(images),
        operation.table[:, :, None],
    )
    return jnp.where(operation.equalize[:, None, None], _equalize_tables(images), chosen)


def _autocontrast_tables(images):
    low = images.min((1, 2)).astype(jnp.int32)[:, None]
    high = images.max((1, 2)).astype(jnp.int32)[:, None]
    levels = jnp.arange(256)[:, None]
    stretched = 255 * (levels - low) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, levels).clip(0, 255).astype(jnp.uint8)


def _equalize_tables(images):
    """Maps a level to the number of lower pixels, in 255ths of those below the highest level."""
    count, height, width, channels = images.shape
    histogram = (
        jnp.zeros((count, 256, channels), jnp.int32)
        .at[
            jnp.arange(count)[:, None, None],
            images.reshape(count, height * width, channels),
            jnp.arange(channels),
        ]
        .add(1)
    )
    lower = jnp.cumsum(histogram, axis=1) - histogram
    highest = images.max((1, 2)).astype(jnp.int32)[:, None]
    step = jnp.take_along_axis(lower, highest, axis=1) // 255
    levels = jnp.where(
        step > 0, (step // 2 + lower) // jnp.maximum(step, 1), jnp.arange(256)[:, None]
    )
    return levels.clip(0, 255).astype(jnp.uint8)


def _look_up(images, tables):
    pixels = images.reshape(len(images), -1, images.shape[-1]).astype(jnp.int32)
    found = jnp.take_along_axis(tables, pixels, axis=1, mode="promise_in_bounds")
    return found.reshape(images.shape)


def _move(images, matrices):
    """Gathers each pixel from where its image's matrix points, with `FILL` outside."""
    count, height, width, channels = images.shape
    m = matrices[:, :, None, None]
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    from_x = (m[:, 0] * x + m[:, 1] * y + m[:, 2]) >> 16
    from_y = (m[:, 3] * x + m[:, 4] * y + m[:, 5]) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    source = jnp.where(inside, from_y * width + from_x, 0).reshape(count, -1, 1)
    pixels = images.reshape(count, -1, channels)
    moved = jnp.take_along_axis(pixels, source, axis=1, mode="promise_in_bounds")
    return jnp.where(inside[..., None], moved.reshape(images.shape), FILL).astype(jnp.uint8)


def _smooth(images):
    """Averages each pixel, weighted 5, with its eight neighbors; the border is unchanged."""
    wide = images.astype(jnp.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    mean = (2 * (total + 4 * wide[:, 1:-1, 1:-1]) + 13) // 26  # over 13, rounded; no ties occur
    return images.at[:, 1:-1, 1:-1].set(mean.astype(jnp.uint8))
