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
from jax import lax

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
        correction = count / max(count - 1, 1)
        if known:
            inverse = lax.rsqrt(stats["var"] / correction + EPSILON)
            y = _normalise_by(x, stats["mean"], inverse, axis_name)
        else:
            y, mean, var = _normalise(x, axis_name)
            stats = lax.stop_gradient({"mean": mean, "var": var * correction})
    else:
        y = _standardise(x, stats["mean"], lax.rsqrt(stats["var"] + EPSILON))
    if scale is not None:
        y = y * scale + bias
    return y.astype(given), stats


def blend(running, batch):
    """The running statistics after a batch: a tree of arrays, and the batch's own like it."""
    return jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, running, batch)


# By `jit`, so that the norms of a supernet, hundreds of a few shapes, share their traces.


@partial(jax.jit, static_argnums=1)
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalise(x, axis_name):
    """(y, mean [C], variance [C]); the gradient takes the latter two for constants."""
    return _forward(x, axis_name)[0]


def _forward(x, axis_name):
    mean = _mean(x, axis_name)
    var = _mean(jnp.square(x - mean), axis_name)
    inverse = lax.rsqrt(var + EPSILON)
    return (_standardise(x, mean, inverse), mean, var), (x, mean, inverse)


def _backward(axis_name, residuals, cotangents):
    return (_pull_back(*residuals, cotangents[0], axis_name),)


@partial(jax.jit, static_argnums=4)
def _pull_back(x, mean, inverse, g, axis_name):
    standard = _standardise(x, mean, inverse)
    through_var = standard * _mean(g * standard, axis_name)
    return inverse * (g - _mean(g, axis_name) - through_var)


_normalise.__wrapped__.defvjp(_forward, _backward)


@partial(jax.jit, static_argnums=3)
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise_by(x, mean, inverse, axis_name):
    """The same by the batch's mean and 1 / standard deviation, computed before."""
    return _standardise(x, mean, inverse)


_normalise_by.__wrapped__.defvjp(
    lambda x, mean, inverse, axis_name: (_standardise(x, mean, inverse), (x, mean, inverse)),
    lambda axis_name, residuals, g: (*_backward(axis_name, residuals, (g,)), None, None),
)


def _standardise(x, mean, inverse):
    return (x - mean) * inverse


def _mean(x, axis_name):
    """[C], over images and pixels, and over the mapped axis if there is one."""
    mean = jnp.mean(x, (0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)
