"""The host side of a search: data, records, derivation; the math is in `search_step`."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import data
from asap_jax.host import loop, timing
from asap_jax.host.compiling import Compiler
from asap_jax.host.devices import Devices
from asap_jax.methods import collapse, derive
from asap_jax.methods.derive import EDGES
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.searching import certainty, measures, prunings, quality, stages
from asap_jax.searching.evidence import CARRIED, Evidence
from asap_jax.searching.measures import Halves, Measures, final_mixtures
from asap_jax.searching.pace import LENGTHS, LIMIT
from asap_jax.searching.planned_step import PlannedStep
from asap_jax.searching.search_step import init_state
from asap_jax.searching.targets import TOLERANCE, Target


class SearchOutcome(NamedTuple):
    """The result of a search.

    genotype: the derived cells, by the configured edge rule.
    gap: {rule: {"supernet", "derived", "gap"}}: accuracy on the alpha half of the final supernet
      and of the rule's genotype alone, with shared weights; their difference. Both normalize by
      each batch's own statistics, since the running ones belong to the supernet's mixture. Both are
      optimistic, since the alpha half has guided the search. Empty for a method without alphas.
    epochs, steps, seconds: duration, over all starts.
    candidates_left: over all cell types; equals the number of edges when every edge is decided.
    ended: "finished" if the strategy was: its edges decided, or its criterion met; "stopped" if a
      callback ended it, or RobustDARTS' criterion or too many skips, in which case the cells are
      those of the epoch that these point back to; "budget" if the time was up; else "".
    benchmark: the entry of `config.benchmark` for the genotype, {column: value}; {} if none.
    worse: {column: the share of the benchmark's cells that are worse, in %}.
    derived_accuracy: of the derived cells alone, with shared weights, on the alpha half.
    certainty: see `certainty.of_search`; {} if the alphas never learned.
    expected: what searches of such a length found where it was measured, see `quality.Measured`;
      {} in other spaces, or if nothing is known.
    ranking: how well shared weights rank `config.benchmark_cells` random cells of the benchmark,
      against its last column: {"column", "cells", "kendall", "spearman"}; {} without a benchmark.
    """

    genotype: Genotype
    gap: dict[str, dict[str, float]]
    epochs: int
    steps: int
    seconds: float
    candidates_left: int
    ended: str
    benchmark: dict[str, float]
    worse: dict[str, float]
    derived_accuracy: float
    certainty: dict[str, Any]
    expected: dict[str, float]
    ranking: dict[str, Any]


def search(
    config,
    dataset: data.Dataset,
    seed: int,
    session: loop.Session,
    *,
    index: int = 0,
    identity: dict | None = None,
    class_weights=None,
    target: Target | None = None,
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
      target: for the size of the derived network, or None.
    """
    watch = loop.Stopwatch()
    devices = session.devices.among(config.batch_size)
    halves = _halves_on(devices, dataset, *stages.split(config, dataset, seed), seed)
    strategy, state, number, carried = None, None, 0, {}
    epochs, steps, seconds = 0, 0, 0.0
    asked = config.epochs  # of the stages to come
    total = len(stages.build_all(config, dataset))
    while True:
        stage = stages.build(config, dataset, strategy)
        running = _StageRun(config, dataset, stage, halves, seed, session, devices, carried, target)
        if stage.pace:
            budget = 60 * config.budget_minutes
            stage.pace.seconds = (budget - seconds) * stage.epochs / asked
            stage.pace.limit = LIMIT * budget - seconds
        asked -= stage.epochs
        state, progress = running.run(
            number, total, epochs, index, identity or {}, class_weights, watch, state
        )
        carried = {key: progress.history[key] for key in CARRIED if key in progress.history}
        epochs, steps = epochs + progress.epoch, steps + int(state.step)
        seconds += progress.seconds
        if running.strategy.next_stage is None or progress.ended in ("stopped", "budget"):
            break
        # The next stage begins as the first did, and what it takes over is not on a mesh.
        arch = devices.home(state.arch)
        strategy, number = running.strategy.next_stage(arch), number + 1
    derived, gaps, accuracy = running.end(state, progress)
    genotype, benchmark = derived[config.edges], running.benchmark
    entry = benchmark.get(genotype, {}) if benchmark else {}
    method = config.strategy.name
    if doubt := quality.doubt(method, steps):
        session.log.warn(doubt)
    expected = quality.at(method, steps) if config.space == quality.SPACE else None
    return SearchOutcome(
        genotype,
        gaps,
        epochs,
        steps,
        seconds + watch.seconds,
        int(sum(mask.sum() for mask in state.arch.masks.values())),
        progress.ended,
        entry,
        benchmark.worse(genotype) if benchmark and entry else {},
        accuracy,
        certainty.of_search(
            progress.history,
            progress.epoch,
            genotype,
            jax.device_get(state.arch.masks),
            running.space,
            number + 1,
        ),
        expected._asdict() if expected else {},
        running.ranking(state),
    )


class Trial(NamedTuple):
    """How long the steps of a stage take, measured before any candidate has left.

    compiling: seconds until the programs were there; short if the cache had them.
    steps: {whether the alphas learn in a step: (seconds of such a step, number of such steps)}.
    measuring: seconds of measuring the accuracies at the end of an epoch.
    epochs: number of epochs.
    """

    compiling: float
    steps: dict[bool, tuple[float, int]]
    measuring: float
    epochs: int

    @property
    def seconds(self) -> float:
        """Of the whole stage without compiling, if no candidate left."""
        stepping = sum(seconds * count for seconds, count in self.steps.values())
        return stepping + self.epochs * self.measuring


def try_steps(
    config,
    dataset: data.Dataset,
    seed: int,
    session: loop.Session,
    class_weights=None,
    target: Target | None = None,
) -> list[Trial]:
    """Compiles the programs of a search as `search` does, and times a few steps of each stage."""
    devices = session.devices.among(config.batch_size)
    halves = _halves_on(devices, dataset, *stages.split(config, dataset, seed), seed)
    return [
        _StageRun(config, dataset, stage, halves, seed, session, devices, {}, target).try_steps(
            class_weights
        )
        for stage in stages.build_all(config, dataset)
    ]


def _halves_on(devices: Devices, dataset, omega_half, alpha_half, seed) -> Halves:
    # Shuffled for measurement, since sources return their images class by class.
    shuffled = np.random.default_rng([seed, 3]).permutation(alpha_half)
    images, labels = devices.put((dataset.train_images, dataset.train_labels))
    return Halves(images, labels, omega_half, shuffled)


class _StageRun:
    """A stage in progress: its parts, and the functions that the host calls."""

    def __init__(self, config, dataset, stage, halves, seed, session, devices, carried, target):
        if stage.strategy.updates.joint:
            halves = halves._replace(omega=np.arange(len(dataset.train_labels)))
        self.config, self.dataset, self.halves, self.seed = config, dataset, halves, seed
        self.space, self.strategy = stage.space, stage.strategy
        self.network, self.optimizers = stage.network, stage.optimizers
        self.epochs, self.steps, self.stage = stage.epochs, stage.steps, stage
        self.pace = stage.pace
        if self.pace:
            self.epochs = self.pace.epochs
        self.session, self.devices = session, devices
        self.benchmark = stages.benchmark_table(config)
        self.carried: dict[str, list] = carried
        self.target: Target | None = target
        self.measures = Measures(config, dataset, stage, halves, seed, devices)
        watch = config.watch
        self.evidence = Evidence(config.early_stop, watch.eigenvalue_from, config.max_skips)

    def run(self, number, total, before, index, identity, class_weights, watch, last):
        """Runs the stage, which `number` stages of `total` and `before` epochs preceded.

        `last` is the state at the end of the stage before, or None. The loop keeps its own time;
        the stopwatch `watch` is paused meanwhile.
        """
        config, halves = self.config, self.halves
        key = jax.random.key(self.seed)
        key = jax.random.fold_in(key, number) if number else key
        shape = self.dataset.preparation.shape
        state = init_state(self.network, self.strategy, self.optimizers, key, shape)
        if last is not None and self.strategy.inherit is not None:
            params, stats = self.strategy.inherit(self.network, last.params, last.batch_stats)
            state = state.replace(params=params, batch_stats=stats)
        state = self.devices.put(state)
        noted = prunings.Prunings(jax.device_get(state.arch.masks))
        compiler = Compiler()
        planned = self.planned_step(class_weights, compiler)
        if self.pace:
            self.pace.moved = planned.go_to

        def of_any_length(epoch, step):
            size = config.batch_size
            halves = ((self.halves.omega, 0), (self.halves.alpha, 1))
            yield from zip(
                *(
                    data.endless_order(half, size, (self.seed, which), before + epoch, step)
                    for half, which in halves
                ),
                strict=False,
            )

        def order(epoch):
            size, epoch = config.batch_size, before + epoch
            omega_order = data.epoch_order(halves.omega, size, (self.seed, 0), epoch)
            alpha_order = data.epoch_order(halves.alpha, size, (self.seed, 1), epoch)
            # The halves differ in size, by one image without groups: the shorter one wraps around.
            # (Where one loss trains everything, the alpha batches are not used.)
            return [
                (omega_order[i % len(omega_order)], alpha_order[i % len(alpha_order)])
                for i in range(self.steps)
            ]

        def summary(state, progress, last):
            staged = {"stages": total} if total > 1 else {}
            return staged | self.summary(state, progress, last)

        def begin(progress):
            planned.follow(progress)
            if progress.epoch < self.epochs and not progress.ended:
                planned.prepare(state)
                self.measures.prepare(state, compiler)

        try:
            with watch.paused():
                return loop.run(
                    "search",
                    state,
                    planned,
                    of_any_length if self.pace else partial(data.onwards, order, self.epochs),
                    summary,
                    epochs=self.epochs,
                    steps=self.steps,
                    session=self.session,
                    identity=identity,
                    index=index,
                    stage=number,
                    note=noted.note,
                    watch=_prune_watch(self.session.callbacks.on_prune, noted, self.space),
                    begin=begin,
                    after_epoch=planned.consider,
                    rate=self.stage.rate,
                    pace=self.pace,
                )
        finally:
            compiler.close()

    def _out_of_time(self, progress, candidates_left: int) -> str:
        """What to tell of a search that ends with its budget, in the epoch that is just over."""
        steps, epoch = sum(progress.history[LENGTHS]), progress.epoch + 1
        up = progress.seconds >= self.stage.pace.limit
        return (
            f"{'the time is up' if up else 'all epochs are over'} after {steps} steps, in epoch "
            f"{epoch} of {self.epochs}, with {candidates_left} candidates left. Compiling is part "
            "of the time, and shorter the next time: a larger config.search.budget_minutes, in "
            "another --workdir, gives more steps"
        )

    def try_steps(self, class_weights) -> Trial:
        """See the function `try_steps`."""
        watch, compiler, key = loop.Stopwatch(), Compiler(), jax.random.key(self.seed)
        shape, size = self.dataset.preparation.shape, self.config.batch_size
        state = init_state(self.network, self.strategy, self.optimizers, key, shape)
        state = self.devices.put(state)
        planned = self.planned_step(class_weights, compiler)
        batches = self.halves.omega[:size], self.halves.alpha[:size]
        try:
            planned.follow(loop.Progress())
            planned.prepare(state)
            self.measures.prepare(state, compiler)
            planned.wait()
            compiling, steps = watch.seconds, {}

            def step(number):
                nonlocal state
                planned.go_to(number)
                state = state.replace(step=self.devices.put(jnp.int32(number)))
                state, metrics = planned(state, *batches)
                return metrics

            for learns, (first, count) in planned.kinds().items():
                once = partial(step, first)
                jax.block_until_ready(once())
                steps[learns] = timing.seconds_of(once, budget=3.0, least=2), count
            return Trial(compiling, steps, self.measures.seconds(state), self.epochs)
        finally:
            compiler.close()

    def planned_step(self, class_weights, compiler) -> PlannedStep:
        """Builds the step of this stage, on its images."""
        config = self.config
        return PlannedStep(
            self.stage.step(config, class_weights, self.target),
            stages.make_augmentation(config, self.dataset),
            self.halves.images,
            self.halves.labels,
            batch_size=config.batch_size,
            epochs=self.epochs,
            steps_per_epoch=self.steps,
            precision=config.precision,
            compiler=compiler,
            say=self.session.log.say,
            skips_nan=self.session.on_nan == "skip",
            devices=self.devices,
        )

    def summary(self, state, progress, last) -> dict:
        """The record of an epoch; warns when a sign of collapse first appears."""
        mixtures = final_mixtures(self.strategy, state)
        accuracy = self.measures.accuracy(state.params, state.batch_stats, mixtures)
        record = _epoch_record(progress, last, accuracy)
        if progress.ended == "budget":
            self.session.log.warn(self._out_of_time(progress, record["candidates_left"]))
        if not self.strategy.updates.has_alphas:
            return record  # without alphas nothing can collapse: it samples and ranks
        weighed = self.strategy.distribution or (lambda arch, mixtures: mixtures)
        weights = {
            cell: np.asarray(mix.weights, np.float64)
            for cell, mix in weighed(state.arch, mixtures).items()
        }
        record["weights"] = {cell: each.round(4).tolist() for cell, each in weights.items()}
        record["pruned"] = prunings.of_epoch(progress)
        genotype = self._now(state, self.config.edges)
        record |= {f"skips_{cell}": count for cell, count in derive.skips(genotype).items()}
        if self.measures.watched:
            record |= self.measures.shortfall(state, mixtures, genotype)
        history, back, cells = progress.history, None, partial(self._by_rule, state)
        for key, value in self.carried.items():
            history.setdefault(key, list(value))
        if self._eigenvalue_is_due(state, progress):
            record["eigenvalue"] = float(self.measures.eigenvalue(state, self.halves))
            back = self.evidence.note_eigenvalue(progress, record["eigenvalue"], cells)
        if (name := genotype.architecture_string()) is not None:
            record["architecture"] = name
        texts = {}
        if self.strategy.learns(state.step - 1):  # before that, the cells mean nothing
            masks = jax.device_get(state.arch.masks)
            known = weights if self.strategy.distribution is not None else None
            certainty.note(history, progress.epoch, genotype, known, masks, self.space)
            ends = progress.ended or progress.epoch + 1 == self.epochs
            final = ends and self.strategy.next_stage is None
            texts = collapse.warnings(genotype, record, back, final)
            if said := self.evidence.consider(progress, back, record["skips_normal"], cells):
                self.session.log.say(said)
        if self.benchmark is not None and name is not None:
            record["benchmark"] = self.benchmark.get(name, {})
            if name not in self.benchmark:
                texts["benchmark"] = f"the cell {name} is not in {self.benchmark.path}"
        for sign, words in texts.items():
            if sign not in history.setdefault("warned", []):
                history["warned"].append(sign)
                self.session.log.warn(words)
        return record

    def _eigenvalue_is_due(self, state, progress) -> bool:
        """Whether the eigenvalue is measured in the epoch that just ended."""
        watch, strategy = self.config.watch, self.strategy
        if not watch.eigenvalue or strategy.distribution is None:
            return False
        if not strategy.learns(state.step - 1):
            return False
        epochs = progress.history.get("eigenvalue_epochs", [progress.epoch])
        return (progress.epoch - epochs[0]) % watch.eigenvalue_every == 0

    def _now(self, state, rule) -> Genotype:
        """The genotype by an edge rule that this state gives, of the target's size if possible."""
        key = jax.random.key(self.seed)
        found = self.strategy.derive(state.arch, EDGES[rule], key, self._shared(state))
        if self.target is None or rule != self.config.edges:
            return found
        mixtures = final_mixtures(self.strategy, state)
        if self.strategy.distribution is not None:
            mixtures = self.strategy.distribution(state.arch, mixtures)
        weights = {cell: mix.weights for cell, mix in mixtures.items()}
        return self.target.fit(found, *jax.device_get((weights, state.arch.masks)))

    def _by_rule(self, state) -> dict[str, str]:
        """{edge rule: genotype that this state gives, as JSON}."""
        return {rule: self._now(state, rule).to_json() for rule in EDGES}

    def _derive(self, state, progress, rule) -> Genotype:
        """The genotype by an edge rule, of this state or of the epoch the search returned to."""
        if returned := progress.history.get("returned"):
            return Genotype.from_json(returned[1][rule])
        return self._now(state, rule)

    def end(self, state, progress) -> tuple[dict[str, Genotype], dict, float]:
        """Returns ({edge rule: genotype}, {edge rule: gap}, accuracy of the configured rule's)."""
        shared, derived, gaps, accuracy = self._shared(state), {}, {}, math.nan
        supernet_accuracy = shared(final_mixtures(self.strategy, state))
        # A method without alphas has no mixture to fall short of: it samples and ranks.
        for rule in EDGES if self.strategy.updates.has_alphas else (self.config.edges,):
            derived[rule] = self._derive(state, progress, rule)
            alone = shared(one_hot_mixture(derived[rule], self.space))
            if rule == self.config.edges:
                accuracy = alone
                self._report_size(derived[rule])
            if self.strategy.updates.has_alphas:
                gap = supernet_accuracy - alone
                gaps[rule] = {"supernet": supernet_accuracy, "derived": alone, "gap": gap}
        return derived, gaps, accuracy

    def _report_size(self, genotype) -> None:
        """Says how large the derived network is, if there is a target; warns if it is missed."""
        if self.target is None:
            return
        size, target = self.target.size(genotype), self.target
        off = size / target.value - 1
        words = f"{size:,.0f} {target.kind}, {100 * off:+.1f} % from the target"
        if abs(off) <= TOLERANCE:
            self.session.log.say(f"the derived network has {words}")
            return
        self.session.log.warn(
            f"the derived network has {words}: the candidates that are left allow nothing closer. "
            "A larger config.search.target_weight lets the target decide more prunings"
        )

    def ranking(self, state) -> dict:
        """See `SearchOutcome.ranking`."""
        count, images = self.config.benchmark_cells, self.config.watch.images
        if self.benchmark is None or not count:
            return {}
        shared = self._shared(state)
        return measures.ranking(shared, self.benchmark, count, self.space, images, self.seed)

    def _shared(self, state):
        """(mixtures, images or None for all) -> accuracy, by each batch's own statistics."""

        def shared(mixtures, images=None):
            self.session.interruption.check("search: all steps done, its cells not yet derived")
            return self.measures.by_batch(state.params, state.batch_stats, mixtures, limit=images)

        return shared


def _prune_watch(on_prune, noted: prunings.Prunings, space):
    """Builds the watch for `loop.run` that calls on_prune after each step that pruned."""
    if on_prune is None:
        return None

    def watch(record):
        pruned = [(cell, space.edges[e], space.candidates[o]) for cell, e, o in noted.latest]
        return bool(pruned) and bool(on_prune({**record, "pruned": pruned}))

    return watch


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
