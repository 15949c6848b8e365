"""The jitted step of a search on the host: data on the device, and compiled as its plan asks."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import compile_cache, plans, precisions
from asap_jax.data.augment import Augmentation, augment
from asap_jax.search_step import Batch, make_search_step, step_keys

WORTH = 1.0  # seconds that compiling anew has to save for each second it takes


class _Program(NamedTuple):
    """A compiled step.

    run: (state, images, labels, indices of both batches) -> (state, metrics).
    seconds: what tracing and compiling took.
    """

    run: object
    seconds: float


class PlannedStep:
    """The jitted step of a stage, compiled anew where its plan and the pruned masks call for it.

    By the plan "unrolled" a step that trains omega alone and one that trains the alphas as well are
    two programs, without a condition in either. They are compiled side by side when the first step
    is taken, and the one for fewer candidates while the search goes on with the wider.

    The live candidates that it computes stand in `Progress.history`, so that a search that goes on
    computes as it did before.
    """

    def __init__(self, stage, class_weights):
        self._stage, self._class_weights = stage, class_weights
        self._plan, self._coming, self._shapes = stage.network.plan, None, None
        self._programs: dict[tuple, Future] = {}  # (plan, whether the alphas learn)
        self._compiler = ThreadPoolExecutor(2)
        self._step = 0
        self._began, self._waited = None, 0.0  # of the epoch; seconds of it that compiling took

    def follow(self, progress) -> None:
        """Takes the plan that the search's history tells of, or notes its own there."""
        name, live = progress.history.setdefault("plan", [self._plan.name, None])
        self._plan = plans.Plan(name, live and plans.freeze(live))
        self._step = progress.epoch * self._stage.steps + progress.step

    def __call__(self, state, *indices):
        held = self._stage.held
        operands = (state, held.images, held.labels, *indices)
        begin = time.monotonic()
        self._began = self._began or begin
        if self._shapes is None:
            self._shapes = jax.eval_shape(lambda *operands: operands, *operands)
            self._compile(self._plan)
        program = self._programs[self._plan, self._learns[self._step]].result()
        self._waited += time.monotonic() - begin
        self._step += 1
        return program.run(*operands)

    @cached_property
    def _learns(self) -> list[bool | None]:
        """Of each step, whether the alphas learn in it; None where the step asks itself."""
        steps = np.arange(self._stage.epochs * self._stage.steps, dtype=np.int32)
        if self._plan.name != "unrolled":
            return [None] * len(steps)
        learns = jax.jit(jax.vmap(self._stage.strategy.learns))(jnp.asarray(steps))
        return np.asarray(learns).tolist()

    def _compile(self, plan) -> list[Future]:
        """Has the programs compiled that are still to come, the one for the next step first."""
        needed = dict.fromkeys(self._learns[self._step :])
        for learns in needed:
            begin = time.monotonic()
            lowered = self._lowered(plan, learns)

            def finish(lowered=lowered, begin=begin):
                return _Program(lowered.compile(), time.monotonic() - begin)

            self._programs[plan, learns] = self._compiler.submit(finish)
        return [self._programs[plan, learns] for learns in needed]

    def _lowered(self, plan, learns):
        stage, augmentation = self._stage, self._stage.config.augmentation
        step = make_search_step(
            stage.network.clone(plan=plan),
            stage.strategy,
            stage.optimizers,
            class_weights=self._class_weights,
            dtype=precisions.map_dtype(stage.config.precision),
            learns=learns,
        )
        mean, std = stage.dataset.mean, stage.dataset.std
        step = precisions.computed_in(stage.config.precision, step)
        jitted = _with_data(step, Augmentation(mean, std, augmentation.pad, augmentation.flip))
        return jitted.lower(*self._shapes)

    def consider(self, state, progress) -> None:
        """After an epoch: leaves dead candidates out if that is expected to be worth it.

        A program that has been compiled is taken from the next step on.
        """
        seconds = time.monotonic() - (self._began or 0) - self._waited
        self._began, self._waited = None, 0.0
        if self._plan.name != "unrolled" or self._step >= len(self._learns):
            return
        if self._coming is not None:
            plan, programs = self._coming
            if all(program.done() for program in programs):
                self._plan, self._coming = plan, None
                live = {cell: [list(row) for row in rows] for cell, rows in plan.live}
                progress.history["plan"] = [plan.name, live]
            return
        stage, masks = self._stage, jax.device_get(state.arch.masks)
        computed = dict(self._plan.live or plans.freeze(jax.tree.map(np.ones_like, masks)))
        share = plans.cost(masks, stage.space) / plans.cost(computed, stage.space)
        remaining = (stage.epochs - progress.epoch - 1) * seconds
        took = self._programs[self._plan, self._learns[self._step]].result().seconds
        if (1 - share) * remaining > WORTH * took:
            stage.session.log.say(
                f"compiling the search step for the {sum(mask.sum() for mask in masks.values())} "
                "candidates that are left"
            )
            plan = plans.Plan(self._plan.name, plans.freeze(masks))
            self._coming = plan, self._compile(plan)


def _with_data(step, augmentation):
    """The jitted step that takes the batches out of the data on the device and augments them.

    It donates nothing: when a step says that the search is finished, the one after it has begun,
    and the search ends with the state between them.
    """

    def run(state, images, labels, omega_indices, alpha_indices):
        keys = step_keys(state.key, state.step)

        def batch(indices, key):
            return Batch(augment(images[indices], augmentation, key), labels[indices])

        train = batch(omega_indices, keys.augment_train)
        return step(state, train, batch(alpha_indices, keys.augment_val))

    return jax.jit(run, compiler_options=compile_cache.options())
