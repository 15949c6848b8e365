"""Batch normalization by PyTorch's convention, as a pure function.

There are two differences from `flax.linen.BatchNorm`: the variance is the mean of squared
deviations, which avoids cancellation in float32, and the running variance is unbiased. Momentum
weighs the old value: 0.9 here is 0.1 in PyTorch. The norm returns batch statistics; the caller
blends them into the running ones.

The gradient is explicit: it is cheaper than autodiff's through mean and variance, and consists of
differentiable primitives.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.host.backend import on_cpu

MOMENTUM = 0.9  # of the running statistics; the weight of the old value
EPSILON = 1e-5  # added to the variance


def batch_norm(x, stats, *, train, known=False, scale=None, bias=None):
    """Normalizes each channel.

    Args:
      x: [N, H, W, C]; 16-bit floats are normalized in float32.
      stats: {"mean": [C], "var": [C]}, running statistics, used if not `train`.
      train: normalize by batch statistics.
      known: in training, `stats` are those of this batch and are not recomputed. The gradient still
        flows through them, but cannot be differentiated again.
      scale, bias: [C], or None for a norm without parameters.

    Returns:
      (y [N, H, W, C], statistics): in training the batch statistics (with unbiased variance), to be
      joined with the running ones by `blend`; else `stats`.
    """
    given, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if train:
        count = x.size // x.shape[-1]
        if known:
            inverse = lax.rsqrt(stats["var"] / unbiased(1, count) + EPSILON)
            y = _normalise_by(x, stats["mean"], inverse, on_cpu())
        else:
            y, mean, var = _normalise(x, on_cpu())
            stats = lax.stop_gradient({"mean": mean, "var": unbiased(var, count)})
    else:
        y = _standardise(x, stats["mean"], lax.rsqrt(stats["var"] + EPSILON))
    if scale is not None:
        y = y * scale + bias
    return y.astype(given), stats


def unbiased(var, count):
    """Unbiased variance of `count` values, as used in the running statistics."""
    return var * (count / max(count - 1, 1))


def moments(maps, cpu=None):
    """[(mean [C], variance [C])] of maps [N, H, W, C].

    A GPU is memory bound and computes both sums in one pass, over distances from one pixel of the
    map, which is close enough to the mean to avoid cancellation. A CPU makes two passes. `cpu`
    selects the version; None uses `backend.on_cpu`.
    """
    cpu = on_cpu() if cpu is None else cpu
    return (_moments_by_two if cpu else _moments_at_once)(list(maps))


def _moments_by_two(maps):
    means = [_mean(x) for x in maps]
    return [(m, _mean(jnp.square(x - m))) for x, m in zip(maps, means, strict=True)]


def _moments_at_once(maps):
    pixels = [lax.stop_gradient(x[0, 0, 0]) for x in maps]
    apart = [x - pixel for x, pixel in zip(maps, pixels, strict=True)]
    sums = sums_over_pixels([f(each) for each in apart for f in (lambda d: d, jnp.square)])
    found = []
    for x, pixel, first, second in zip(maps, pixels, sums[::2], sums[1::2], strict=True):
        first, second = (each / (x.size // x.shape[-1]) for each in (first, second))
        found.append((pixel + first, jnp.maximum(second - jnp.square(first), 0)))
    return found


def sums_over_pixels(maps):
    """[...] of each map [N, H, W, ...], in two passes: per image, then over images for all maps.

    Otherwise XLA makes up to three kernels of each sum.
    """
    by_image = lax.optimization_barrier([each.sum((1, 2)) for each in maps])
    shapes = [each.shape[1:] for each in by_image]
    flat = jnp.concatenate([each.reshape(each.shape[0], -1) for each in by_image], 1).sum(0)
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(jnp.split(flat, ends), shapes, strict=True)]


def _means(maps, cpu):
    """[[C], ...], the mean of each map; see `moments`."""
    if cpu:
        return [_mean(each) for each in maps]
    return [s / (x.size // x.shape[-1]) for s, x in zip(sums_over_pixels(maps), maps, strict=True)]


def blend(running, batch):
    """Updates running statistics, a tree of arrays, with the batch statistics."""
    return jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, running, batch)


# Wrapped in jit, so that a supernet's norms, hundreds with a few shapes, share their traces.


@partial(jax.jit, static_argnums=1)
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalise(x, cpu):
    """(y, mean [C], variance [C]); the gradient treats the latter two as constants."""
    return _forward(x, cpu)[0]


def _forward(x, cpu):
    ((mean, var),) = moments([x], cpu)
    inverse = lax.rsqrt(var + EPSILON)
    return (_standardise(x, mean, inverse), mean, var), (x, mean, inverse)


def _backward(cpu, residuals, cotangents):
    return (_pull_back(*residuals, cotangents[0], cpu),)


@partial(jax.jit, static_argnums=4)
def _pull_back(x, mean, inverse, g, cpu):
    standard = _standardise(x, mean, inverse)
    through_mean, through_var = _means([g, g * standard], cpu)
    return inverse * (g - through_mean - standard * through_var)


# jax.jit does not declare __wrapped__.
_normalise.__wrapped__.defvjp(_forward, _backward)  # pyright: ignore[reportAttributeAccessIssue]


@partial(jax.jit, static_argnums=3)
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise_by(x, mean, inverse, cpu):
    """Same as `_normalise`, with the batch's mean and 1 / standard deviation precomputed."""
    return _standardise(x, mean, inverse)


_normalise_by.__wrapped__.defvjp(  # pyright: ignore[reportAttributeAccessIssue]
    lambda x, mean, inverse, cpu: (_standardise(x, mean, inverse), (x, mean, inverse)),
    lambda cpu, residuals, g: (*_backward(cpu, residuals, (g,)), None, None),
)


def _standardise(x, mean, inverse):
    return (x - mean) * inverse


def _mean(x):
    """[C], over images and pixels."""
    return jnp.mean(x, (0, 1, 2))
