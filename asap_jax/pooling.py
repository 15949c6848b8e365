"""3 x 3 pooling by PyTorch's convention: one pixel of padding that never counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _windows(size, stride):
    return -(-size // stride)


def _shifts(padded, height, width, stride):
    """The nine slices [N, height, width, C] that the window's taps meet, row by row."""
    return [
        lax.slice(
            padded,
            (0, i, j, 0),
            (
                padded.shape[0],
                i + (height - 1) * stride + 1,
                j + (width - 1) * stride + 1,
                padded.shape[3],
            ),
            (1, stride, stride, 1),
        )
        for i in range(3)
        for j in range(3)
    ]


def avg_pool(x, stride=1):
    """Mean over 3 x 3 windows, padding not counted: [N, H, W, C] -> [N, ceil(H/s), ceil(W/s), C]."""
    height, width = _windows(x.shape[1], stride), _windows(x.shape[2], stride)
    total = sum(_shifts(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), height, width, stride))

    def per_axis(size, count):
        starts = np.arange(count) * stride - 1
        return np.minimum(starts + 3, size) - np.maximum(starts, 0)

    counts = np.outer(per_axis(x.shape[1], height), per_axis(x.shape[2], width))
    return total * jnp.asarray(1.0 / counts, x.dtype)[:, :, None]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x, stride=1):
    """Maximum over 3 x 3 windows: [N, H, W, C] -> [N, ceil(H/s), ceil(W/s), C].

    Of equal values the first in the window, row by row, gets the gradient, as in PyTorch. On a CPU
    the winner's index is kept and the gradient goes straight back to it: XLA's own gradient of
    `reduce_window` is eight times slower there.
    """
    return lax.platform_dependent(
        x,
        cpu=lambda x: _winners(x, stride)[0],
        default=partial(max_pool_reference, stride=stride),
    )


def max_pool_reference(x, stride=1):
    """The same as `max_pool`, by `reduce_window` and autodiff."""
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, stride, stride, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _winners(x, stride):
    """(maxima, index 0..8 of the tap that holds each)."""
    height, width = _windows(x.shape[1], stride), _windows(x.shape[2], stride)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    shifts = _shifts(padded, height, width, stride)
    best, index = shifts[0], jnp.zeros(shifts[0].shape, jnp.int8)
    for tap, value in enumerate(shifts[1:], 1):
        better = (value > best) | jnp.isnan(value)
        best = jnp.where(better, value, best)
        index = jnp.where(better, jnp.int8(tap), index)
    return best, index


def _forward(x, stride):
    return max_pool(x, stride), x


def _backward(stride, x, g):
    def on_cpu(x, g):
        _, index = _winners(x, stride)
        height, width = g.shape[1:3]
        padded = jax.linear_transpose(
            lambda p: _shifts(p, height, width, stride),
            jax.ShapeDtypeStruct((x.shape[0], x.shape[1] + 2, x.shape[2] + 2, x.shape[3]), x.dtype),
        )([jnp.where(index == tap, g, 0) for tap in range(9)])[0]
        return padded[:, 1:-1, 1:-1]

    def elsewhere(x, g):
        return jax.vjp(partial(max_pool_reference, stride=stride), x)[1](g)[0]

    return (lax.platform_dependent(x, g, cpu=on_cpu, default=elsewhere),)


max_pool.defvjp(_forward, _backward)
