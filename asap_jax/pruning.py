"""Pruning: masks in, masks out. A mask is [E, O] bool, True where the candidate lives."""

import jax.numpy as jnp


def prune_below(mask, weights, threshold):
    """Algorithm 1, lines 7-9: drops each candidate whose weight is under the threshold.

    Every edge is held against the same threshold. An edge's heaviest candidate stays whatever the
    threshold, so no edge runs empty; of equally heavy ones the first stays.

    Args:
      mask: [E, O] bool.
      weights: [E, O], 0 where the mask is False.
      threshold: scalar.

    Returns:
      [E, O] bool, a subset of `mask`.
    """
    heaviest = jnp.argmax(jnp.where(mask, weights, -jnp.inf), axis=-1)
    keep = (weights >= threshold) | (jnp.arange(mask.shape[-1]) == heaviest[:, None])
    return mask & keep


def decided(masks) -> jnp.ndarray:
    """Scalar bool: every edge of every cell type holds at most one candidate."""
    return jnp.stack([jnp.all(mask.sum(-1) <= 1) for mask in masks.values()]).all()
