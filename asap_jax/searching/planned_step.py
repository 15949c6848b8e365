"""The jitted search step on the host: data on the device, compiled as its plan requires."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.data.augment import Augmentation
from asap_jax.host import compile_cache, precisions, processes
from asap_jax.host.compiling import Compiler, shapes_of
from asap_jax.host.devices import Devices
from asap_jax.networks import plans
from asap_jax.searching import prunings
from asap_jax.searching.passes import Pass, SplitState, chained, of_programs, program
from asap_jax.searching.search_step import SearchState, SearchStep, step_keys
from asap_jax.training import feed, guard

WORTH = 1.0  # seconds that recompiling must save per second it takes


class PlannedStep:
    """The jitted step of a stage, recompiled where its plan and the pruned masks make it pay.

    Under the plan "unrolled" its passes (`SearchStep.passes`) are separate programs without
    conditionals: the update of omega, the update of the alphas, the end of the step. They are
    compiled in parallel; programs for fewer candidates compile while the search continues with the
    wider ones.

    The state is donated to the next step. On a GPU the kernels of a step are then launched as one
    graph (over several devices, in pieces between their exchanges), which stays valid as long as
    all arrays keep their addresses. The loop requests a step
    before it knows what the last one reported; a step after "finished" changes nothing.

    The live candidates that it computes are kept in `Progress.history`, so that a resumed search
    computes exactly what it did before.
    """

    def __init__(
        self,
        step: SearchStep,
        augmentation: Augmentation,
        images: jax.Array,
        labels: jax.Array,
        *,
        batch_size: int,
        epochs: int,
        steps_per_epoch: int,
        precision: str,
        compiler: Compiler,
        say: Callable[[str], None],
        skips_nan: bool = False,
        devices: Devices = Devices(),
    ):
        self._step, self._augmentation, self._data = step, augmentation, (images, labels)
        self._batch_size, self._epochs, self._steps = batch_size, epochs, steps_per_epoch
        self._precision, self._compiler, self._say = precision, compiler, say
        self._skips_nan, self._devices = skips_nan, devices
        self._plan = step.network.plan
        self._coming: tuple[plans.Plan, dict[str, Future]] | None = None
        self._shapes: tuple = ()  # of the operands, see `prepare`
        self._programs: dict[str, Future] = {}  # by pass name
        self._done, self._refused = 0, False  # `_done` counts steps
        self._over = np.bool_(False)  # whether the search is finished, as the last step reported
        self._waited = 0.0  # seconds of the epoch spent waiting for compilation

    def follow(self, progress) -> None:
        """Restores the plan from the search's history, or records its own there."""
        name, live = progress.history.setdefault("plan", [self._plan.name, None])
        self._plan = plans.Plan(name, live and plans.freeze(live))
        self._done = progress.epoch * self._steps + progress.step

    def prepare(self, state) -> None:
        """Starts compiling the required programs for this state's shapes."""
        batch = np.zeros(self._batch_size, int)
        self._shapes = shapes_of((state, np.bool_(False), *self._data, batch, batch))
        self._programs = self._compile(self._plan)

    def __call__(self, state, *indices):
        begin = time.monotonic()
        passes = passes_by_plan(self._step, self._plan)[bool(self._learns[self._done])]
        programs = [(each, self._programs[each.name].result().run) for each in passes]
        self._waited += time.monotonic() - begin
        self._done += 1
        state, metrics = of_programs(programs)(state, self._over, *self._data, *indices)
        self._over = metrics["finished"]
        return state, metrics

    def kinds(self) -> dict[bool, tuple[int, int]]:
        """{whether the alphas learn in a step: (the first such step, number of such steps)}."""
        return {
            learns: (int(np.argmax(self._learns == learns)), int((self._learns == learns).sum()))
            for learns in self._kinds_from(0)
        }

    def go_to(self, number: int) -> None:
        """Makes the step with this number the next one."""
        self._done = number

    def wait(self) -> None:
        """Waits until the programs are compiled."""
        for each in self._programs.values():
            each.result()

    def _kinds_from(self, number: int) -> list[bool]:
        """Whether the alphas learn in this step, and in a later one if that differs."""
        learns = self._learns[number:]
        if not learns.size:
            return []
        first = bool(learns[0])
        return [first] if (learns == first).all() else [first, not first]

    @cached_property
    def _learns(self) -> np.ndarray:
        """For each step, [epochs * steps], whether the alphas learn in it."""
        steps = np.arange(self._epochs * self._steps, dtype=np.int32)
        learns = jax.jit(jax.vmap(self._step.strategy.learns))(jnp.asarray(steps))
        return np.asarray(learns)

    def _compile(self, plan) -> dict[str, Future]:
        """Submits the programs that are still needed for compilation, the next step's first."""
        passes = passes_by_plan(self._step, plan)
        needed = self._kinds_from(self._done)
        wanted = {each.name: each for learns in needed for each in passes[learns]}
        state, *operands = self._shapes
        return {
            name: self._compiler.submit(
                jit_pass(each, self._augmentation, self._precision, self._skips_nan, self._devices),
                *SplitState.of(state, each),
                *operands,
            )
            for name, each in wanted.items()
        }

    def consider(self, state, progress, seconds: float) -> None:
        """After an epoch whose steps took `seconds`, drops dead candidates where that pays off.

        Compiled programs are used from the next step on. If compilation fails, for example for lack
        of memory, the search continues with the programs it has.
        """
        seconds, self._waited = seconds - self._waited, 0.0
        over = progress.ended or self._done >= len(self._learns)
        if over or self._plan.name != "unrolled" or self._refused:
            return
        if self._coming is not None:
            plan, programs = self._coming
            if processes.largest(not all(program.done() for program in programs.values())):
                return
            self._coming = None
            failures = [each.exception() for each in programs.values() if each.exception()]
            if processes.largest(len(failures)):
                self._refused = True
                why = failures[0] if failures else "another process could not compile another"
                self._say(f"going on with the step for all candidates: {why}")
                return
            self._plan, self._programs = plan, programs
            assert plan.live is not None  # this method names the candidates of each plan it makes
            live = {cell: [list(row) for row in rows] for cell, rows in plan.live}
            progress.history["plan"] = [plan.name, live]
            return
        space, masks = self._step.network.space, jax.device_get(state.arch.masks)
        computed = dict(self._plan.live or plans.freeze(jax.tree.map(np.ones_like, masks)))
        share = plans.cost(masks, space) / plans.cost(computed, space)
        remaining = (self._epochs - progress.epoch - 1) * seconds
        took = max(each.result().seconds for each in self._programs.values() if each.done())
        if processes.agreed(bool((1 - share) * remaining > WORTH * took)):
            left = sum(mask.sum() for mask in masks.values())
            self._say(f"compiling the search step for the {left} candidates that are left")
            plan = plans.Plan(self._plan.name, plans.freeze(masks))
            self._coming = plan, self._compile(plan)


def passes_by_plan(step: SearchStep, plan: plans.Plan) -> dict[bool, tuple[Pass, ...]]:
    """The passes of a step under this plan: {whether the alphas learn in it: passes}."""
    step = replace(step, network=step.network.clone(plan=plan))
    if plan.name == "unrolled":
        return {learns: step.passes(learns) for learns in (False, True)}
    whole = Pass("step", SearchState.CHANGING, chained(step.passes()))
    return dict.fromkeys((False, True), (whole,))


def jit_pass(
    each: Pass,
    augmentation: Augmentation,
    precision: str,
    skips_nan: bool = False,
    devices: Devices = Devices(),
):
    """Jits a pass as a `passes.program` over the devices, with `guard.skipping` if `skips_nan`.

    The operands are all images and labels, and the indices of the omega and the alpha batch.
    """
    if skips_nan:
        each = each._replace(run=guard.skipping(each.run, each.changes))
    run = precisions.computed_in(precision, _with_masks(each.run))
    run = feed.indexed(feed.augmented(run, augmentation, _augmentation_keys, devices))
    return jax.jit(
        program(each._replace(run=run)),
        donate_argnums=0,
        out_shardings=devices.whole,
        compiler_options=compile_cache.options() | devices.options,
    )


def _with_masks(run):
    """The pass with the masks beside the number of candidates left, for `prunings.Prunings`."""

    def reporting(state, *batches):
        state, metrics = run(state, *batches)
        if "candidates_left" in metrics:
            # As another type, hence in buffers of their own, which no later step is donated.
            copies = {cell: mask.astype(jnp.int8) for cell, mask in state.arch.masks.items()}
            metrics = {**metrics, prunings.METRIC: copies}
        return state, metrics

    return reporting


def _augmentation_keys(state):
    """The keys of the omega batch and of the alpha batch."""
    keys = step_keys(state.key, state.step)
    return keys.augment_train, keys.augment_val
