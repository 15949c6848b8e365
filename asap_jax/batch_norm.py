"""Batch normalisation by PyTorch's convention, as a pure function.

Two things differ from `flax.linen.BatchNorm`: the variance is centred (the mean of squared
deviations, which does not cancel in float32), and the running variance is the unbiased one.
Momentum counts the old value: 0.9 here is 0.1 in PyTorch.
"""

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
        mean = jnp.mean(x, (0, 1, 2))
        count = x.size // x.shape[-1]
        if axis_name is not None:
            mean = lax.pmean(mean, axis_name)
            count = count * lax.axis_size(axis_name)
        var = jnp.mean(jnp.square(x - mean), (0, 1, 2))
        if axis_name is not None:
            var = lax.pmean(var, axis_name)
        unbiased = var * (count / max(count - 1, 1))
        new_stats = {
            "mean": momentum * stats["mean"] + (1 - momentum) * lax.stop_gradient(mean),
            "var": momentum * stats["var"] + (1 - momentum) * lax.stop_gradient(unbiased),
        }
    else:
        mean, var, new_stats = stats["mean"], stats["var"], stats
    y = (x - mean) * lax.rsqrt(var + eps)
    if scale is not None:
        y = y * scale + bias
    return y, new_stats
