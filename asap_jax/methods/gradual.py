"""Pruning during training by eq. 13 of the ASAP paper: its two baselines (section 4.4), and NAP.

All three prune once per epoch, to the count given by the sparsity schedule; they differ in the
ranking. The count applies to each cell type separately, so normal and reduction cells end with the
same number of candidates. (The paper does not say whether its count covers both together.)
"""

from functools import partial

import jax
import jax.numpy as jnp

from asap_jax.methods import bilevel, derive, pruning, schedules
from asap_jax.methods.base import (
    PAPER_EPOCHS,
    Architecture,
    Method,
    Strategy,
    derive_strongest,
    full_masks,
    normal_alphas,
    softmax_mixture,
)
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SearchSpace


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
    """DARTS with masks: prunes the candidates of smallest weight by the schedule of eq. 13.

    A candidate's weight is the factor of its output, its share of the softmax over the unpruned
    candidates of its edge. (Alphas are not comparable between edges: adding a constant to all
    alphas of an edge does not change the network.)

    Args:
      space: edges and candidates.
      epochs: E_f; the last epoch reaches the final sparsity.
      steps_per_epoch: omega steps per epoch.
      power: p, 1 (a constant rate) or 3 (prunes most early).
      start: t0 as a share of the epochs; the paper uses 20 of 50.
      start_epoch: t0 itself, overrides `start`. The paper uses 20 for every E_f from 50 to 70.
      sparsity: s_f; defaults to 1 - 1 / N, one candidate per edge.
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
    """Like `magnitude`, but ranks by the sum of |dL/dalpha| over all alpha steps so far.

    For the arguments see `magnitude`.
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
    """NAP: Neural architecture search with pruning (Neurocomputing 477, 2022), from its abstract.

    Each candidate has its own strength, not normalized over the edge; the weakest are pruned by one
    criterion for the whole cell. An edge may lose all its candidates or keep several, so the
    derived nodes differ in their number of inputs.

    Choices for what is not public: the schedule is eq. 13 of the ASAP paper; strengths start at
    1 / N (identity) or 0 (sigmoid: 1/2).

    Args:
      relaxation: how an alpha becomes a strength: "identity" or "sigmoid".
      space, epochs, steps_per_epoch, power, start: see `magnitude`.
      sparsity: s_f; by default the cell keeps as many candidates as it has edges.
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
        distribution=None,  # strengths are not normalized
        edges_may_empty=True,
    )


def _schedule(space, epochs, steps_per_epoch, power, start, sparsity, start_epoch=None):
    """step -> number of candidates that a cell type keeps."""
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


def _adapt(search) -> None:
    """The paper's t0 in epochs at the paper's length; other lengths use the share."""
    if search.epochs == PAPER_EPOCHS:
        search.strategy.start_epoch = 20


MAGNITUDE = Method(magnitude, _adapt)
ACCUM_GRAD = Method(accum_grad, _adapt)
NAP = Method(nap)
