"""Batch normalisation by PyTorch's convention, as a pure function.

Two things differ from `flax.linen.BatchNorm`: the variance is centred (the mean of squared
deviations, which does not cancel in float32), and the running variance is the unbiased one.
Momentum counts the old value: 0.9 here is 0.1 in PyTorch. A norm gives the batch's statistics;
whoever holds the running ones blends the two.

The gradient is written out: it saves autodiff's detours over mean and variance, consists of
differentiable primitives, and means two averages over the devices that share a batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.backend import on_cpu

MOMENTUM = 0.9  # of the running statistics; counts the old value
EPSILON = 1e-5  # added to the variance


def batch_norm(x, stats, *, train, known=False, scale=None, bias=None, axis_name=None):
    """Normalises each channel.

    Args:
      x: [N, H, W, C]; one of 16 bits is normalised in float32.
      stats: {"mean": [C], "var": [C]}, what to normalise by if not `train`: running statistics.
      train: normalise by the batch's own statistics.
      known: in training, `stats` are those of this very batch: they are not computed again. The
        gradient goes through them all the same; it cannot be differentiated once more.
      scale, bias: [C], or None for a norm without parameters.
      axis_name: mapped axis over which the batch is spread; its statistics are then global.

    Returns:
      (y [N, H, W, C], statistics): the batch's own in training (the variance unbiased), for `blend`
      to join with the running ones; else `stats`.
    """
    given, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if train:
        count = x.size // x.shape[-1]
        if axis_name is not None:
            count = count * lax.axis_size(axis_name)
        if known:
            inverse = lax.rsqrt(stats["var"] / unbiased(1, count) + EPSILON)
            y = _normalise_by(x, stats["mean"], inverse, axis_name, on_cpu())
        else:
            y, mean, var = _normalise(x, axis_name, on_cpu())
            stats = lax.stop_gradient({"mean": mean, "var": unbiased(var, count)})
    else:
        y = _standardise(x, stats["mean"], lax.rsqrt(stats["var"] + EPSILON))
    if scale is not None:
        y = y * scale + bias
    return y.astype(given), stats


def unbiased(var, count):
    """The variance of `count` values, as the running statistics take it."""
    return var * (count / max(count - 1, 1))


def moments(maps, axis_name=None, cpu=None):
    """[(mean [C], variance [C])] of maps [N, H, W, C], over the mapped axis too if there is one.

    A GPU waits for memory, so there both sums come out of one reading: of the distances from one
    pixel of the map, which is near enough to the mean that nothing cancels. A CPU reads twice.
    `cpu` says which it is; None for `backend.on_cpu`.
    """
    cpu = on_cpu() if cpu is None else cpu
    return (_moments_by_two if cpu else _moments_at_once)(axis_name, list(maps))


def _moments_by_two(axis_name, maps):
    means = [_mean(x, axis_name) for x in maps]
    return [(m, _mean(jnp.square(x - m), axis_name)) for x, m in zip(maps, means, strict=True)]


def _moments_at_once(axis_name, maps):
    pixels = [lax.stop_gradient(x[0, 0, 0]) for x in maps]
    apart = [x - pixel for x, pixel in zip(maps, pixels, strict=True)]
    sums = sums_over_pixels([f(each) for each in apart for f in (lambda d: d, jnp.square)])
    found = []
    for x, pixel, first, second in zip(maps, pixels, sums[::2], sums[1::2], strict=True):
        first, second = (each / (x.size // x.shape[-1]) for each in (first, second))
        mean, var = pixel + first, jnp.maximum(second - jnp.square(first), 0)
        if axis_name is not None:
            local, mean = mean, lax.pmean(mean, axis_name)
            var = lax.pmean(var + jnp.square(local - mean), axis_name)
        found.append((mean, var))
    return found


def sums_over_pixels(maps):
    """[...] of each map [N, H, W, ...], in two passes: each image; the images, all maps at once.

    Left to itself XLA makes up to three kernels of each sum.
    """
    by_image = lax.optimization_barrier([each.sum((1, 2)) for each in maps])
    shapes = [each.shape[1:] for each in by_image]
    flat = jnp.concatenate([each.reshape(each.shape[0], -1) for each in by_image], 1).sum(0)
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(jnp.split(flat, ends), shapes, strict=True)]


def _means(maps, axis_name, cpu):
    """[[C], ...] of each map, over the mapped axis too; see `moments`."""
    if cpu:
        return [_mean(each, axis_name) for each in maps]
    means = [s / (x.size // x.shape[-1]) for s, x in zip(sums_over_pixels(maps), maps, strict=True)]
    return means if axis_name is None else lax.pmean(means, axis_name)


def blend(running, batch):
    """The running statistics after a batch: a tree of arrays, and the batch's own like it."""
    return jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, running, batch)


# By `jit`, so that the norms of a supernet, hundreds of a few shapes, share their traces.


@partial(jax.jit, static_argnums=(1, 2))
@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _normalise(x, axis_name, cpu):
    """(y, mean [C], variance [C]); the gradient takes the latter two for constants."""
    return _forward(x, axis_name, cpu)[0]


def _forward(x, axis_name, cpu):
    ((mean, var),) = moments([x], axis_name, cpu)
    inverse = lax.rsqrt(var + EPSILON)
    return (_standardise(x, mean, inverse), mean, var), (x, mean, inverse)


def _backward(axis_name, cpu, residuals, cotangents):
    return (_pull_back(*residuals, cotangents[0], axis_name, cpu),)


@partial(jax.jit, static_argnums=(4, 5))
def _pull_back(x, mean, inverse, g, axis_name, cpu):
    standard = _standardise(x, mean, inverse)
    through_mean, through_var = _means([g, g * standard], axis_name, cpu)
    return inverse * (g - through_mean - standard * through_var)


_normalise.__wrapped__.defvjp(_forward, _backward)


@partial(jax.jit, static_argnums=(3, 4))
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise_by(x, mean, inverse, axis_name, cpu):
    """The same by the batch's mean and 1 / standard deviation, computed before."""
    return _standardise(x, mean, inverse)


_normalise_by.__wrapped__.defvjp(
    lambda x, mean, inverse, *options: (_standardise(x, mean, inverse), (x, mean, inverse)),
    lambda axis_name, cpu, residuals, g: (*_backward(axis_name, cpu, residuals, (g,)), None, None),
)


def _standardise(x, mean, inverse):
    return (x - mean) * inverse


def _mean(x, axis_name):
    """[C], over images and pixels, and over the mapped axis if there is one."""
    mean = jnp.mean(x, (0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)
