"""What a search is made of, built and checked from config and data: its stages, before they run.

A method has one stage, P-DARTS three: each has its own supernet, optimizers and epochs.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import data, methods
from asap_jax.data.augment import Augmentation
from asap_jax.host import errors, memory, precisions
from asap_jax.host.devices import Devices
from asap_jax.host.errors import UserError
from asap_jax.methods import Strategy, schedules
from asap_jax.methods.derive import EDGES
from asap_jax.networks import plans
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.models import STAGES, EvalNetwork, Supernet
from asap_jax.networks.nasbench201 import NASBench201
from asap_jax.networks.spaces import SPACES, SearchSpace
from asap_jax.searching import costs, pace
from asap_jax.searching.pace import Pace
from asap_jax.searching.search_step import Optimizers, SearchStep, init_state
from asap_jax.searching.targets import Target, make_target
from asap_jax.training import optim
from asap_jax.training.feed import Batch


def make_space(config) -> SearchSpace:
    """The named space, with the config's own list of candidates if there is one."""
    space = SPACES[config.space]
    if config.candidates:
        with errors.of("config.search.candidates"):
            space = dataclasses.replace(space, candidates=tuple(config.candidates))
    return space


def make_strategy(config, space: SearchSpace, steps_per_epoch: int) -> Strategy:
    """The configured strategy; raises UserError for options it cannot use."""
    options = config.strategy.to_dict()
    name = options.pop("name")
    method = methods.named(name)
    if unknown := sorted(options.keys() - method.options().keys()):
        raise UserError(
            f"config.search.strategy: {name} has no option {', '.join(unknown)}; to change the "
            f"strategy name it in the preset, as in --config=search:digits,{name}"
        )
    for key, value in options.items():
        _check_option(method, key, value)
    with errors.of("config.search.strategy"):
        return method.strategy(space, config.epochs, steps_per_epoch, **options)


def _check_option(method: methods.Method, key: str, value) -> None:
    """Raises UserError for an option's value of another type than the default's."""
    usual, typed = method.options()[key], method.types().get(key)
    kind = typed or type(usual)
    if value is None and typed:
        return
    if isinstance(value, (int, float) if kind is float else kind):
        if kind is bool or not isinstance(value, bool):
            return
    such = f"a {kind.__name__}, or unset" if typed else f"a value such as {usual!r}"
    raise UserError(f"config.search.strategy.{key} is {value!r}, but has to be {such}")


def _constraint(config, network: Supernet, image_shape) -> costs.Constraint | None:
    """The configured constraint on the expected cost, or None if its weight is 0."""
    if not config.cost_weight:
        return None
    return costs.Constraint(config.cost_weight, costs.expected_log_cost(network, image_shape))


def size_target(
    config, dataset: data.Dataset, build: Callable[[Genotype], EvalNetwork]
) -> Target | None:
    """The configured target for the derived network's size, or None.

    Args:
      config: the `search` part of a config.
      build: genotype -> the network that is trained.

    Raises:
      UserError: no network of the space comes near it.
    """
    for key, kind in (("target_params", "parameters"), ("target_macs", "multiply-adds")):
        if config[key]:
            with errors.of(f"config.search.{key}"):
                return make_target(
                    kind,
                    config[key],
                    config.target_weight,
                    EDGES[config.edges],
                    make_space(config),
                    build,
                    dataset.preparation.shape,
                )
    return None


def check(config, dataset: data.Dataset) -> None:
    """Raises UserError if data, space and strategy do not fit together."""
    half = len(dataset.train_labels) // 2
    if config.batch_size > half:
        raise UserError(
            f"config.search.batch_size is {config.batch_size}, but each half of the "
            f"{len(dataset.train_labels)} training images holds only {half}: choose a batch size "
            f"of at most {half}"
        )
    for stage in build_all(config, dataset):
        network = stage.network
        if config.drop_path and _drops_skips(stage.strategy):
            raise UserError(
                f"config.search.drop_path is {config.drop_path}, but the strategy "
                f"{config.strategy.name} has dropout of its own "
                "(config.search.strategy.skip_dropout): set drop_path to 0"
            )
        if config.early_stop and stage.strategy.distribution is None:
            raise UserError(
                f"config.search.early_stop is True, but the strategy {config.strategy.name} has no "
                "distribution whose eigenvalue could tell when to stop: set it to False"
            )
        if config.budget_minutes and not stage.strategy.scheduled_by_epoch:
            raise UserError(
                f"config.search.budget_minutes is {config.budget_minutes}, but the strategy "
                f"{config.strategy.name} counts the steps of an epoch, whose number a budget "
                "changes: set it to 0"
            )
        for key in ("cost_weight", "target_params", "target_macs"):
            if config[key] and not stage.strategy.updates.has_alphas:
                raise UserError(
                    f"config.search.{key} is {config[key]}, but the strategy "
                    f"{config.strategy.name} has no alphas that could learn from a cost: set it "
                    "to 0"
                )
        if config.max_skips >= 0 and not stage.strategy.updates.has_alphas:
            raise UserError(
                f"config.search.max_skips is {config.max_skips}, but the strategy "
                f"{config.strategy.name} derives its cells once, at the end: set it to -1"
            )
        if network.channels % network.partial_channels:
            raise UserError(
                f"config.search.channels is {network.channels}, which config.search.strategy."
                f"partial_channels={network.partial_channels} does not divide: choose a multiple"
            )
        if stage.space.skeleton == "nasbench201" and network.cells % STAGES:
            raise UserError(
                f"the supernet has {network.cells} cells (config.search.cells={config.cells}"
                f"{', and of the strategy extra_cells' * (network.cells > config.cells)}), but the "
                f"space {config.space!r} stacks them in {STAGES} stages: choose a multiple of that"
            )
    if config.benchmark:
        benchmark_table(config)


def _drops_skips(strategy: Strategy) -> bool:
    """Whether the strategy's mixtures drop the values of identities, as P-DARTS' do."""
    key = jax.random.key(0)
    mixtures = jax.eval_shape(lambda: strategy.mixture(strategy.init(key), jnp.int32(0), key))
    return any(mixture.skip_dropout is not None for mixture in mixtures.values())


def benchmark_table(config) -> NASBench201 | None:
    """The table that `config.benchmark` names, or None."""
    if not config.benchmark:
        return None
    if make_space(config).skeleton != "nasbench201":
        raise UserError(
            f"config.search.benchmark={config.benchmark} knows the cells of the space nasbench201, "
            f"and the search goes through {config.space!r}: leave one of them out"
        )
    with errors.of("config.search.benchmark"):
        return NASBench201(config.benchmark)


class Stage(NamedTuple):
    """The components of a search, or of one of its stages, before it has a state.

    epochs, steps: number of epochs, and of steps per epoch; with a budget of time, of step numbers.
    pace: for a search with a budget of time, else None.
    rate: step -> learning rate of omega.
    constraint: on the cells' expected cost, or None.
    """

    space: SearchSpace
    strategy: Strategy
    network: Supernet
    optimizers: Optimizers
    epochs: int
    steps: int
    pace: Pace | None
    rate: Callable
    constraint: costs.Constraint | None

    def step(self, config, class_weights=None, target: Target | None = None) -> SearchStep:
        """Builds the search step from `config` (the `search` part)."""
        return SearchStep(
            self.network,
            self.strategy,
            self.optimizers,
            class_weights=class_weights,
            dtype=precisions.map_dtype(config.precision),
            constraint=self.constraint,
            target=target,
            drop_path=config.drop_path,
        )


def build(config, dataset: data.Dataset, strategy: Strategy | None = None) -> Stage:
    """Builds the first stage of a search, or the one that `strategy` belongs to."""
    images, space = len(dataset.train_labels), make_space(config)
    later, seconds = strategy, 60 * config.budget_minutes
    whole = (images - images // 2) // config.batch_size
    steps = pace.step_numbers(config.epochs) if seconds else whole
    strategy = later or make_strategy(config, space, steps)
    if strategy.updates.joint:  # one loss trains everything, so no half is held back
        whole = images // config.batch_size
    if strategy.updates.joint and not seconds:
        steps = whole
        strategy = later or make_strategy(config, space, steps)
    epochs, omega = strategy.epochs or config.epochs, config.omega
    rate = schedules.cosine_by_epoch(omega.learning_rate, omega.final_learning_rate, epochs, steps)
    network = Supernet(
        space,
        len(dataset.class_names),
        config.channels,
        config.cells + strategy.extra_cells,
        strategy.partial_channels,
        plans.Plan(plans.choose(config.plan)),
    )
    alpha = strategy.alpha_optimizer or optim.adam(**config.alpha)
    optimizers = Optimizers(
        optim.sgd(rate, omega.momentum, omega.weight_decay, omega.clip, omega.nesterov),
        pace.paced(alpha) if seconds else alpha,
        optim.virtual_sgd(rate, omega.momentum, omega.weight_decay),
    )
    return Stage(
        space=space,
        strategy=strategy,
        network=network,
        optimizers=optimizers,
        epochs=epochs,
        steps=steps,
        pace=Pace(seconds * epochs / config.epochs, strategy, epochs, steps, whole)
        if seconds
        else None,
        rate=rate,
        constraint=_constraint(config, network, dataset.preparation.shape),
    )


def make_augmentation(config, dataset: data.Dataset) -> Augmentation:
    """The augmentation of a search's training images."""
    options = config.augmentation
    return Augmentation(dataset.mean, dataset.std, options.pad, options.flip)


def build_all(config, dataset: data.Dataset) -> list[Stage]:
    """All stages, each built as if the previous one had learned nothing."""
    found = [build(config, dataset)]
    while (strategy := found[-1].strategy).next_stage is not None:
        arch = strategy.init(jax.random.key(0))
        found.append(build(config, dataset, strategy.next_stage(arch)))
    return found


def estimate(config, dataset: data.Dataset, devices: Devices = Devices()) -> memory.Estimate:
    """Estimates the memory of a search step on each device, the largest over all stages."""
    share = config.batch_size // devices.among(config.batch_size).count
    estimates = [
        _stage_estimate(config, dataset, stage, share) for stage in build_all(config, dataset)
    ]
    return max(estimates, key=lambda estimate: estimate.total)


def _stage_estimate(config, dataset, stage, share: int) -> memory.Estimate:
    shape, key, step = dataset.preparation.shape, jax.random.key(0), stage.step(config)
    state = jax.eval_shape(
        lambda: init_state(stage.network, stage.strategy, stage.optimizers, key, shape)
    )
    initial = state.replace(step=jnp.int32(0), arch=stage.strategy.init(key))

    def loss(params):
        images = jnp.zeros((share, *shape))
        batch = Batch(images, jnp.zeros(len(images), jnp.int32))
        stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.batch_stats)
        return step.loss(initial)(params, initial.arch.alphas, stats, batch, key)[0]

    return memory.estimate(loss, state.params, state, dataset.train_images.nbytes)


def split(config, dataset: data.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the omega half and of the alpha half of the training images.

    Raises:
      UserError: a half is smaller than a batch.
    """
    omega_half, alpha_half = data.halves(dataset.train_labels, seed, dataset.train_groups)
    if config.batch_size > min(len(omega_half), len(alpha_half)):
        raise UserError(
            f"config.search.batch_size is {config.batch_size}, but the groups of config.data.group "
            f"split the training images into {len(omega_half)} and {len(alpha_half)}: choose a "
            "batch size of at most the smaller, or smaller groups"
        )
    return omega_half, alpha_half
