"""The interface of a search method: a few pure functions in a NamedTuple, as optax does it.

The supernet and the search step know no method by name. What a method may decide, and where:

- its architecture parameters, any tree (`init`): alphas, an edge's betas, strengths, a controller;
- how they become mixture weights (`mixture`), with the step for annealing and a key for sampling;
  `active` says what is computed at all, `edge_weights` scales whole edges;
- what learns in a step, in which order and by which gradient (`updates`, see `bilevel`), when
  (`learns`), and by which optimizer (`alpha_optimizer`);
- which candidates leave, or come back (`prune`): it sees the gradients and keeps its own `extra`
  state, momenta and counters included;
- when to stop (`finished`) and what was found (`derive`), the shared weights' accuracy at hand.

A method in stages (other depth, other candidates) is one Strategy, Supernet and SearchState a
stage; each names the Strategy that follows (`next_stage`). What a method asks of the network itself
stands in the Mixture (dropout on skips) or, where it changes shapes, here (`partial_channels`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asap_jax.methods import bilevel, derive
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SearchSpace

Evaluate = Callable[..., float]  # (mixtures, images=None), see `Strategy.derive`


class Architecture(NamedTuple):
    """What a search learns beside the network's weights.

    alphas: {cell type: [E, O]}, or any tree of arrays that a gradient can be taken to.
    masks: {cell type: [E, O] bool}, True where a candidate lives.
    extra: a method's own state, any tree of arrays.
    """

    alphas: Any
    masks: dict[str, jax.Array]
    extra: Any = ()


class Strategy(NamedTuple):
    """A search method.

    init: key -> Architecture.
    mixture: (Architecture, step, key) -> {cell type: Mixture}. Differentiable in the alphas.
    prune: (Architecture, gradients of the alphas, step) -> Architecture. After every alpha step.
    finished: Architecture -> scalar bool: stop before the epochs are over.
    derive: (Architecture, inputs per node or None for all, key, evaluate) -> Genotype. Runs on the
      host; evaluate(mixtures) is the supernet's accuracy on the alpha half, evaluate(mixtures, n)
      on n images of it, the same at each call (all if it has fewer).
    readings: step -> {name: scalar}, logged with each epoch.
    measured: Architecture -> {name: scalar}, what the method has counted; logged as well.
    updates: what learns in a step, in which order and by which gradient.
    learns: step -> scalar bool: whether the alphas learn in this step.
    alpha_optimizer: an optimizer of the method's own, or None for the config's Adam.
    live: (Architecture, step, key of the alpha step) -> tree like its alphas of bools that
      broadcast against them: what an alpha step may change. The masks, if the alphas are one array
      a cell type.
    distribution: (Architecture, the mixtures of a step) -> {cell type: Mixture} whose weights are
      the method's own distribution over the candidates of an edge: what the entropy is that of, and
      where the eigenvalue is taken. The step's mixtures themselves, but for a method that samples
      them (`distribution_of_alphas`); None for a method that has no such distribution.
    partial_channels: K: candidates see 1 / K of the channels, see `networks.Supernet`.
    epochs: length of a stage; None for the whole search.
    extra_cells: cells of a stage's supernet beyond those of the config.
    next_stage: Architecture at this stage's end -> the Strategy that goes on, with a supernet,
      weights and optimizers of its own; its `init` begins with what was found. None at the end.
    edges_may_empty: whether an edge may lose its last candidate. That masks only ever shrink holds
      for every method: what is dead may be left out of a compilation.
    """

    init: Callable[[jax.Array], Architecture]
    mixture: Callable[[Architecture, jax.Array, jax.Array], dict[str, Mixture]]
    derive: Callable[[Architecture, int | None, jax.Array, Evaluate], Genotype]
    prune: Callable[[Architecture, Any, jax.Array], Architecture] = lambda arch, g, step: arch
    finished: Callable[[Architecture], jax.Array] = lambda arch: jnp.bool_(False)
    readings: Callable[[jax.Array], dict[str, jax.Array]] = lambda step: {}
    measured: Callable[[Architecture], dict[str, jax.Array]] = lambda arch: {}
    updates: bilevel.Updates = bilevel.omega_then_alpha(bilevel.first_order)
    learns: Callable[[jax.Array], jax.Array] = lambda step: jnp.bool_(True)
    alpha_optimizer: optax.GradientTransformation | None = None
    live: Callable[[Architecture, jax.Array, jax.Array], Any] = lambda arch, step, key: arch.masks
    distribution: Callable | None = lambda arch, mixtures: mixtures
    partial_channels: int = 1
    epochs: int | None = None
    extra_cells: int = 0
    next_stage: Callable[[Architecture], "Strategy"] | None = None
    edges_may_empty: bool = False


# What many methods share.


def full_masks(space: SearchSpace) -> dict[str, jax.Array]:
    """Every candidate lives."""
    return {cell: jnp.ones(space.shape, bool) for cell in space.cell_types}


def zero_alphas(space: SearchSpace, key) -> Architecture:
    """ASAP's start: all candidates equal, {cell type: [E, O]} of 0."""
    del key
    return Architecture(
        {cell: jnp.zeros(space.shape) for cell in space.cell_types}, full_masks(space)
    )


def normal_alphas(space: SearchSpace, key) -> Architecture:
    """DARTS' start: 1e-3 times a normal draw."""
    alphas = {
        cell: 1e-3 * jax.random.normal(k, space.shape) for cell, k in cell_keys(space, key).items()
    }
    return Architecture(alphas, full_masks(space))


def softmax_mixture(arch: Architecture, temperature=1.0) -> dict[str, Mixture]:
    """A softmax over the candidates that live (eq. 3)."""
    return {
        cell: Mixture(masked_softmax(alphas, arch.masks[cell], temperature), arch.masks[cell])
        for cell, alphas in arch.alphas.items()
    }


def distribution_of_alphas(arch: Architecture, mixtures) -> dict[str, Mixture]:
    """`Strategy.distribution` of a method that samples: the softmax of its alphas."""
    del mixtures
    return softmax_mixture(arch)


def derive_strongest(space: SearchSpace) -> Callable:
    """`Strategy.derive` by `derive.strongest`: DARTS' and ASAP's rule."""
    return lambda arch, inputs, key, evaluate: derive.strongest(
        arch.alphas, arch.masks, space, inputs
    )


def cell_keys(space: SearchSpace, key) -> dict[str, jax.Array]:
    """A random key for each cell type."""
    return dict(zip(space.cell_types, jax.random.split(key, len(space.cell_types)), strict=True))
