"""Pruning while training by eq. 13 of the ASAP paper: its two baselines (section 4.4), and NAP.

All three cut, once an epoch, as many candidates as the sparsity schedule asks for; they differ in
what they rank by. The count holds for each cell type by itself: normal and reduction cells end with
equally many candidates. (The paper does not say whether its own was for both together.)
"""

from functools import partial

import jax
import jax.numpy as jnp

from asap_jax import bilevel, derive, pruning, schedules
from asap_jax.relaxation import Mixture
from asap_jax.spaces import SearchSpace
from asap_jax.strategies.base import (
    Architecture,
    Strategy,
    derive_strongest,
    full_masks,
    normal_alphas,
    softmax_mixture,
)


def magnitude(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    power: float = 1.0,
    start: float = 0.4,
    start_epoch: int | None = None,
    sparsity: float | None = None,
) -> Strategy:
    """DARTS plus masks: the candidates of smallest weight are cut, as eq. 13 asks.

    A candidate's weight is what its output is multiplied by, its share of the softmax over those
    of its edge that live. (Alphas themselves cannot be compared between edges: to add a number to
    all of an edge's changes nothing of the network.)

    Args:
      space: edges and candidates.
      epochs: E_f; the last epoch reaches the final sparsity.
      steps_per_epoch: omega steps in an epoch.
      power: p, 1 (a constant rate) or 3 (most is cut early).
      start: t0 as a share of the epochs; the paper's 20 of 50.
      start_epoch: t0 itself, in place of `start`. The paper's is 20 for every E_f from 50 to 70.
      sparsity: s_f; by default 1 - 1 / N, one candidate an edge.
    """
    kept = _schedule(space, epochs, steps_per_epoch, power, start, sparsity, start_epoch)

    def prune(arch, gradients, step):
        weights = {cell: mix.weights for cell, mix in softmax_mixture(arch).items()}
        return arch._replace(masks=_cut(arch.masks, weights, kept(step), pruning.keep_best))

    return _pruned_darts(space, prune, partial(normal_alphas, space))


def accum_grad(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    power: float = 1.0,
    start: float = 0.4,
    start_epoch: int | None = None,
    sparsity: float | None = None,
) -> Strategy:
    """As `magnitude`, but ranks by the sum of |dL/dalpha| over all alpha steps so far.

    The arguments are those of `magnitude`.
    """
    kept = _schedule(space, epochs, steps_per_epoch, power, start, sparsity, start_epoch)

    def init(key):
        arch = normal_alphas(space, key)
        return arch._replace(extra=jax.tree.map(jnp.zeros_like, arch.alphas))

    def prune(arch, gradients, step):
        sums = jax.tree.map(lambda s, g: s + jnp.abs(g), arch.extra, gradients)
        masks = _cut(arch.masks, sums, kept(step), pruning.keep_best)
        return arch._replace(masks=masks, extra=sums)

    return _pruned_darts(space, prune, init)


def nap(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    relaxation: str = "identity",
    power: float = 3.0,
    start: float = 0.1,
    sparsity: float | None = None,
) -> Strategy:
    """NAP: Neural architecture search with pruning (Neurocomputing 477, 2022), by its abstract.

    Each candidate has a strength of its own, not normalised over the edge; the weakest are cut by
    one criterion for the whole cell. Edges may lose all their candidates and keep several, so the
    nodes of the result differ in the number of their inputs.

    What is not public, and what is done here: the schedule is eq. 13 of the ASAP paper; strengths
    start at 1 / N (identity) or 0 (sigmoid: 1/2).

    Args:
      relaxation: how an alpha becomes a strength: "identity" or "sigmoid".
      space, epochs, steps_per_epoch, power, start: see `magnitude`.
      sparsity: s_f; by default as many candidates are kept as the cell has edges.
    """
    if relaxation not in ("identity", "sigmoid"):
        raise ValueError(f"relaxation has to be identity or sigmoid, got {relaxation!r}")
    kept = _schedule(space, epochs, steps_per_epoch, power, start, sparsity)
    first = 1 / len(space.candidates) if relaxation == "identity" else 0.0
    strength = jax.nn.sigmoid if relaxation == "sigmoid" else lambda alphas: alphas

    def init(key):
        masks = full_masks(space)
        return Architecture({c: first + jnp.zeros(m.shape) for c, m in masks.items()}, masks)

    def mixture(arch, step, key):
        return {
            cell: Mixture(jnp.where(arch.masks[cell], strength(alphas), 0), arch.masks[cell])
            for cell, alphas in arch.alphas.items()
        }

    def prune(arch, gradients, step):
        scores = jax.tree.map(strength, arch.alphas)
        masks = _cut(arch.masks, scores, kept(step), pruning.keep_best_of_cell)
        return arch._replace(masks=masks)

    return Strategy(
        init=init,
        mixture=mixture,
        derive=lambda arch, inputs, key, evaluate: derive.all_living(arch.masks, space),
        prune=prune,
        distribution=None,  # strengths are not normalised
        edges_may_empty=True,
    )


def _schedule(space, epochs, steps_per_epoch, power, start, sparsity, start_epoch=None):
    """step -> how many candidates a cell type keeps."""
    if power not in (1, 3):
        raise ValueError(f"power has to be 1 or 3, got {power}")
    if not 0 <= start < 1:
        raise ValueError(f"start has to lie in [0, 1), as a share of the epochs; got {start}")
    if start_epoch is not None and not 0 <= start_epoch < epochs:
        raise ValueError(
            f"start_epoch is {start_epoch}, but has to be 0 or more and lie before the last of the "
            f"{epochs} epochs: lower it, or leave it unset (None) for the share `start`"
        )
    first = min(round(start * epochs), epochs - 1) if start_epoch is None else start_epoch
    candidates = len(space.candidates)
    final = 1 - 1 / candidates if sparsity is None else sparsity
    if not 0 < final < 1:
        raise ValueError(f"sparsity has to lie between 0 and 1, got {final}")
    total = len(space.edges) * candidates
    pruned = schedules.gradual_sparsity(final, first, epochs, power, steps_per_epoch)
    return lambda step: jnp.round(total * (1 - pruned(step))).astype(jnp.int32)


def _cut(masks, scores, count, rule):
    return {cell: rule(mask, scores[cell], count) for cell, mask in masks.items()}


def _pruned_darts(space, prune, init) -> Strategy:
    return Strategy(
        init=init,
        mixture=lambda arch, step, key: softmax_mixture(arch),
        derive=derive_strongest(space),
        prune=prune,
        finished=lambda arch: pruning.decided(arch.masks),
        updates=bilevel.alpha_then_omega(bilevel.first_order),
    )
