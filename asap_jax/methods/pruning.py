"""Pruning of masks. A mask is [E, O] bool, True for candidates that are not pruned."""

import jax.numpy as jnp

from asap_jax.networks.spaces import SearchSpace


def prune_below(mask, weights, threshold):
    """Algorithm 1, lines 7-9: prunes each candidate whose weight is below the threshold.

    All edges share the threshold. An edge always keeps its heaviest candidate (the first, if tied),
    so no edge becomes empty.

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
    """Keeps the `count` unpruned candidates of highest score over all edges.

    Each edge always keeps its best candidate, so no edge becomes empty; ties keep the first.

    Args:
      mask: [E, O] bool.
      scores: [E, O].
      count: scalar int32, number to keep; at least E are kept.

    Returns:
      [E, O] bool, a subset of `mask` with max(count, E) candidates (fewer if `mask` has fewer).
    """
    living = jnp.where(mask, scores, -jnp.inf)
    best = jnp.arange(mask.shape[-1]) == jnp.argmax(living, -1)[:, None]
    return mask & _among(jnp.where(best, jnp.inf, living), jnp.maximum(count, mask.shape[0]))


def keep_best_of_cell(mask, scores, count):
    """Like `keep_best`, but edges may become empty; exactly `count` candidates are kept."""
    return mask & _among(jnp.where(mask, scores, -jnp.inf), count)


def keep_best_of_edge(mask, scores, count: int):
    """Keeps each edge's `count` unpruned candidates of highest score; ties keep the first."""
    living = jnp.where(mask, scores, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-living, -1, stable=True), -1)
    return mask & (rank < count)


def connected(mask, space: SearchSpace):
    """Prunes the candidates that leave a node without inputs or enter a node without outputs.

    `none` connects nothing. The outputs of a "darts" cell are all its nodes, of a "nasbench201"
    cell its last one.

    Args:
      mask: [E, O] bool.
      space: its edges and candidates.

    Returns:
      [E, O] bool, a subset of `mask`.
    """
    named = jnp.array([name != "none" for name in space.candidates])

    def leaving(node):
        return [e for e, (source, _) in enumerate(space.edges) if source == node]

    def without(mask, ends, edges):
        """`mask` without `edges` unless some of the edges `ends` is connected."""
        needed = (mask[jnp.array(ends, int)] & named).any()
        return mask.at[jnp.array(edges, int)].set(mask[jnp.array(edges, int)] & needed)

    for node in space.intermediate:
        mask = without(mask, space.incoming(node), leaving(node))
    if space.skeleton == "nasbench201":
        for node in reversed(space.intermediate[:-1]):
            mask = without(mask, leaving(node), space.incoming(node))
    return mask


def _among(scores, count):
    """[E, O] bool: whether each score is among the `count` highest."""
    order = jnp.argsort(-scores.ravel(), stable=True)
    rank = jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size))
    return (rank < count).reshape(scores.shape)


def decided(masks) -> jnp.ndarray:
    """Scalar bool: every edge of every cell type has at most one candidate."""
    return jnp.stack([jnp.all(mask.sum(-1) <= 1) for mask in masks.values()]).all()
