"""3 x 3 pooling by PyTorch's convention: one pixel of padding, which never counts.

Both gradients gather (each input pixel sums the contributions of the nine windows around it)
instead of scattering like autodiff, which is up to ten times faster on CPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.layers import windows


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def avg_pool(x, stride=1):
    """Mean over 3 x 3 windows, ignoring padding: [N, H, W, C] -> [N, ceil(H/s), ceil(W/s), C]."""
    return avg_pool_reference(x, stride)


def avg_pool_reference(x, stride=1):
    """Same as `avg_pool`, with autodiff's gradient."""
    height, width = windows.outputs(x.shape[1], stride), windows.outputs(x.shape[2], stride)
    padded = windows.pad(x, 1)
    total = sum(windows.shifted(padded, i, j, height, width, stride) for i, j in windows.taps(3))
    return total * _share(x.shape, stride, x.dtype)


def _share(shape, stride, dtype):
    """1 / (pixels in the window), [height, width, 1]."""

    def per_axis(size):
        starts = np.arange(windows.outputs(size, stride)) * stride - 1
        return np.minimum(starts + 3, size) - np.maximum(starts, 0)

    return jnp.asarray(1 / np.outer(per_axis(shape[1]), per_axis(shape[2])), dtype)[..., None]


def _avg_backward(stride, x, g):
    height, width = x.shape[1:3]
    g = windows.spread(g * _share(x.shape, stride, g.dtype), height, width, stride)
    padded = windows.pad(g, 1)
    return (sum(windows.shifted(padded, i, j, height, width) for i, j in windows.taps(3)),)


# x is a residual only for its shape; the compiler drops it.
avg_pool.defvjp(lambda x, stride: (avg_pool(x, stride), x), _avg_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x, stride=1):
    """Maximum over 3 x 3 windows: [N, H, W, C] -> [N, ceil(H/s), ceil(W/s), C].

    As in PyTorch, the first of equal values in row-major order gets the gradient, and NaN wins.
    """
    return _winners(x, stride)[0]


def max_pool_reference(x, stride=1):
    """Same as `max_pool`, with `reduce_window` and autodiff."""
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, stride, stride, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


@partial(jax.jit, static_argnums=1)  # shares its trace, like depthwise convolutions
def _winners(x, stride):
    """(maxima, index 0..8 of the tap with each maximum)."""
    height, width = windows.outputs(x.shape[1], stride), windows.outputs(x.shape[2], stride)
    padded = windows.pad(x, 1, -jnp.inf)
    values = (windows.shifted(padded, i, j, height, width, stride) for i, j in windows.taps(3))
    best = next(values)
    index = jnp.zeros(best.shape, jnp.int8)
    for tap, value in enumerate(values, 1):
        better = (value > best) | jnp.isnan(value)
        best = jnp.where(better, value, best)
        index = jnp.where(better, jnp.int8(tap), index)
    return best, index


def _max_backward(stride, x, g):
    return (_pull_max(x, g, stride),)


@partial(jax.jit, static_argnums=2)
def _pull_max(x, g, stride):
    height, width = x.shape[1:3]

    index = windows.spread(_winners(x, stride)[1], height, width, stride, -1)
    index = windows.pad(index, 1, -1)
    padded = windows.pad(windows.spread(g, height, width, stride), 1)
    # The window that covers this pixel with tap (i, j) is centered (1 - i, 1 - j) pixels away.
    return sum(
        jnp.where(
            windows.shifted(index, 2 - i, 2 - j, height, width) == tap,
            windows.shifted(padded, 2 - i, 2 - j, height, width),
            0,
        )
        for tap, (i, j) in enumerate(windows.taps(3))
    )


max_pool.defvjp(lambda x, stride: (max_pool(x, stride), x), _max_backward)
