"""The host loop around a jitted step: epochs, log, checkpoints, signals, callbacks.

`Progress` holds everything beyond the state that is needed to resume, so a resumed run repeats an
uninterrupted one.

The metrics of a step are fetched while the next step is in flight, so that a GPU does not wait for
the host between steps. Whatever a step reports, such as a finished search or a non-finite loss, is
therefore known one step late. The stage still ends with the state of the step that reported it, and
a saved state and its progress always belong to the same step.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.host import checkpoint, processes
from asap_jax.host.checkpoint import Checkpoints
from asap_jax.host.devices import Devices
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interruption
from asap_jax.host.run_log import RunLog


class Callbacks(NamedTuple):
    """User callbacks, each called with a dict; one that returns True ends the stage cleanly.

    A search ended this way derives its cells from what it has learned so far; a training is tested
    as it is. With on_step or on_prune, no step starts before the previous one has been reported.

    on_step: called after each step with phase, run, epoch, step (both from 1) and the metrics.
    on_epoch: called after each epoch with its record, see `RunLog.epoch`.
    on_prune: called after a step that pruned, with epoch, step, candidates_left and pruned, a list
      of (cell type, (source, target), candidate).
    """

    on_step: Callable[[dict], bool | None] | None = None
    on_epoch: Callable[[dict], bool | None] | None = None
    on_prune: Callable[[dict], bool | None] | None = None


class Saving(NamedTuple):
    """Where and how often the state of a loop is saved; see `checkpoint.Checkpoints`."""

    folder: Path
    keep: int = 2
    every_steps: int = 0
    every_seconds: float = 300.0


class Session(NamedTuple):
    """What a loop shares with the rest of the run.

    log: the run's log.
    interruption: signals, handled between two steps.
    saving: None saves nothing, so an interrupted run starts over.
    callbacks: the user's callbacks.
    on_nan: what happens at a loss or state that is not finite: "stop", or "skip" if the steps do.
    devices: those that may share each batch.
    """

    log: RunLog
    interruption: Interruption
    saving: Saving | None = None
    callbacks: Callbacks = Callbacks()
    on_nan: str = "stop"
    devices: Devices = Devices()

    def checkpoints(self, stage: str, identity: dict) -> Checkpoints | None:
        saving = self.saving
        if saving is None:
            return None
        options = saving.keep, saving.every_steps, saving.every_seconds
        return Checkpoints(saving.folder / stage, identity, *options)


@dataclass
class Progress:
    """The position of a loop.

    epoch: epochs completed.
    step: steps completed in the current epoch.
    sums: {metric: (sum, count)} over those steps.
    seconds, epoch_seconds: time spent in the stage and in the current epoch, over all starts.
    ended: "" while running and after the last epoch; "finished" if a step reported it, "stopped" if
      a callback or `summary` did, "budget" if `pace` did.
    history: {name: list}, values that `summary`, `begin` and `after_epoch` keep across epochs.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    ended: str = ""
    history: dict[str, list] = field(default_factory=dict)

    def add(self, metrics: dict) -> None:
        self.step += 1
        for key, value in metrics.items():
            if math.isfinite(value):  # NaN: the step has no such value; else it was skipped
                total, count = self.sums.get(key, (0.0, 0))
                self.sums[key] = (total + float(value), count + 1)

    def mean(self, key: str) -> float:
        """Mean of a metric over the epoch's steps that have it; NaN if none does."""
        total, count = self.sums.get(key, (0.0, 0))
        return total / count if count else math.nan

    def next_epoch(self) -> None:
        self.epoch, self.step, self.sums, self.epoch_seconds = self.epoch + 1, 0, {}, 0.0


class Pace(Protocol):
    """What ends the epochs of a stage before they have all their steps, see `searching.pace`.

    last: the epoch with which the stage is expected to end, counted from 1.
    """

    last: int

    def begin(self, state: Any, progress: Progress) -> Any:
        """Before the first step of an epoch, or of the rest of one: the state to go on with."""
        ...

    def over(self, state: Any, progress: Progress) -> tuple[bool, Any]:
        """After a step: whether the epoch is over, and the state to go on with."""
        ...

    def close(self, progress: Progress) -> None:
        """After the last step of an epoch; may set `progress.ended`."""
        ...

    def forward(self, state: Any, progress: Progress) -> Any:
        """When an epoch has ended: the state as of the first step of the next one."""
        ...


def run(
    phase: str,
    state: Any,
    step: Callable,
    batches: Callable[[int, int], Generator[tuple, None, None]],
    summary: Callable[[Any, Progress, dict], dict],
    *,
    epochs: int,
    steps: int,
    session: Session,
    identity: dict,
    index: int = 0,
    stage: int = 0,
    note: Callable[[Progress, dict], None] | None = None,
    watch: Callable[[dict], bool] | None = None,
    begin: Callable[[Progress], None] | None = None,
    after_epoch: Callable[[Any, Progress, float], None] | None = None,
    rate: Callable[[Any], Any] | None = None,
    pace: Pace | None = None,
) -> tuple[Any, Progress]:
    """Runs `step` over the batches of all epochs, resuming from the last checkpoint if any.

    Args:
      phase, index, stage: checkpoints are named "phase-index", records hold "phase" and "run". From
        the second stage of a phase on, the name ends in "-stage" and records hold "stage".
      state: the state at the start of the stage.
      step: (state, *batch) -> (state, metrics), with metrics a dict of scalars including
        `train_loss`. A true `finished` ends the stage; a false `alphas_finite` is an error, and so
        is a NaN `val_loss` where `alphas_learned`. When these are read, the next step may be in
        flight with the state donated to it, so a step after `finished` must not change anything.
      batches: (epochs done, steps done in the next one) -> the remaining batches up to the end of
        the last epoch; closed when the loop ends.
      summary: (state, progress, last metrics) -> record of an epoch, see `RunLog.epoch`.
      epochs, steps: number of epochs, and of steps per epoch.
      session: log, signals, checkpoints, callbacks.
      identity: identity that a checkpoint must match.
      note: called with (progress before a step, metrics of the step); takes out of the metrics
        what is no scalar, and may keep it in `progress.history`.
      watch: called with the record of each step, after `note`; returns whether to end.
      begin: called with the progress before the first step after each start.
      after_epoch: called with (state, progress, seconds of the epoch's steps) after the epoch is
        logged and before it is saved; what it adds to `progress.history` is saved too.
      rate: step -> learning rate, to report where the stage diverges.
      pace: ends epochs early, so that `steps` is what they have at most; `batches` is then called
        for each epoch. None for whole epochs.

    Returns:
      The final (state, progress).

    Raises:
      Interrupted: a signal arrived; the state is saved if `session.saving` is set.
      UserError: a loss or the state is not finite (diverged.json in the workdir then has the step,
        its metrics, learning rate and batch), or all steps of an epoch were skipped for that; or
        the checkpoint is unreadable, belongs to another run or has more than `epochs` epochs.
    """
    name = f"{phase}-{index}" + (f"-{stage}" if stage else "")
    place = {"phase": phase, "run": index} | ({"stage": stage} if stage else {})
    progress, checkpoints = Progress(), session.checkpoints(name, identity)
    callbacks, interruption = session.callbacks, session.interruption
    wishes = _Wishes(interruption, checkpoints, session.devices)
    observed = callbacks.on_step or watch  # may end the run at any step: nothing runs ahead
    under_way = collections.deque()  # (metrics, batch) of the steps in flight
    metrics: dict = {}  # of the last step fetched
    last = steps  # of the steps of the current epoch
    on_end = contextlib.ExitStack()
    if checkpoints:
        on_end.callback(checkpoints.close)

    def save_if_need_be(over=False):
        stop = wishes.stop  # read once: a signal may arrive between two lines
        if checkpoints and (over or stop or wishes.save(done())):
            _check_state(state, phase, progress)
            checkpoints.save(done(), state, asdict(progress))
            if over or stop:
                checkpoints.settle()
        wishes.saved()
        if stop:
            interruption.check(
                f"{phase} {index}: {progress.epoch} epochs and {progress.step}"
                f"{'' if pace else f' of {steps}'} steps done"
            )

    def done():
        return progress.epoch * steps + progress.step

    def count(measured, operands):
        """Fetches a step's metrics, waiting for them, and adds the step to the progress."""
        nonlocal metrics
        metrics = wishes.counted(jax.device_get(measured))
        if note:
            note(progress, metrics)
        try:
            _check_metrics(metrics, phase, progress)
        except UserError as error:
            where = {**place, "epoch": progress.epoch + 1, "step": progress.step + 1}
            if rate:
                where["learning_rate"] = float(rate(done()))
            where |= {key: value.item() for key, value in metrics.items()}
            kept = session.log.keep_divergence(where, operands)
            told = f" ({kept} has the step, its learning rate and its images)" if kept else ""
            raise UserError(f"{error}{told}") from error
        progress.add(metrics)
        bar.update()
        seen = {**place, "epoch": progress.epoch + 1}
        seen |= {"step": progress.step, **{k: v.item() for k, v in metrics.items()}}
        ends = [callbacks.on_step and callbacks.on_step(seen)]
        ends.append(watch and watch(seen))
        if metrics.get("finished"):
            progress.ended = "finished"
        elif observed and processes.agreed(any(ends)):
            progress.ended = "stopped"
        if progress.ended:
            under_way.clear()  # a step after the end, which changed nothing

    def may_run_ahead():
        """Whether the newest step may stay in flight while the next one starts."""
        sent = progress.step + len(under_way)
        save = wishes.save(done() + len(under_way))
        return not (observed or sent == last or wishes.stop or save)

    try:
        found = checkpoints and checkpoints.latest(state)
        for passed_over in checkpoints.passed_over if checkpoints else ():
            session.log.warn(passed_over)
        if found := checkpoint.shared(found, state):
            state, progress = found[0], Progress(**found[1])
            _check_state(state, phase, progress)
            if progress.epoch > epochs:
                part = "selection" if phase == "select" else phase
                raise UserError(
                    f"the {phase} has done {progress.epoch} epochs, and the config asks for "
                    f"{epochs}: raise config.{part}.epochs, or choose another --workdir"
                )
            if progress.epoch < epochs and not progress.ended:
                of = "" if pace else f" of {steps}"
                session.log.say(
                    f"{name} goes on after {progress.epoch} epochs and {progress.step}{of} steps"
                )
        session.log.rewind(place, progress.epoch)
        if begin:
            begin(progress)
        clock = _Clock(progress)
        batch = batches(progress.epoch, progress.step)
        on_end.callback(lambda: batch.close())
        total = None if pace else epochs * steps
        with session.log.bar(phase, total, done()) as bar:
            while progress.epoch < epochs and not progress.ended:
                stepping, last, first = Stopwatch(), steps, progress.step
                if pace:
                    state = pace.begin(state, progress)
                while progress.step < last and not progress.ended:
                    if pace and last == steps and progress.step > first:
                        clock.tick()
                        over, state = pace.over(state, progress)
                        if over:
                            last = progress.step + len(under_way)
                    sent = progress.step + len(under_way)
                    if sent < last and not (under_way and wishes.stop):
                        operands = next(batch)
                        state, measured = step(state, *operands)
                        measured = wishes.sent(measured, done() + len(under_way) + 1)
                        under_way.append((measured, operands))
                    ahead = may_run_ahead()
                    while len(under_way) > ahead:
                        count(*under_way.popleft())
                    if not under_way and progress.step < last and not progress.ended:
                        clock.tick()
                        save_if_need_be()
                _check_state(state, phase, progress)
                seconds = stepping.seconds
                clock.tick()
                if pace:
                    pace.close(progress)
                record = summary(state, progress, metrics)
                if "skipped" in metrics:
                    record["skipped"] = _skipped(phase, progress, may_be_all=pace is not None)
                clock.tick()
                record = {
                    **place,
                    "epoch": progress.epoch + 1,
                    "epochs": _expected_epochs(pace, progress, epochs),
                    "steps": progress.step,
                    **record,
                    "seconds": progress.epoch_seconds,
                }
                session.log.epoch(record)
                if callbacks.on_epoch and processes.agreed(bool(callbacks.on_epoch(record))):
                    progress.ended = progress.ended or "stopped"
                if after_epoch:
                    after_epoch(state, progress, seconds)
                progress.next_epoch()
                if pace:
                    state = pace.forward(state, progress)
                    batch.close()
                    batch = batches(progress.epoch, 0)
                save_if_need_be(over=bool(progress.ended) or progress.epoch == epochs)
        return state, progress
    finally:
        on_end.close()


def _expected_epochs(pace: Pace | None, progress, epochs: int) -> int:
    """How many epochs the stage will have had, as of the end of one that `progress` lacks."""
    if pace is None:
        return epochs
    done = progress.epoch + 1
    return done if progress.ended else max(pace.last, min(done + 1, epochs))


class _Wishes:
    """Whether to stop, and whether to save, between two steps.

    Several processes have to do both after the same step, and to have sent the same steps by then.
    So each sends its wishes along with a step; they hold once that step is counted, for all.
    """

    _NAME = "wishes"  # among a step's metrics

    def __init__(self, interruption, checkpoints: Checkpoints | None, devices: Devices):
        self._interruption, self._checkpoints = interruption, checkpoints
        self._stop, self._save = False, False
        self._any = None if processes.alone() else devices.any_of

    @property
    def stop(self) -> bool:
        return self._stop if self._any else self._interruption.wanted

    def save(self, step: int) -> bool:
        """Whether to save after `step` steps of the stage."""
        return self._save if self._any else self._due(step)

    def saved(self) -> None:
        self._save = False

    def sent(self, metrics: dict, step: int) -> dict:
        """The metrics of a step that was sent, the stage's `step`th."""
        if self._any is None:
            return metrics
        return metrics | {self._NAME: self._any(self._interruption.wanted, self._due(step))}

    def counted(self, metrics: dict) -> dict:
        """The metrics of the step, without the wishes sent along with it."""
        if self._any is not None:
            stop, save = metrics.pop(self._NAME)
            self._stop, self._save = self._stop or bool(stop), self._save or bool(save)
        return metrics

    def _due(self, step: int) -> bool:
        return bool(self._checkpoints and self._checkpoints.due(step))


class Stopwatch:
    """Counts seconds since its creation, except those spent in `paused`."""

    def __init__(self):
        self._began, self._paused = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began - self._paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - begin


class _Clock:
    """Adds the time since the last tick to the progress."""

    def __init__(self, progress):
        self._progress, self._last = progress, time.monotonic()

    def tick(self):
        now = time.monotonic()
        self._progress.seconds += now - self._last
        self._progress.epoch_seconds += now - self._last
        self._last = now


def _check_metrics(metrics, phase, progress):
    """Raises UserError if a step's losses or alphas are not finite.

    A NaN `val_loss` marks a step without an alpha update, unless the step reports
    `alphas_learned`. A step that reports `skipped` changed nothing, and its losses do not count.
    """
    if metrics.get("skipped"):
        return
    train, val = metrics["train_loss"], metrics.get("val_loss", 0.0)
    if not np.isfinite(train):
        raise _diverged(f"the training loss became {train}", "train_loss", phase, progress)
    if np.isinf(val) or (np.isnan(val) and metrics.get("alphas_learned", False)):
        raise _diverged(f"the loss of the alpha half became {val}", "val_loss", phase, progress)
    if not metrics.get("alphas_finite", True):
        raise _diverged("an alpha is no longer a finite number", "alphas", phase, progress)


def _skipped(phase, progress, may_be_all: bool) -> int:
    """How many steps of the epoch were skipped; UserError if all were and may not be."""
    count = round(progress.sums["skipped"][0])
    if count >= progress.step and not may_be_all:
        raise _diverged("no step gave finite numbers", "train_loss", phase, progress)
    return count


def _check_state(state, phase, progress):
    """Raises UserError if the state holds a non-finite number, before it is used any further."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # On the host: as one program over hundreds of arrays, this takes ten seconds to compile.
    if not all(np.isfinite(leaf).all() for leaf in jax.device_get(floats)):
        raise _diverged("a weight or a statistic became infinite or nan", "state", phase, progress)


def _diverged(what, sign, phase, progress) -> UserError:
    lower = "config.train.learning_rate, in another --workdir"
    if phase == "fine-tune":
        lower = "learning_rate"
    if phase == "search":
        lower = "config.search.omega.learning_rate"
        if sign in ("val_loss", "alphas"):
            lower += " or config.search.alpha.learning_rate"
        lower += ", in another --workdir"
    return UserError(f"{what} in epoch {progress.epoch + 1} of the {phase}: lower {lower}")
