"""The host side of a search: data, accuracy, derivation; the math is in `search_step`."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import data
from asap_jax.data.augment import Augmentation, normalise
from asap_jax.host import errors, loop, memory, precisions
from asap_jax.host.compiling import Compiler
from asap_jax.host.errors import UserError
from asap_jax.layers.ops import Context
from asap_jax.methods import STRATEGIES, Strategy, collapse, derive, schedules
from asap_jax.methods.derive import EDGES
from asap_jax.networks import plans
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.models import STAGES, Supernet
from asap_jax.networks.nasbench201 import NASBench201
from asap_jax.networks.spaces import SPACES, SearchSpace
from asap_jax.searching import costs
from asap_jax.searching.planned_step import PlannedStep
from asap_jax.searching.search_step import Optimizers, SearchStep, init_state, step_keys
from asap_jax.training import optim
from asap_jax.training.evaluation import Accuracy
from asap_jax.training.feed import Batch
from asap_jax.training.losses import cross_entropy


class SearchOutcome(NamedTuple):
    """The result of a search.

    genotype: the derived cells, by the configured edge rule.
    gap: {rule: {"supernet", "derived", "gap"}}: accuracy on the alpha half of the final supernet
      and of the rule's genotype alone, with shared weights; their difference. Both normalize by
      each batch's own statistics, since the running ones belong to the supernet's mixture. Both are
      optimistic, since the alpha half has guided the search. Empty for a method without alphas.
    epochs, seconds: duration, over all starts.
    candidates_left: over all cell types; equals the number of edges when every edge is decided.
    ended: "finished" if the strategy was: its edges decided, or its criterion met; "stopped" if a
      callback ended it, or RobustDARTS' criterion, in which case the cells are those of the epoch
      it points back to; else "".
    benchmark: the entry of `config.benchmark` for the genotype, {column: value}; {} if none.
    """

    genotype: Genotype
    gap: dict[str, dict[str, float]]
    epochs: int
    seconds: float
    candidates_left: int
    ended: str
    benchmark: dict[str, float]


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
    try:
        with errors.of("config.search.strategy"):
            return STRATEGIES[name](space, config.epochs, steps_per_epoch, **options)
    except TypeError as error:  # options of another strategy
        raise UserError(
            f"config.search.strategy: {error}; to change the strategy name it in the preset, as in "
            f"--config=search:digits,{name}"
        ) from error


def _constraint(config, network: Supernet, image_shape) -> costs.Constraint | None:
    """The configured constraint on the expected cost, or None if its weight is 0."""
    if not config.cost_weight:
        return None
    return costs.Constraint(config.cost_weight, costs.expected_log_cost(network, image_shape))


def check(config, dataset: data.Dataset) -> None:
    """Raises UserError if data, space and strategy do not fit together."""
    half = len(dataset.train_labels) // 2
    if config.batch_size > half:
        raise UserError(
            f"config.search.batch_size is {config.batch_size}, but each half of the "
            f"{len(dataset.train_labels)} training images holds only {half}: choose a batch size "
            f"of at most {half}"
        )
    for stage in stages(config, dataset):
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
        if config.cost_weight and not stage.strategy.updates.has_alphas:
            raise UserError(
                f"config.search.cost_weight is {config.cost_weight}, but the strategy "
                f"{config.strategy.name} has no alphas that could learn from a cost: set it to 0"
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
        _benchmark(config)


def _drops_skips(strategy: Strategy) -> bool:
    """Whether the strategy's mixtures drop the values of identities, as P-DARTS' do."""
    key = jax.random.key(0)
    mixtures = jax.eval_shape(lambda: strategy.mixture(strategy.init(key), jnp.int32(0), key))
    return any(mixture.skip_dropout is not None for mixture in mixtures.values())


def _benchmark(config) -> NASBench201 | None:
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


class Parts(NamedTuple):
    """The components of a search, or of a stage of it, before it has a state.

    epochs, steps: number of epochs, and of steps per epoch.
    constraint: on the cells' expected cost, or None.
    """

    space: SearchSpace
    strategy: Strategy
    network: Supernet
    optimizers: Optimizers
    epochs: int
    steps: int
    constraint: costs.Constraint | None

    def step(self, config, class_weights=None) -> SearchStep:
        """Builds the search step from `config` (the `search` part)."""
        return SearchStep(
            self.network,
            self.strategy,
            self.optimizers,
            class_weights=class_weights,
            dtype=precisions.map_dtype(config.precision),
            constraint=self.constraint,
            drop_path=config.drop_path,
        )


def build(config, dataset: data.Dataset, strategy: Strategy | None = None) -> Parts:
    """Builds the parts of the search, or of the stage that `strategy` belongs to."""
    images = len(dataset.train_labels)
    steps = (images - images // 2) // config.batch_size
    space = make_space(config)
    given = strategy
    strategy = given or make_strategy(config, space, steps)
    if strategy.updates.joint:  # one loss trains everything, so no half is held back
        steps = images // config.batch_size
        strategy = given or make_strategy(config, space, steps)
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
    return Parts(
        space,
        strategy,
        network,
        Optimizers(
            optim.sgd(rate, omega.momentum, omega.weight_decay, omega.clip, omega.nesterov),
            strategy.alpha_optimizer or optim.adam(**config.alpha),
            optim.virtual_sgd(rate, omega.momentum, omega.weight_decay),
        ),
        epochs,
        steps,
        _constraint(config, network, dataset.preparation.shape),
    )


def make_augmentation(config, dataset: data.Dataset) -> Augmentation:
    """The augmentation of a search's training images."""
    options = config.augmentation
    return Augmentation(dataset.mean, dataset.std, options.pad, options.flip)


def stages(config, dataset: data.Dataset) -> list[Parts]:
    """The parts of every stage, each as if the previous one had learned nothing."""
    found = [build(config, dataset)]
    while (strategy := found[-1].strategy).next_stage is not None:
        arch = strategy.init(jax.random.key(0))
        found.append(build(config, dataset, strategy.next_stage(arch)))
    return found


def estimate(config, dataset: data.Dataset) -> memory.Estimate:
    """Estimates the memory of a search step, the largest over all stages."""
    estimates = [_stage_estimate(config, dataset, parts) for parts in stages(config, dataset)]
    return max(estimates, key=lambda estimate: estimate.total)


def _stage_estimate(config, dataset, parts) -> memory.Estimate:
    shape, key, step = dataset.preparation.shape, jax.random.key(0), parts.step(config)
    state = jax.eval_shape(
        lambda: init_state(parts.network, parts.strategy, parts.optimizers, key, shape)
    )
    begun = state.replace(step=jnp.int32(0), arch=parts.strategy.init(key))

    def loss(params):
        images = jnp.zeros((config.batch_size, *shape))
        batch = Batch(images, jnp.zeros(len(images), jnp.int32))
        stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.batch_stats)
        return step.loss(begun)(params, begun.arch.alphas, stats, batch, key)[0]

    return memory.estimate(loss, state.params, state, dataset.train_images.nbytes)


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
    """Searches for a cell on the data set's training images.

    Args:
      config: the `search` part of a config, accepted by `check` for this data set.
      dataset: images in memory.
      seed: for the split into halves, the weights, the batches and the augmentation.
      session: log, checkpoints, signals, callbacks.
      index: index of this search among several.
      identity: identity that its checkpoints must match.
      class_weights: [classes], weights of both losses, or None.
    """
    watch = loop.Stopwatch()
    omega_half, alpha_half = data.halves(dataset.train_labels, seed, dataset.train_groups)
    if config.batch_size > min(len(omega_half), len(alpha_half)):
        raise UserError(
            f"config.search.batch_size is {config.batch_size}, but the groups of config.data.group "
            f"split the training images into {len(omega_half)} and {len(alpha_half)}: choose a "
            "batch size of at most the smaller, or smaller groups"
        )
    # Shuffled for measurement, since sources return their images class by class.
    shuffled = np.random.default_rng([seed, 3]).permutation(alpha_half)
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    held = _Images(images, labels, omega_half, shuffled)
    strategy, epochs, seconds, number, warned = None, 0, 0.0, 0, []
    while True:
        parts = build(config, dataset, strategy)
        if parts.strategy.updates.joint:
            held = held._replace(omega=np.arange(len(dataset.train_labels)))
        stage = _Stage(config, dataset, parts, held, seed, session, warned)
        state, progress = stage.run(number, epochs, index, identity or {}, class_weights, watch)
        warned = progress.history.get("warned", warned)
        epochs, seconds = epochs + progress.epoch, seconds + progress.seconds
        if stage.strategy.next_stage is None or progress.ended == "stopped":
            break
        strategy, number = stage.strategy.next_stage(state.arch), number + 1
    derived, gaps = stage.end(state, progress)
    return SearchOutcome(
        derived[config.edges],
        gaps,
        epochs,
        seconds + watch.seconds,
        int(sum(mask.sum() for mask in state.arch.masks.values())),
        progress.ended,
        stage.benchmark.get(derived[config.edges], {}) if stage.benchmark else {},
    )


class _Images(NamedTuple):
    """The training images on the device, and which of them train what.

    omega, alpha: indices of the halves; alpha is shuffled. Where one loss trains both, omega holds
      all images and alpha the half used for measurement.
    """

    images: jax.Array
    labels: jax.Array
    omega: np.ndarray
    alpha: np.ndarray


class _Stage:
    """A search, or one stage of it: its parts, and the functions that the host calls."""

    def __init__(self, config, dataset, parts, held, seed, session, warned):
        self.config, self.dataset, self.held, self.seed = config, dataset, held, seed
        self.space, self.strategy = parts.space, parts.strategy
        self.network, self.optimizers = parts.network, parts.optimizers
        self.epochs, self.steps, self.parts = parts.epochs, parts.steps, parts
        self.session, self.benchmark, self.warned = session, _benchmark(config), warned
        # Under the stage's own plan for all candidates: one compilation serves every mask.
        self.accuracy, self.accuracy_by_batch = (
            Accuracy(
                precisions.computed_in(config.precision, _supernet_logits(self.network, by_batch)),
                held.images,
                held.labels,
                dataset.mean,
                dataset.std,
                config.eval_batch_size,
                held.alpha,
            )
            for by_batch in (False, True)
        )
        self.watched = self.config.watch.images if self.strategy.updates.has_alphas else 0
        eigenvalue = _eigenvalue(self.network, self.strategy, dataset, config.batch_size, seed)
        self.eigenvalue = jax.jit(precisions.computed_in(config.precision, eigenvalue))

    def run(self, number, before, index, identity, class_weights, watch):
        """Runs the stage, which `number` stages and `before` epochs preceded.

        The loop keeps its own time; the stopwatch `watch` is paused meanwhile.
        """
        config, held, staged = self.config, self.held, number or self.strategy.next_stage
        key = jax.random.key(self.seed)
        key = jax.random.fold_in(key, number) if number else key
        shape = self.dataset.preparation.shape
        state = init_state(self.network, self.strategy, self.optimizers, key, shape)
        compiler = Compiler()
        planned = self.planned_step(class_weights, compiler)

        def order(epoch):
            size, epoch = config.batch_size, before + epoch
            omega_order = data.epoch_order(held.omega, size, (self.seed, 0), epoch)
            alpha_order = data.epoch_order(held.alpha, size, (self.seed, 1), epoch)
            # The halves differ in size, by one image without groups: the shorter one wraps around.
            # (Where one loss trains everything, the alpha batches are not used.)
            return [
                (omega_order[i % len(omega_order)], alpha_order[i % len(alpha_order)])
                for i in range(self.steps)
            ]

        def summary(state, progress, last):
            record = self.summary(state, progress, last)
            name = f"search {number + 1}:" if staged else "search "
            return record, _epoch_line(name, progress.epoch, record, self.epochs)

        def begin(progress):
            planned.follow(progress)
            if progress.epoch < self.epochs and not progress.ended:
                planned.prepare(state)
                self.prepare(state, compiler)

        try:
            with watch.paused():
                return loop.run(
                    "search",
                    state,
                    planned,
                    partial(data.onwards, order, self.epochs),
                    summary,
                    epochs=self.epochs,
                    steps=self.steps,
                    session=self.session,
                    identity=identity,
                    index=index,
                    stage=number,
                    watch=_prune_watch(self.session.callbacks.on_prune, self.space),
                    begin=begin,
                    after_epoch=planned.consider,
                )
        finally:
            compiler.close()

    def planned_step(self, class_weights, compiler) -> PlannedStep:
        """Builds the step of this stage, on its images."""
        config = self.config
        return PlannedStep(
            self.parts.step(config, class_weights),
            make_augmentation(config, self.dataset),
            self.held.images,
            self.held.labels,
            batch_size=config.batch_size,
            epochs=self.epochs,
            steps_per_epoch=self.steps,
            precision=config.precision,
            compiler=compiler,
            say=self.session.log.say,
        )

    def prepare(self, state, compiler) -> None:
        """Starts compiling what the end of an epoch needs."""
        mixtures = jax.eval_shape(partial(_final_mixtures, self.strategy), state)
        needed = [self.accuracy] + [self.accuracy_by_batch] * bool(self.watched)
        for each in needed:
            each.prepare(compiler, state.params, state.batch_stats, mixtures)

    def summary(self, state, progress, last) -> dict:
        """The record of an epoch; warns when a sign of collapse first appears."""
        mixtures = _final_mixtures(self.strategy, state)
        accuracy = self.accuracy(state.params, state.batch_stats, mixtures)
        record = _epoch_record(progress, last, accuracy)
        if not self.strategy.updates.has_alphas:
            return record  # without alphas nothing can collapse: it samples and ranks
        weighed = self.strategy.distribution or (lambda arch, mixtures: mixtures)
        record["weights"] = {
            cell: np.asarray(mix.weights, np.float64).round(4).tolist()
            for cell, mix in weighed(state.arch, mixtures).items()
        }
        inputs, key = EDGES[self.config.edges], jax.random.key(self.seed)
        genotype = self.strategy.derive(state.arch, inputs, key, self._shared(state))
        record |= {f"skips_{cell}": count for cell, count in derive.skips(genotype).items()}
        if self.watched:
            alone = one_hot_mixture(genotype, self.space)
            for name, mixed in (("supernet", mixtures), ("derived", alone)):
                record[f"{name}_accuracy"] = self.accuracy_by_batch(
                    state.params, state.batch_stats, mixed, limit=self.watched
                )
            record["gap"] = record["supernet_accuracy"] - record["derived_accuracy"]
        history, back = progress.history, None
        if self._measures(state, progress):
            record["eigenvalue"] = float(self.eigenvalue(state, self.held))
            back = self._note_eigenvalue(state, progress, record["eigenvalue"])
        if (name := genotype.architecture_string()) is not None:
            record["architecture"] = name
        said = {}
        if self.strategy.learns(state.step - 1):  # before that, the cells mean nothing
            ends = progress.ended or progress.epoch + 1 == self.epochs
            final = ends and self.strategy.next_stage is None
            said = collapse.warnings(genotype, record, back, final)
            if back is not None and self.config.early_stop and not ends:
                progress.ended, history["returned"] = "stopped", [back]
        if self.benchmark is not None and name is not None:
            record["benchmark"] = self.benchmark.get(name, {})
            if name not in self.benchmark:
                said["benchmark"] = f"the cell {name} is not in {self.benchmark.path}"
        for sign, words in said.items():
            if sign not in history.setdefault("warned", list(self.warned)):
                history["warned"].append(sign)
                self.session.log.warn(words)
        return record

    def _measures(self, state, progress) -> bool:
        """Whether the eigenvalue is measured in the epoch that just ended."""
        watch, strategy = self.config.watch, self.strategy
        if not watch.eigenvalue or strategy.distribution is None:
            return False
        if not strategy.learns(state.step - 1):
            return False
        epochs = progress.history.get("eigenvalue_epochs", [progress.epoch])
        return (progress.epoch - epochs[0]) % watch.eigenvalue_every == 0

    def _note_eigenvalue(self, state, progress, value) -> int | None:
        """Records it with the current cells; returns the epoch to return to, or None."""
        history = progress.history
        cells = {}
        for rule, inputs in EDGES.items():
            key = jax.random.key(self.seed)
            found = self.strategy.derive(state.arch, inputs, key, self._shared(state))
            cells[rule] = found.to_json()
        for name, new in (
            ("eigenvalue", value),
            ("eigenvalue_epochs", progress.epoch),
            ("eigenvalue_cells", cells),
        ):
            history.setdefault(name, []).append(new)
        values, epochs = history["eigenvalue"], history["eigenvalue_epochs"]
        return collapse.points_back_to(values, epochs, self.config.watch.eigenvalue_from)

    def _derive(self, state, progress, rule) -> Genotype:
        """The genotype by an edge rule, of this state or of the epoch the search returned to."""
        history = progress.history
        if history.get("returned"):
            index = history["eigenvalue_epochs"].index(history["returned"][0])
            return Genotype.from_json(history["eigenvalue_cells"][index][rule])
        key = jax.random.key(self.seed)
        return self.strategy.derive(state.arch, EDGES[rule], key, self._shared(state))

    def end(self, state, progress) -> tuple[dict[str, Genotype], dict]:
        """Returns ({edge rule: genotype}, {edge rule: gap})."""
        shared, derived, gaps = self._shared(state), {}, {}
        supernet_accuracy = shared(_final_mixtures(self.strategy, state))
        # A method without alphas has no mixture to fall short of: it samples and ranks.
        for rule in EDGES if self.strategy.updates.has_alphas else (self.config.edges,):
            derived[rule] = self._derive(state, progress, rule)
            if self.strategy.updates.has_alphas:
                alone = shared(one_hot_mixture(derived[rule], self.space))
                gap = supernet_accuracy - alone
                gaps[rule] = {"supernet": supernet_accuracy, "derived": alone, "gap": gap}
        return derived, gaps

    def _shared(self, state):
        """(mixtures, images or None for all) -> accuracy, by each batch's own statistics."""

        def shared(mixtures, images=None):
            self.session.interruption.check("search: all steps done, its cells not yet derived")
            return self.accuracy_by_batch(state.params, state.batch_stats, mixtures, limit=images)

        return shared


def _prune_watch(on_prune, space):
    """Builds the watch for `loop.run` that calls on_prune after each step that pruned."""
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


def _supernet_logits(network, by_batch):
    """Builds logits(params, batch_stats, mixtures, images), by batch or running statistics."""

    def logits(params, batch_stats, mixtures, images):
        variables = {"params": params, "batch_stats": batch_stats}
        context = Context(train=by_batch)
        return network.apply(variables, images, mixtures, context, mutable=["batch_stats"])[0]

    return logits


def _eigenvalue(network, strategy, dataset, batch_size, seed):
    """Builds eigenvalue(state, held): the dominant eigenvalue of the alphas' Hessian.

    Measured on the first alpha batch, for the loss under the method's distribution: with a sampled
    mixture, the eigenvalue would be as random as the sample.
    """

    def eigenvalue(state, held):
        rows = held.alpha[:batch_size]
        images = normalise(held.images[rows], dataset.mean, dataset.std)
        last, key = state.step - 1, jax.random.key(seed)

        def loss(alphas):
            arch = state.arch._replace(alphas=alphas)
            mixtures = strategy.distribution(arch, strategy.mixture(arch, last, key))
            context = Context(train=True, twice=True)
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            logits, _ = network.apply(
                variables, images, _at_rest(mixtures), context, mutable=["batch_stats"]
            )
            return cross_entropy(logits, held.labels[rows])

        return collapse.dominant_eigenvalue(loss, state.arch.alphas, key)[0]

    return eigenvalue


def _final_mixtures(strategy, state):
    """The mixtures of the last completed step, as used for measurement."""
    last = state.step - 1
    return _at_rest(strategy.mixture(state.arch, last, step_keys(state.key, last).alpha))


def _at_rest(mixtures):
    """Mixtures without the noise that is used only while learning."""
    return {cell: mix._replace(skip_dropout=None) for cell, mix in mixtures.items()}


# Step metrics that an epoch's record replaces or omits; all others are copied.
OF_A_STEP = set(
    """
    temperature threshold candidates_left entropy train_loss train_accuracy val_loss finished
    """.split()
)


def _epoch_record(progress, last, val_accuracy):
    return {
        "temperature": float(last.get("temperature", math.nan)),
        "threshold": float(last.get("threshold", math.nan)),
        "candidates_left": int(last["candidates_left"]),
        "entropy": float(last.get("entropy", math.nan)),
        **{key: float(last[key]) for key in last if key not in OF_A_STEP},
        "train_loss": progress.mean("train_loss"),
        "train_accuracy": progress.mean("train_accuracy"),
        "val_loss": progress.mean("val_loss"),
        "val_accuracy": val_accuracy,
    }


def _epoch_line(name, epoch, record, epochs):
    def number(value, digits):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    line = (
        f"{name}{epoch + 1:>{len(str(epochs))}}/{epochs}  "
        f"T {number(record['temperature'], 3)}  "
        f"candidates {record['candidates_left']:>3}  "
        f"entropy {number(record['entropy'], 3)}  "
        f"loss train {record['train_loss']:.3f} val {number(record['val_loss'], 3)}  "
        f"val accuracy {100 * record['val_accuracy']:.2f} %"
    )
    tabled = record.get("benchmark", {})
    return line + "".join(f"  {name} {value:.2f}" for name, value in tabled.items())
