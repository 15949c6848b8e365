"""Batch normalisation by PyTorch's convention, as a pure function.

Two things differ from `flax.linen.BatchNorm`: the variance is centred (the mean of squared
deviations, which does not cancel in float32), and the running variance is the unbiased one.
Momentum counts the old value: 0.9 here is 0.1 in PyTorch.

The gradient is written out: it saves autodiff's detours over mean and variance, consists of
differentiable primitives, and means two averages over the devices that share a batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def batch_norm(x, stats, *, train, scale=None, bias=None, axis_name=None, momentum=0.9, eps=1e-5):
    """Normalises each channel and updates the running statistics.

    Args:
      x: [N, H, W, C].
      stats: {"mean": [C], "var": [C]}, the running statistics.
      train: normalise by the batch's own statistics (and update the running ones), or by `stats`.
      scale, bias: [C], or None for a norm without parameters.
      axis_name: mapped axis over which the batch is spread; its statistics are then global.
      momentum: weight of the old running value.
      eps: added to the variance.

    Returns:
      (y [N, H, W, C], new stats). In evaluation the statistics are returned as they came.
    """
    if train:
        y, mean, var = _normalise(x, eps, axis_name)
        count = x.size // x.shape[-1]
        if axis_name is not None:
            count = count * lax.axis_size(axis_name)
        unbiased = var * (count / max(count - 1, 1))
        stats = {
            "mean": momentum * stats["mean"] + (1 - momentum) * lax.stop_gradient(mean),
            "var": momentum * stats["var"] + (1 - momentum) * lax.stop_gradient(unbiased),
        }
    else:
        y = _standardise(x, stats["mean"], lax.rsqrt(stats["var"] + eps))
    if scale is not None:
        y = y * scale + bias
    return y, stats


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _normalise(x, eps, axis_name):
    """(y, mean [C], variance [C]); the gradient takes the latter two for constants."""
    return _forward(x, eps, axis_name)[0]


def _forward(x, eps, axis_name):
    mean = _mean(x, axis_name)
    var = _mean(jnp.square(x - mean), axis_name)
    inverse = lax.rsqrt(var + eps)
    return (_standardise(x, mean, inverse), mean, var), (x, mean, inverse)


def _backward(eps, axis_name, residuals, cotangents):
    x, mean, inverse = residuals
    g = cotangents[0]
    standard = _standardise(x, mean, inverse)
    through_var = standard * _mean(g * standard, axis_name)
    return (inverse * (g - _mean(g, axis_name) - through_var),)


_normalise.defvjp(_forward, _backward)


def _standardise(x, mean, inverse):
    return (x - mean) * inverse


def _mean(x, axis_name):
    """[C], over images and pixels, and over the mapped axis if there is one."""
    mean = jnp.mean(x, (0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)
