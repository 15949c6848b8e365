"""Sliding windows as shifted slices: what depthwise convolution and pooling are made of."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Window(NamedTuple):
    """Of a convolution: size x size taps, `dilation` apart, `padding` zeros on each side."""

    size: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0


def outputs(size: int, stride: int) -> int:
    """How many windows a padded axis of `size` has: one around each `stride`-th pixel."""
    return -(-size // stride)


def pad(x, width: int, value=0):
    """Pads height and width of x [N, H, W, C] on both sides."""
    sides = (width, width, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), sides, sides, (0, 0, 0)))


def taps(size: int) -> list[tuple[int, int]]:
    """The (row, column) pairs of a size x size window, row by row."""
    return [(i, j) for i in range(size) for j in range(size)]


def shifted(padded, i, j, height, width, stride=1, dilation=1):
    """What tap (i, j) of every window meets: [N, height, width, C] out of `padded`."""
    batch, _, _, channels = padded.shape
    top, left = i * dilation, j * dilation
    return lax.slice(
        padded,
        (0, top, left, 0),
        (batch, top + (height - 1) * stride + 1, left + (width - 1) * stride + 1, channels),
        (1, stride, stride, 1),
    )


def spread(g, height, width, stride, value=0):
    """Puts g [N, h, w, C] back on the input's grid [N, height, width, C], `value` in between."""
    if stride == 1:
        return g
    after = [
        size - ((count - 1) * stride + 1)
        for size, count in zip((height, width), g.shape[1:3], strict=True)
    ]
    config = [(0, 0, 0), (0, after[0], stride - 1), (0, after[1], stride - 1), (0, 0, 0)]
    return lax.pad(g, jnp.asarray(value, g.dtype), config)
