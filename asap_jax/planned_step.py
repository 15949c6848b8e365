"""The jitted step of a search on the host: data on the device, and compiled as its plan asks."""

import time
from concurrent.futures import Future
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import compile_cache, plans, precisions
from asap_jax.compiling import Compiler, shapes_of
from asap_jax.data.augment import Augmentation, augment
from asap_jax.passes import Parts, Pass, in_turn, of_programs, program
from asap_jax.search_step import Batch, SearchState, SearchStep, step_keys

WORTH = 1.0  # seconds that compiling anew has to save for each second it takes


class PlannedStep:
    """The jitted step of a stage, compiled anew where its plan and the pruned masks call for it.

    By the plan "unrolled" its passes are programs of their own (`SearchStep.passes`), without a
    condition in any: what trains omega, what trains the alphas, what closes the step. They are
    compiled side by side, and those for fewer candidates while the search goes on with the wider
    ones.

    The state's memory is given to the next one: on a GPU a step's kernels are then started as one
    graph, which holds as long as all arrays lie where they lay. The loop asks for a step while it
    does not know yet what the last one said; one that follows "finished" changes nothing.

    The live candidates that it computes stand in `Progress.history`, so that a search that goes on
    computes as it did before.
    """

    def __init__(self, stage, class_weights, compiler: Compiler):
        self._stage, self._class_weights, self._compiler = stage, class_weights, compiler
        self._plan, self._coming, self._shapes = stage.network.plan, None, None
        self._programs: dict[str, Future] = {}  # by the names of passes
        self._step, self._refused = 0, False
        self._over = np.bool_(False)  # what the last step said: whether the search is finished
        self._began, self._waited = None, 0.0  # of the epoch; seconds of it that compiling took

    def follow(self, progress) -> None:
        """Takes the plan that the search's history tells of, or notes its own there."""
        name, live = progress.history.setdefault("plan", [self._plan.name, None])
        self._plan = plans.Plan(name, live and plans.freeze(live))
        self._step = progress.epoch * self._stage.steps + progress.step

    def prepare(self, state) -> None:
        """Begins to compile the programs that are needed, for this state's shapes."""
        held, batch = self._stage.held, np.zeros(self._stage.config.batch_size, int)
        self._shapes = shapes_of((state, np.bool_(False), held.images, held.labels, batch, batch))
        self._programs = self._compile(self._plan)

    def __call__(self, state, *indices):
        operands = (self._stage.held.images, self._stage.held.labels, *indices)
        begin = time.monotonic()
        self._began = self._began or begin
        passes = self.passes(self._plan)[self._learns[self._step]]
        programs = [(each, self._programs[each.name].result().run) for each in passes]
        self._waited += time.monotonic() - begin
        self._step += 1
        state, metrics = of_programs(programs)(state, self._over, *operands)
        self._over = metrics["finished"]
        return state, metrics

    @cached_property
    def _learns(self) -> list[bool]:
        """Of each step, whether the alphas learn in it."""
        steps = np.arange(self._stage.epochs * self._stage.steps, dtype=np.int32)
        learns = jax.jit(jax.vmap(self._stage.strategy.learns))(jnp.asarray(steps))
        return np.asarray(learns).tolist()

    def passes(self, plan) -> dict[bool, tuple[Pass, ...]]:
        """What a step consists of, by whether the alphas learn."""
        stage = self._stage
        step = SearchStep(
            stage.network.clone(plan=plan),
            stage.strategy,
            stage.optimizers,
            class_weights=self._class_weights,
            dtype=precisions.map_dtype(stage.config.precision),
            constraint=stage.constraint,
            drop_path=stage.config.drop_path,
        )
        if plan.name == "unrolled":
            return {learns: step.passes(learns) for learns in (False, True)}
        whole = Pass("step", SearchState.CHANGING, in_turn(step.passes()))
        return dict.fromkeys((False, True), (whole,))

    def _compile(self, plan) -> dict[str, Future]:
        """Has the programs compiled that are still to come, those for the next step first."""
        passes = self.passes(plan)
        needed = dict.fromkeys(self._learns[self._step :])
        wanted = {each.name: each for learns in needed for each in passes[learns]}
        state, *operands = self._shapes
        return {
            name: self._compiler.submit(self.jitted(each), *Parts.of(state, each), *operands)
            for name, each in wanted.items()
        }

    def jitted(self, each: Pass):
        """A pass as a `passes.program`, jitted; its operands are images, labels, and the
        indices of both batches."""
        stage, augmentation = self._stage, self._stage.config.augmentation
        mean, std = stage.dataset.mean, stage.dataset.std
        run = precisions.computed_in(stage.config.precision, each.run)
        run = _with_data(run, Augmentation(mean, std, augmentation.pad, augmentation.flip))
        options = compile_cache.options()
        return jax.jit(program(each._replace(run=run)), donate_argnums=0, compiler_options=options)

    def lap(self) -> float:
        """Seconds since the epoch's first step began, without what compiling took."""
        seconds = time.monotonic() - (self._began or time.monotonic()) - self._waited
        self._began, self._waited = None, 0.0
        return seconds

    def consider(self, state, progress, seconds) -> None:
        """After an epoch of so many seconds: leaves dead candidates out if it should be worth it.

        Programs that have been compiled are taken from the next step on; where compiling failed, as
        for want of memory, the search goes on with those that it has.
        """
        over = progress.ended or self._step >= len(self._learns)
        if over or self._plan.name != "unrolled" or self._refused:
            return
        say = self._stage.session.log.say
        if self._coming is not None:
            plan, programs = self._coming
            if not all(program.done() for program in programs.values()):
                return
            self._coming = None
            failures = [each.exception() for each in programs.values() if each.exception()]
            if failures:
                self._refused = True
                say(f"going on with the step for all candidates: {failures[0]}")
                return
            self._plan, self._programs = plan, programs
            live = {cell: [list(row) for row in rows] for cell, rows in plan.live}
            progress.history["plan"] = [plan.name, live]
            return
        stage, masks = self._stage, jax.device_get(state.arch.masks)
        computed = dict(self._plan.live or plans.freeze(jax.tree.map(np.ones_like, masks)))
        share = plans.cost(masks, stage.space) / plans.cost(computed, stage.space)
        remaining = (stage.epochs - progress.epoch - 1) * seconds
        took = max(each.result().seconds for each in self._programs.values() if each.done())
        if (1 - share) * remaining > WORTH * took:
            left = sum(mask.sum() for mask in masks.values())
            say(f"compiling the search step for the {left} candidates that are left")
            plan = plans.Plan(self._plan.name, plans.freeze(masks))
            self._coming = plan, self._compile(plan)


def _with_data(run, augmentation):
    """The pass that takes the batches out of the data on the device and augments them."""

    def with_data(state, images, labels, omega_indices, alpha_indices):
        keys = step_keys(state.key, state.step)

        def batch(indices, key):
            return Batch(augment(images[indices], augmentation, key), labels[indices])

        train = batch(omega_indices, keys.augment_train)
        return run(state, train, batch(alpha_indices, keys.augment_val))

    return with_data
