"""Sliding windows as shifted slices, the basis of depthwise convolution and pooling."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Window(NamedTuple):
    """A convolution window: size x size taps, `dilation` apart, `padding` zeros on each side."""

    size: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0


def outputs(size: int, stride: int) -> int:
    """Number of windows on a padded axis of `size`: one centered at each `stride`-th pixel."""
    return -(-size // stride)


def pad(x, width: int, value: float = 0):
    """Pads height and width of x [N, H, W, C] on both sides."""
    sides = (width, width, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), sides, sides, (0, 0, 0)))


def taps(size: int) -> list[tuple[int, int]]:
    """The (row, column) pairs of a size x size window in row-major order."""
    return [(i, j) for i in range(size) for j in range(size)]


def shifted(padded, i, j, height, width, stride=1, dilation=1):
    """The pixels under tap (i, j) of every window: [N, height, width, C], from `padded`."""
    batch, _, _, channels = padded.shape
    top, left = i * dilation, j * dilation
    return lax.slice(
        padded,
        (0, top, left, 0),
        (batch, top + (height - 1) * stride + 1, left + (width - 1) * stride + 1, channels),
        (1, stride, stride, 1),
    )


def spread(g, height, width, stride, value=0):
    """Spreads g [N, h, w, C] over the input's grid [N, height, width, C], padded with `value`."""
    if stride == 1:
        return g
    after = [
        size - ((count - 1) * stride + 1)
        for size, count in zip((height, width), g.shape[1:3], strict=True)
    ]
    config = [(0, 0, 0), (0, after[0], stride - 1), (0, after[1], stride - 1), (0, 0, 0)]
    return lax.pad(g, jnp.asarray(value, g.dtype), config)
