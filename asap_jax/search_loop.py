"""The host's side of a search: data, accuracy, derivation; the mathematics is in `search_step`."""

import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import data, loop, memory, optim, schedules
from asap_jax.data.augment import Augmentation, augment
from asap_jax.derive import EDGES
from asap_jax.errors import UserError
from asap_jax.evaluation import make_accuracy
from asap_jax.genotypes import Genotype
from asap_jax.networks import Supernet
from asap_jax.ops import Context
from asap_jax.relaxation import one_hot_mixture
from asap_jax.search_step import (
    Batch,
    Optimizers,
    init_state,
    make_search_step,
    step_keys,
)
from asap_jax.spaces import SPACES, SearchSpace
from asap_jax.strategies import STRATEGIES, Strategy


class SearchOutcome(NamedTuple):
    """What a search ends with.

    genotype: the found cells, by the configured rule of edges.
    gap: {rule: {"supernet", "derived", "gap"}}: accuracy on the alpha half of the supernet as it
      ended, and with the rule's genotype alone, the weights shared; their difference. Both
      normalise by each batch's own statistics, since the running ones belong to the supernet's
      mixture. The alpha half has steered the search, so both flatter. Empty for a method without
      alphas.
    epochs, seconds: how long it ran, over all starts.
    candidates_left: over both cell types; 2 * edges when every edge is decided.
    ended: "finished" if every edge was decided, "stopped" if a callback ended it, else "".
    """

    genotype: Genotype
    gap: dict[str, dict[str, float]]
    epochs: int
    seconds: float
    candidates_left: int
    ended: str


def make_space(config) -> SearchSpace:
    """The named space, its candidates replaced by the config's own list if there is one."""
    space = SPACES[config.space]
    if config.candidates:
        try:
            space = SearchSpace(tuple(config.candidates), space.nodes, space.edges)
        except ValueError as error:
            raise UserError(f"config.search.candidates: {error}") from error
    return space


def make_strategy(config, space: SearchSpace, steps_per_epoch: int) -> Strategy:
    """The configured strategy; what it cannot work with raises UserError."""
    options = config.strategy.to_dict()
    name = options.pop("name")
    try:
        return STRATEGIES[name](space, config.epochs, steps_per_epoch, **options)
    except TypeError as error:  # options of another strategy
        raise UserError(
            f"config.search.strategy: {error}; to change the strategy name it in the preset, as in "
            f"--config=search:digits,{name}"
        ) from error
    except ValueError as error:
        raise UserError(f"config.search.strategy: {error}") from error


def check(config, dataset: data.Dataset) -> None:
    """Raises UserError if the data, space and strategy cannot make a search."""
    half = len(dataset.train_labels) // 2
    if config.batch_size > half:
        raise UserError(
            f"config.search.batch_size is {config.batch_size}, but each half of the "
            f"{len(dataset.train_labels)} training images holds only {half}: choose a batch size "
            f"of at most {half}"
        )
    make_strategy(config, make_space(config), half // config.batch_size)


class Parts(NamedTuple):
    """What a search is made of, before it has a state."""

    space: SearchSpace
    strategy: Strategy
    network: Supernet
    optimizers: Optimizers
    steps: int


def build(config, dataset: data.Dataset) -> Parts:
    half = len(dataset.train_labels) - len(dataset.train_labels) // 2
    steps = half // config.batch_size
    space = make_space(config)
    strategy = make_strategy(config, space, steps)
    omega = config.omega
    rate = schedules.cosine_by_epoch(
        omega.learning_rate, omega.final_learning_rate, config.epochs, steps
    )
    return Parts(
        space,
        strategy,
        Supernet(space, len(dataset.class_names), config.channels, config.cells),
        Optimizers(
            optim.sgd(rate, omega.momentum, omega.weight_decay, omega.clip),
            strategy.alpha_optimizer or optim.adam(**config.alpha),
            optim.virtual_sgd(rate, omega.momentum, omega.weight_decay),
        ),
        steps,
    )


def estimate(config, dataset: data.Dataset) -> memory.Estimate:
    """The memory that a step of the search takes."""
    parts, shape = build(config, dataset), dataset.preparation.shape
    state = jax.eval_shape(
        lambda: init_state(
            parts.network, parts.strategy, parts.optimizers, jax.random.key(0), shape
        )
    )

    def loss(params):
        images = jnp.zeros((config.batch_size, *shape))
        rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (state.batch_stats,))
        arch = parts.strategy.init(jax.random.key(0))
        mixtures = parts.strategy.mixture(arch, jnp.int32(0), jax.random.key(0))
        variables = {"params": params, "batch_stats": rest[0]}
        context = Context(train=True)
        out, _ = parts.network.apply(variables, images, mixtures, context, mutable=["batch_stats"])
        return out.sum()

    # The accuracy is measured on a copy of the alpha half.
    held = dataset.train_images.nbytes + dataset.train_images.nbytes // 2
    return memory.estimate(loss, state.params, state, held)


def search(
    config,
    dataset: data.Dataset,
    seed: int,
    session: loop.Session,
    *,
    index: int = 0,
    identity: dict | None = None,
    class_weights=None,
) -> SearchOutcome:
    """Searches a cell for the data set's training images.

    Args:
      config: the `search` part of a config.
      dataset: images in memory.
      seed: of the split into halves, the weights, the batches and the augmentation.
      session: log, checkpoints, signals, callbacks.
      index: which of several searches this is.
      identity: what its checkpoints have to belong to.
      class_weights: [classes], weights of both losses, or None.
    """
    started = time.monotonic()
    check(config, dataset)
    omega_half, alpha_half = data.halves(dataset.train_labels, seed)
    space, strategy, network, optimizers, steps = build(config, dataset)
    state = init_state(
        network, strategy, optimizers, jax.random.key(seed), dataset.preparation.shape
    )
    augmentation = Augmentation(
        dataset.mean, dataset.std, config.augmentation.pad, config.augmentation.flip
    )
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    jitted = _with_data(
        make_search_step(network, strategy, optimizers, class_weights=class_weights), augmentation
    )
    held = jnp.asarray(dataset.train_images[alpha_half]), dataset.train_labels[alpha_half]
    accuracy, evaluate = (
        make_accuracy(
            _supernet_logits(network, by_batch),
            *held,
            dataset.mean,
            dataset.std,
            config.eval_batch_size,
        )
        for by_batch in (False, True)
    )

    def batches(epoch):
        order = data.epoch_order(omega_half, config.batch_size, (seed, 0), epoch)
        alpha_order = data.epoch_order(alpha_half, config.batch_size, (seed, 1), epoch)
        # The halves differ by one image at most: the shorter one starts over.
        return [(order[i], alpha_order[i % len(alpha_order)]) for i in range(steps)]

    def summary(state, progress, last):
        mixtures = _final_mixtures(strategy, state)
        record = _epoch_record(progress, last, accuracy(state.params, state.batch_stats, mixtures))
        return record, _epoch_line(progress.epoch, record, config.epochs)

    entered = time.monotonic()
    state, progress = loop.run(
        "search",
        state,
        lambda state, *indices: jitted(state, images, labels, *indices),
        batches,
        summary,
        epochs=config.epochs,
        steps=steps,
        session=session,
        identity=identity or {},
        index=index,
        watch=_prune_watch(session.callbacks.on_prune, space),
    )
    left = time.monotonic()

    def shared(mixtures):
        session.interruption.check("search: all steps done, its cells not yet derived")
        return evaluate(state.params, state.batch_stats, mixtures)

    derived, gaps = {}, {}
    supernet_accuracy = shared(_final_mixtures(strategy, state))
    # A method without alphas has no mixture to fall short of: it samples and ranks.
    for rule in EDGES if strategy.alpha_gradient else (config.edges,):
        derived[rule] = strategy.derive(state.arch, EDGES[rule], jax.random.key(seed), shared)
        if strategy.alpha_gradient:
            alone = shared(one_hot_mixture(derived[rule], space))
            gap = supernet_accuracy - alone
            gaps[rule] = {"supernet": supernet_accuracy, "derived": alone, "gap": gap}
    outside = time.monotonic() - left + entered - started
    return SearchOutcome(
        derived[config.edges],
        gaps,
        progress.epoch,
        progress.seconds + outside,
        int(sum(mask.sum() for mask in state.arch.masks.values())),
        progress.ended,
    )


def _prune_watch(on_prune, space):
    """`loop.run`'s watch that calls on_prune after each step that pruned."""
    if on_prune is None:
        return None

    def watch(state):
        seen = jax.device_get(state.arch.masks)

        def look(state, record):
            nonlocal seen
            if record["candidates_left"] == sum(mask.sum() for mask in seen.values()):
                return False
            now = jax.device_get(state.arch.masks)
            pruned = [
                (cell, space.edges[edge], space.candidates[candidate])
                for cell in now
                for edge, candidate in np.argwhere(seen[cell] & ~now[cell])
            ]
            seen = now
            return bool(pruned) and bool(on_prune({**record, "pruned": pruned}))

        return look

    return watch


def _with_data(step, augmentation):
    """The jitted step that takes the batches out of the data on the device and augments them."""

    def run(state, images, labels, omega_indices, alpha_indices):
        keys = step_keys(state.key, state.step)

        def batch(indices, key):
            return Batch(augment(images[indices], augmentation, key), labels[indices])

        train = batch(omega_indices, keys.augment_train)
        return step(state, train, batch(alpha_indices, keys.augment_val))

    return jax.jit(run, donate_argnums=0)


def _supernet_logits(network, by_batch):
    """logits(params, batch_stats, mixtures, images), by the batch's or running statistics."""

    def logits(params, batch_stats, mixtures, images):
        variables = {"params": params, "batch_stats": batch_stats}
        context = Context(train=by_batch)
        return network.apply(variables, images, mixtures, context, mutable=["batch_stats"])[0]

    return logits


def _final_mixtures(strategy, state):
    """The mixtures of the last step that was done."""
    last = state.step - 1
    return strategy.mixture(state.arch, last, step_keys(state.key, last).alpha)


def _epoch_record(progress, last, val_accuracy):
    return {
        "temperature": float(last.get("temperature", math.nan)),
        "threshold": float(last.get("threshold", math.nan)),
        "candidates_left": int(last["candidates_left"]),
        "entropy": float(last["entropy"]),
        "train_loss": progress.mean("train_loss"),
        "train_accuracy": progress.mean("train_accuracy"),
        "val_loss": progress.mean("val_loss"),
        "val_accuracy": val_accuracy,
    }


def _epoch_line(epoch, record, epochs):
    def number(value, digits):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    return (
        f"search {epoch + 1:>{len(str(epochs))}}/{epochs}  "
        f"T {number(record['temperature'], 3)}  "
        f"candidates {record['candidates_left']:>3}  "
        f"entropy {record['entropy']:.3f}  "
        f"loss train {record['train_loss']:.3f} val {number(record['val_loss'], 3)}  "
        f"val accuracy {100 * record['val_accuracy']:.2f} %"
    )
