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


def keep_best(mask, scores, count):
    """Keeps the `count` living candidates of highest score, over all edges together.

    Each edge's best stays in any case, so no edge runs empty; of equal scores the first stays.

    Args:
      mask: [E, O] bool.
      scores: [E, O].
      count: scalar int32, how many to keep; at least E are kept.

    Returns:
      [E, O] bool, a subset of `mask` with max(count, E) candidates (fewer if fewer lived).
    """
    living = jnp.where(mask, scores, -jnp.inf)
    best = jnp.arange(mask.shape[-1]) == jnp.argmax(living, -1)[:, None]
    return mask & _among(jnp.where(best, jnp.inf, living), jnp.maximum(count, mask.shape[0]))


def keep_best_of_cell(mask, scores, count):
    """As `keep_best`, but an edge may lose all its candidates; exactly `count` are kept."""
    return mask & _among(jnp.where(mask, scores, -jnp.inf), count)


def keep_best_of_edge(mask, scores, count: int):
    """Keeps each edge's `count` living candidates of highest score; of equal ones the first."""
    living = jnp.where(mask, scores, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-living, -1, stable=True), -1)
    return mask & (rank < count)


def _among(scores, count):
    """[E, O] bool: whether a score is among the `count` highest."""
    order = jnp.argsort(-scores.ravel(), stable=True)
    rank = jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size))
    return (rank < count).reshape(scores.shape)


def decided(masks) -> jnp.ndarray:
    """Scalar bool: every edge of every cell type holds at most one candidate."""
    return jnp.stack([jnp.all(mask.sum(-1) <= 1) for mask in masks.values()]).all()
