"""DrNAS: Dirichlet Neural Architecture Search (Chen et al., 2021, arXiv:2006.10355)."""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from asap_jax.methods import bilevel, derive, pruning
from asap_jax.methods.base import PAPER_CELLS, Method, Strategy, check_stages, normal_alphas
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SearchSpace


def drnas(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    kl: float = 0.0,
    partial_channels: tuple[int, ...] = (1,),
    keep: tuple[int, ...] = (),
    grace: float = 0.0,
) -> Strategy:
    """Samples each edge's weights from a Dirichlet distribution, whose concentrations learn.

    The concentrations are elu(alpha) + 1, with alphas that start at 1e-3 times a normal draw; a
    sample is gamma variates over their sum, and its gradient is pathwise (implicit
    reparameterization, by `jax.random.loggamma`). The alpha step comes first, as in DARTS. Edges
    and candidates are ranked by the softmax of the live alphas, as in the authors' code; within an
    edge this is the order of the Dirichlet's means.

    Of several stages, each ends by keeping the `keep` strongest candidates of each edge; the next
    one continues with their alphas and mixes more channels (`partial_channels`, see PC-DARTS). The
    authors' code also carries the weights over, with copied channels, and one cosine learning rate
    runs through all stages; here each stage has new weights and its own cosine.

    The authors' regularizer `l2` is Adam's coupled weight decay of the alphas, 1e-3: it is
    `config.search.alpha.weight_decay`. Their other one, `kl`, goes without that decay, which has to
    be set to 0; here it counts the live candidates only.

    Args:
      space: edges and candidates.
      epochs: of all stages together, split evenly.
      steps_per_epoch: omega steps per epoch.
      kl: weight of the sum over all edges of KL(Dirichlet || Dirichlet(1, ..., 1)) in the alphas'
        loss; the authors' code uses 1e-3 where it does not use `l2`.
      partial_channels: K of each stage. On CIFAR-10 the authors use (6, 4) with 36 channels; on
        NAS-Bench-201 (1,), or (4, 2).
      keep: candidates that each edge keeps after each stage but the last; the authors use 4 of 7,
        and 3 of NAS-Bench-201's 5.
      grace: share of a stage's epochs in which only omega learns; the authors use 10 of 25 with
        two stages, and none with one.

    Raises:
      ValueError: the lists describe different numbers of stages, or a value is out of range.
    """
    stages = len(partial_channels)
    if len(keep) != stages - 1:
        raise ValueError(
            f"partial_channels and keep describe {stages} and {len(keep) + 1} stages (keep has one "
            "entry less than there are stages)"
        )
    if any(k < 1 for k in partial_channels):
        raise ValueError(f"partial_channels have to be at least 1, got {partial_channels}")
    check_stages(space, epochs, keep, grace)
    if kl < 0:
        raise ValueError(f"kl has to be 0 or more, got {kl}")

    def mixture(arch, step, key):
        # All cell types at once: each drawing of gamma variates takes seconds to compile.
        alphas, masks = (
            jnp.concatenate([tree[cell] for cell in space.cell_types])
            for tree in (arch.alphas, arch.masks)
        )
        drawn = jnp.split(dirichlet(key, concentrations(alphas), masks), len(space.cell_types))
        return {
            cell: Mixture(weights, arch.masks[cell])
            for cell, weights in zip(space.cell_types, drawn, strict=True)
        }

    def means(arch, mixtures):
        del mixtures
        found = {}
        for cell, mask in arch.masks.items():
            live = jnp.where(mask, concentrations(arch.alphas[cell]), 0)
            found[cell] = Mixture(live / live.sum(-1, keepdims=True), mask)
        return found

    def regularizer(arch, step):
        divergences = [
            divergence_from_uniform(concentrations(alphas), arch.masks[cell])
            for cell, alphas in arch.alphas.items()
        ]
        return kl * jnp.sum(jnp.stack(divergences))

    def derive_by_softmax(arch, inputs, key, evaluate):
        weights = {c: masked_softmax(alphas, arch.masks[c]) for c, alphas in arch.alphas.items()}
        return derive.of_weights(jax.device_get(weights), arch.masks, space, inputs)

    def stage(index, before=None):
        length = epochs // stages + (epochs % stages if index == stages - 1 else 0)
        begin = round(grace * length) * steps_per_epoch

        def go_on(arch):
            left = {
                cell: pruning.keep_best_of_edge(mask, arch.alphas[cell], keep[index])
                for cell, mask in arch.masks.items()
            }
            return stage(index + 1, arch._replace(masks=left))

        return Strategy(
            init=lambda key: normal_alphas(space, key) if before is None else before,
            mixture=mixture,
            derive=derive_by_softmax,
            learns=lambda step: step >= begin,
            updates=bilevel.alpha_then_omega(bilevel.first_order),
            regularizer=regularizer if kl else None,
            distribution=means,
            partial_channels=partial_channels[index],
            epochs=length,
            next_stage=go_on if index < stages - 1 else None,
        )

    return stage(0)


def concentrations(alphas):
    """elu(alpha) + 1, above 0."""
    return jax.nn.elu(alphas) + 1


def dirichlet(key, concentration, mask):
    """Samples the Dirichlet distribution of each edge's live candidates.

    Gradients by the concentrations are pathwise. A part of a sample, divided by its sum, follows
    the Dirichlet distribution of its own concentrations, so pruning does not change the law of what
    is left.

    Args:
      key: PRNG key.
      concentration: [E, O], above 0.
      mask: [E, O] bool; pruned candidates get exactly 0.
    """
    variates = jax.random.loggamma(key, concentration, dtype=concentration.dtype)
    return masked_softmax(variates, mask)


def divergence_from_uniform(concentration, mask):
    """[E], KL(Dirichlet(concentration) || Dirichlet(1, ..., 1)) over the live candidates."""
    a = jnp.where(mask, concentration, 1)  # a term of 0
    total = jnp.where(mask, concentration, 0).sum(-1)
    terms = (a - 1) * (digamma(a) - digamma(total)[:, None]) - gammaln(a)
    return gammaln(total) - gammaln(mask.sum(-1).astype(total.dtype)) + terms.sum(-1)


def _adapt(search) -> None:
    """Two stages at the paper's size, with a K that divides any preset's channels."""
    benchmark = search.space == "nasbench201"
    search.alpha.learning_rate *= 0.3 if benchmark else 0.6
    if search.cells == PAPER_CELLS:
        options = search.strategy
        options.partial_channels, options.keep, options.grace = (4, 2), (4,), 0.4


METHOD = Method(
    drnas,
    _adapt,
    {
        "batch_size": 64,
        "channels": 36,
        "cells": 20,
        "omega": {"learning_rate": 0.1, "final_learning_rate": 0.0},
        "strategy": {"partial_channels": (6, 4)},
    },
)
