"""The interface of a search method: a NamedTuple of pure functions, as in optax.

A method is a file with a function that builds a `Strategy`, and a `Method` that says what a config
needs to know of it.

The supernet and the search step know no method by name. A method defines:

- its architecture parameters, any tree (`init`): alphas, edge betas, strengths, a controller;
- how they become mixture weights (`mixture`), given the step for annealing and a key for sampling;
  `active` selects what is computed at all, `edge_weights` scales whole edges;
- what learns in a step, in which order and by which gradient (`updates`, see `bilevel`), when
  (`learns`), and with which optimizer (`alpha_optimizer`);
- which candidates are pruned (`prune`): it sees the gradients and keeps its own `extra` state,
  including momenta and counters;
- when to stop (`finished`) and what to derive (`derive`), given the accuracy of shared weights.

A method in stages (different depth, different candidates) has one Strategy, Supernet and
SearchState per stage; each Strategy names the next one (`next_stage`). What a method needs from the
network itself is in the Mixture (dropout on skips) or, if it changes shapes, here
(`partial_channels`).
"""

import inspect
import itertools
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
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

PAPER_CELLS, PAPER_EPOCHS = 8, 50  # of a search on CIFAR-10, ASAP's and DARTS'


class Architecture(NamedTuple):
    """What a search learns besides the network's weights.

    alphas: {cell type: [E, O]}, or any tree of differentiable arrays.
    masks: {cell type: [E, O] bool}, True for live candidates.
    extra: the method's own state, any tree of arrays.
    """

    alphas: Any
    masks: dict[str, jax.Array]
    extra: Any = ()


class Strategy(NamedTuple):
    """A search method.

    init: key -> Architecture.
    mixture: (Architecture, step, key) -> {cell type: Mixture}. Differentiable in the alphas.
    prune: (Architecture, gradients of the alphas, step) -> Architecture. Called after every alpha
      step.
    finished: Architecture -> scalar bool: whether to stop before the last epoch.
    derive: (Architecture, inputs per node or None for all, key, evaluate) -> Genotype. Runs on the
      host; evaluate(mixtures) is the supernet's accuracy on the alpha half, evaluate(mixtures, n)
      on n of its images, the same at each call (all if it has fewer).
    readings: step -> {name: scalar}, logged with each epoch.
    measured: Architecture -> {name: scalar}, counters of the method; logged as well.
    updates: what learns in a step, in which order and by which gradient.
    learns: step -> scalar bool: whether the alphas learn in this step.
    alpha_optimizer: the method's own optimizer, or None for the config's Adam.
    live: (Architecture, step, key of the alpha step) -> tree like the alphas, of bools that
      broadcast against them: the entries that an alpha step may change. By default the masks, for
      alphas of one array per cell type.
    regularizer: (Architecture, step) -> scalar, or None: the method's own term in the loss of the
      alphas, added once per step, whatever `updates`' gradient is. It is logged; the reported
      losses exclude it.
    trained: (Architecture, step, key of the omega step) -> {cell type: Mixture}, active where that
      step may change the candidates' weights. By default `mixture`; a gradient of omega that takes
      several samples trains all of theirs.
    distribution: (Architecture, mixtures of a step) -> {cell type: Mixture} whose weights are the
      method's own distribution over the candidates of an edge, used for the entropy and the
      eigenvalue. By default the mixtures of the step; `distribution_of_alphas` for a method that
      samples them; None for a method without such a distribution.
    partial_channels: K: candidates see 1 / K of the channels, see `models.Supernet`.
    epochs: epochs of this stage; None for those of the config.
    extra_cells: cells of this stage's supernet in addition to the config's.
    next_stage: Architecture at the end of this stage -> the Strategy of the next one, which has its
      own supernet, weights and optimizers; its `init` starts from what was found. None for the last
      stage.
    inherit: (supernet, params, batch_stats) of the stage before -> (params, batch_stats) that this
      one starts with. None for new ones.
    edges_may_empty: whether an edge may lose its last candidate. Within a stage, the masks of every
      method only ever shrink, so dead candidates may be left out of a compilation.
    scheduled_by_epoch: whether whatever changes with the step depends on its epoch alone, so that
      an epoch may have any number of steps (`searching.pace`).
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
    regularizer: Callable[[Architecture, jax.Array], jax.Array] | None = None
    trained: Callable[[Architecture, jax.Array, jax.Array], dict[str, Mixture]] | None = None
    distribution: Callable | None = lambda arch, mixtures: mixtures
    partial_channels: int = 1
    epochs: int | None = None
    extra_cells: int = 0
    next_stage: Callable[[Architecture], "Strategy"] | None = None
    inherit: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    edges_may_empty: bool = False
    scheduled_by_epoch: bool = True


class Method(NamedTuple):
    """How a config chooses a strategy.

    strategy: (space, epochs, steps per epoch, *, options) -> Strategy. The options are scalars or
      tuples of them, with defaults: these are the keys and values of `config.search.strategy`. One
      that may be None has an annotation, such as `float | None`.
    adapt: changes `config.search` (attributes, in place) where the method needs other values than
      ASAP's or its options depend on the size of the search.
    authors: values of `config.search`, groups as dicts: the authors' settings on CIFAR-10 where
      they differ from ASAP's. They apply at the paper's size.
    has_alphas: whether anything but the network's weights learns.
    """

    strategy: Callable[..., Strategy]
    adapt: Callable[[Any], None] = lambda search: None
    authors: Mapping[str, Any] = MappingProxyType({})
    has_alphas: bool = True

    def options(self) -> dict[str, Any]:
        """{name: default} of the strategy's options."""
        parameters = inspect.signature(self.strategy).parameters.values()
        return {each.name: each.default for each in parameters if each.default is not each.empty}

    def types(self) -> dict[str, type]:
        """{name: type} of the options that may be None: `float | None` -> float."""
        parameters = inspect.signature(self.strategy, eval_str=True).parameters.values()
        kinds = {each.name: typing.get_args(each.annotation) for each in parameters}
        return {
            name: next(kind for kind in kinds[name] if kind is not type(None))
            for name in self.options()
            if type(None) in kinds[name]
        }


# Shared by several methods.


def check_stages(space: SearchSpace, epochs: int, keep: tuple[int, ...], grace: float) -> None:
    """Raises ValueError unless a search in stages can keep so many candidates after each of them.

    Args:
      space: edges and candidates.
      epochs: of all stages together.
      keep: candidates that an edge keeps after each stage but the last.
      grace: share of a stage's epochs in which only omega learns.
    """
    counts = len(space.candidates), *keep, 1
    if any(after > before for before, after in itertools.pairwise(counts)):
        raise ValueError(
            f"keep has to fall from at most {counts[0]} candidates to at least 1: got {keep}"
        )
    if epochs <= len(keep):
        raise ValueError(f"{len(keep) + 1} stages need at least as many epochs, got {epochs}")
    if not 0 <= grace < 1:
        raise ValueError(f"grace has to lie in [0, 1), as a share of the epochs; got {grace}")


def in_darts_space(search, alpha_rate: float) -> None:
    """`Method.adapt`: DARTS' candidates, `alpha_rate` times ASAP's learning rate of alpha."""
    if search.space == "asap":
        search.space = "darts"
    search.alpha.learning_rate *= alpha_rate


def full_masks(space: SearchSpace) -> dict[str, jax.Array]:
    """Masks with every candidate live."""
    return {cell: jnp.ones(space.shape, bool) for cell in space.cell_types}


def zero_alphas(space: SearchSpace, key) -> Architecture:
    """ASAP's initialization: all candidates equal, {cell type: [E, O]} of 0."""
    del key
    return Architecture(
        {cell: jnp.zeros(space.shape) for cell in space.cell_types}, full_masks(space)
    )


def normal_alphas(space: SearchSpace, key) -> Architecture:
    """DARTS' initialization: 1e-3 times a normal draw."""
    alphas = {
        cell: 1e-3 * jax.random.normal(k, space.shape) for cell, k in cell_keys(space, key).items()
    }
    return Architecture(alphas, full_masks(space))


def softmax_mixture(arch: Architecture, temperature: float | jax.Array = 1.0) -> dict[str, Mixture]:
    """Softmax over the live candidates (eq. 3)."""
    return {
        cell: Mixture(masked_softmax(alphas, arch.masks[cell], temperature), arch.masks[cell])
        for cell, alphas in arch.alphas.items()
    }


def distribution_of_alphas(arch: Architecture, mixtures) -> dict[str, Mixture]:
    """`Strategy.distribution` for methods that sample: the softmax of the alphas."""
    del mixtures
    return softmax_mixture(arch)


def derive_strongest(space: SearchSpace) -> Callable:
    """`Strategy.derive` by `derive.strongest`: the rule of DARTS and ASAP."""
    return lambda arch, inputs, key, evaluate: derive.strongest(
        arch.alphas, arch.masks, space, inputs
    )


def cell_keys(space: SearchSpace, key) -> dict[str, jax.Array]:
    """One random key per cell type."""
    return dict(zip(space.cell_types, jax.random.split(key, len(space.cell_types)), strict=True))
