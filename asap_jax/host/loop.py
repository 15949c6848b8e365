"""The host's loop around a jitted step: epochs, log, checkpoints, signals, callbacks.

What a resumed run needs beside the state is `Progress`, so a run that is cut and goes on repeats an
uninterrupted one.

The metrics of a step are fetched when the next one is under way, so that a GPU does not wait for
the host between two steps. What a step says of itself, that the search is finished or the loss not
finite, is then known one step late: the state that a stage ends with is that of the step that said
so all the same, and state and progress that are saved belong to one step.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.host.checkpoint import Checkpoints
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interruption
from asap_jax.host.run_log import RunLog


class Callbacks(NamedTuple):
    """Functions of a dict that follow a run; one that returns True ends the stage in good order.

    A search that is ended so derives its cells from what it has learned; a training is tested as
    it is. With on_step or on_prune no step begins before the one before it has been told of.

    on_step: after each step: phase, run, epoch, step (both from 1) and the step's metrics.
    on_epoch: after each epoch, what metrics.jsonl gets.
    on_prune: after a step that pruned: epoch, step, candidates_left and pruned, a list of
      (cell type, (source, target), candidate).
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
    """What a loop has to do with the outside world.

    log: the run's.
    interruption: signals, honoured between two steps.
    saving: None keeps nothing, and an interrupted run starts anew.
    callbacks: the user's.
    """

    log: RunLog
    interruption: Interruption
    saving: Saving | None = None
    callbacks: Callbacks = Callbacks()

    def checkpoints(self, stage: str, identity: dict) -> Checkpoints | None:
        if self.saving is None:
            return None
        folder, *options = self.saving
        return Checkpoints(folder / stage, identity, *options)


@dataclass
class Progress:
    """Where a loop stands.

    epoch: epochs done.
    step: steps done in the epoch that is under way.
    sums: {metric: (sum, count)} over those steps.
    seconds, epoch_seconds: time spent in the stage and in the epoch, over all starts.
    ended: "" while it goes on or ran its epochs; "finished" if the step said so, "stopped" if a
      callback did.
    history: {name: list}, what `summary`, `begin` and `after_epoch` want to look back on.
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
            if not math.isnan(value):  # NaN marks a step that has no such value
                total, count = self.sums.get(key, (0.0, 0))
                self.sums[key] = (total + float(value), count + 1)

    def mean(self, key: str) -> float:
        """Mean of a metric over the epoch's steps that have it; NaN if none has."""
        total, count = self.sums.get(key, (0.0, 0))
        return total / count if count else math.nan

    def next_epoch(self) -> None:
        self.epoch, self.step, self.sums, self.epoch_seconds = self.epoch + 1, 0, {}, 0.0


def run(
    phase: str,
    state: Any,
    step: Callable,
    batches: Callable[[int, int], Iterator[tuple]],
    summary: Callable[[Any, Progress, dict], tuple[dict, str]],
    *,
    epochs: int,
    steps: int,
    session: Session,
    identity: dict,
    index: int = 0,
    stage: int = 0,
    watch: Callable[[Any], Callable[[Any, dict], bool]] | None = None,
    begin: Callable[[Progress], None] | None = None,
    after_epoch: Callable[[Any, Progress, float], None] | None = None,
) -> tuple[Any, Progress]:
    """Runs `step` over the batches of all epochs, from the last checkpoint on if there is one.

    Args:
      phase, index, stage: checkpoints go by "phase-index", records by "phase" and "run"; of a phase
        in stages all but the first are told apart by "-stage" and by "stage" in the records.
      state: as the stage begins.
      step: (state, *batch) -> (state, metrics), metrics a dict of scalars with `train_loss`; a true
        `finished` among them ends the stage, a false `alphas_finite` is an error, and so is a
        `val_loss` of nan where `alphas_learned`. The step after it has begun when its word is
        heard, and may have its state's memory: after `finished` a step changes nothing.
      batches: (epochs, steps of the next one that are done) -> the batches from there to the end
        of the last epoch; closed when the loop ends.
      summary: (state, progress, last metrics) -> (record, line) of an epoch.
      epochs, steps: how long.
      session: log, signals, checkpoints, callbacks.
      identity: what a checkpoint has to belong to.
      watch: the state at this start -> a function that is called after each step with (state,
        record of the step) and says whether to end.
      begin: called with the progress before the first step at this start.
      after_epoch: called with (state, progress, seconds of the epoch's steps) when the epoch is
        recorded and before it is saved; what it notes in `progress.history` is saved with it.

    Returns:
      (state, progress) at the end.

    Raises:
      Interrupted: a signal came, and the state is saved.
      UserError: a loss or a number in the state is not finite, what was saved cannot be read, or it
        is another run's.
    """
    name = f"{phase}-{index}" + (f"-{stage}" if stage else "")
    place = {"phase": phase, "run": index} | ({"stage": stage} if stage else {})
    progress, checkpoints = Progress(), session.checkpoints(name, identity)
    callbacks, interruption = session.callbacks, session.interruption
    under_way = collections.deque()  # (state, metrics) of steps whose metrics are not fetched yet
    metrics: dict = {}  # of the last step that was fetched

    def save_if_need_be(over=False):
        wanted = interruption.wanted  # asked once: a signal may come between two lines
        if checkpoints and (over or wanted or checkpoints.due(done())):
            _check_state(state, phase, progress)
            checkpoints.save(done(), state, asdict(progress))
            if over or wanted:
                checkpoints.settle()
        if wanted:
            interruption.check(
                f"{phase} {index}: {progress.epoch} epochs and {progress.step} of {steps} steps "
                "done"
            )

    def done():
        return progress.epoch * steps + progress.step

    def count(reached, measured):
        """Adds a step to the progress: its state and its metrics, which are waited for here."""
        nonlocal metrics
        metrics = jax.device_get(measured)
        _check_metrics(metrics, phase, progress)
        progress.add(metrics)
        bar.update()
        seen = {**place, "epoch": progress.epoch + 1}
        seen |= {"step": progress.step, **{k: v.item() for k, v in metrics.items()}}
        ends = [callbacks.on_step and callbacks.on_step(seen)]
        ends.append(watcher and watcher(reached, seen))
        if metrics.get("finished"):
            progress.ended = "finished"
        elif any(ends):
            progress.ended = "stopped"
        if progress.ended:
            under_way.clear()  # a step after the end, which changed nothing

    def may_run_ahead():
        """Whether the newest step's metrics can wait until another one is under way."""
        sent = progress.step + len(under_way)
        due = checkpoints and checkpoints.due(done() + len(under_way))
        return not (told or sent == steps or interruption.wanted or due)

    try:
        if checkpoints and (found := checkpoints.latest(state)):
            state, progress = found[0], Progress(**found[1])
            _check_state(state, phase, progress)
            if progress.epoch > epochs:
                part = "selection" if phase == "select" else phase
                raise UserError(
                    f"the {phase} has done {progress.epoch} epochs, and the config asks for "
                    f"{epochs}: raise config.{part}.epochs, or choose another --workdir"
                )
            if progress.epoch < epochs and not progress.ended:
                session.log.say(
                    f"{name} goes on after {progress.epoch} epochs and {progress.step} of "
                    f"{steps} steps"
                )
        session.log.rewind(
            lambda record: (
                {key: record[key] for key in ("phase", "run", "stage") if key in record} != place
                or record["epoch"] <= progress.epoch
            )
        )
        if begin:
            begin(progress)
        watcher, clock = watch and watch(state), _Clock(progress)
        told = callbacks.on_step or watcher  # who may end the run at any step, and is told of it
        coming = contextlib.closing(batches(progress.epoch, progress.step))
        with coming as batch, session.log.bar(phase, epochs * steps, done()) as bar:
            while progress.epoch < epochs and not progress.ended:
                stepping = Stopwatch()
                while progress.step < steps and not progress.ended:
                    if not (under_way and interruption.wanted):
                        state, measured = step(state, *next(batch))
                        under_way.append((state, measured))
                    ahead = may_run_ahead()
                    while len(under_way) > ahead:
                        count(*under_way.popleft())
                    if not under_way and progress.step < steps and not progress.ended:
                        clock.tick()
                        save_if_need_be()
                _check_state(state, phase, progress)
                seconds = stepping.seconds
                record, line = summary(state, progress, metrics)
                clock.tick()
                record = {
                    **place,
                    "epoch": progress.epoch + 1,
                    "steps": progress.step,
                    **record,
                    "seconds": progress.epoch_seconds,
                }
                session.log.epoch(record, f"{line}  {progress.epoch_seconds:.1f} s")
                if callbacks.on_epoch and callbacks.on_epoch(record):
                    progress.ended = progress.ended or "stopped"
                if after_epoch:
                    after_epoch(state, progress, seconds)
                progress.next_epoch()
                save_if_need_be(over=progress.ended or progress.epoch == epochs)
        return state, progress
    finally:
        if checkpoints:
            checkpoints.close()


class Stopwatch:
    """Counts seconds from its making on, but for those spent in `paused`."""

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
    """Raises UserError for a step whose losses or alphas are not finite.

    A `val_loss` that is not a number is that of a step without an alpha step, unless the step says
    otherwise (`alphas_learned`).
    """
    train, val = metrics["train_loss"], metrics.get("val_loss", 0.0)
    if not np.isfinite(train):
        raise _diverged(f"the training loss became {train}", "train_loss", phase, progress)
    if np.isinf(val) or (np.isnan(val) and metrics.get("alphas_learned", False)):
        raise _diverged(f"the loss of the alpha half became {val}", "val_loss", phase, progress)
    if not metrics.get("alphas_finite", True):
        raise _diverged("an alpha is no longer a finite number", "alphas", phase, progress)


def _check_state(state, phase, progress):
    """Raises UserError for a state in which a number is not finite: nothing is made of it."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # On the host: as a program of hundreds of arrays this takes ten seconds to compile.
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
