"""Fits the annealing to a time: how many steps each epoch of a search has.

Everything that a strategy schedules is a function of the epoch (t in the paper): temperature,
threshold, learning rates. A search with a budget keeps its epochs and changes how long they are: as
long as their share of the time that is left. Steps that become faster as candidates leave give
later epochs more of them.

An epoch of ten times the steps would move the alphas ten times as far, and decide all edges at a
high temperature. If an epoch will have more steps than without a budget, their learning rate is
therefore divided by that ratio: the alphas go as far per epoch, on the evidence of more batches.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asap_jax.host.loop import Progress
from asap_jax.methods import Strategy

BEYOND = 1.5  # epochs that a search whose edges are undecided may have, per epoch of the config
AIM = 0.97  # of the budget; the rest is for a search whose edges are undecided by then
LIMIT = 1.08  # of the budget, at which a search ends, decided or not
NUMBERS = 2**22  # step numbers of a stage, whatever its budget: they are compiled in
TIMED = 3  # steps that tell how long one takes, before which the alphas of a first epoch rest

LENGTHS = "epoch_steps"  # key of `Progress.history`: the steps of each epoch


class PacedState(NamedTuple):
    """State of `paced`: the factor of the updates, and the state of the optimizer."""

    pace: jax.Array
    inner: Any


def paced(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with updates times a factor in its state, which the host may change."""

    def init(params):
        return PacedState(jnp.float32(0), optimizer.init(params))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.inner, params)
        return jax.tree.map(lambda u: u * state.pace, updates), PacedState(state.pace, inner)

    return optax.GradientTransformation(init, update)


def numbers(epochs: int) -> int:
    """Step numbers of an epoch, of which it uses as many as it has time for."""
    return max(1, NUMBERS // math.ceil(BEYOND * epochs))


class Pace:
    """When the epochs of a stage end, for `loop.run`.

    An epoch has `steps` step numbers, uses the first few of them, and the state then goes on with
    the first number of the next epoch (`forward`).

    A search that ends once its edges are decided may do so before the last epoch. When that will be
    is estimated before each epoch: the alphas go on as they moved in the epoch before, and the
    first epoch whose temperature would then decide all edges is the one to end with. The time that
    is left is divided over the epochs until there. A search that is undecided when the time is up
    goes on with epochs of one step, in which the temperature falls, until it is decided.

    Attributes:
      epochs: of the stage at most.
      last: the epoch with which the stage is expected to end, counted from 1.
      moved: called with the number of the step that is next when an epoch has ended.
    """

    def __init__(self, seconds: float, strategy: Strategy, epochs: int, steps: int, whole: int):
        """Makes the pace of a stage.

        Args:
          seconds: the stage's share of the budget.
          strategy: of the stage.
          epochs: those that the config asks for.
          steps: step numbers of an epoch, see `numbers`.
          whole: steps of an epoch without a budget.
        """
        ends_itself = strategy.finished is not Strategy._field_defaults["finished"]
        self._seconds, self._strategy, self._asked = seconds, strategy, epochs
        self._steps, self._whole = steps, whole
        self.epochs = math.ceil(BEYOND * epochs) if ends_itself else epochs
        self.last = epochs
        self.moved: Callable[[int], None] = lambda number: None
        self._decided = jax.jit(self._epoch_of_decision) if ends_itself else None
        self._deadline: float | None = None  # seconds of the stage at which the epoch is over
        self._before: Any = None  # the alphas at the begin of the epoch before
        # Seconds of the stage and steps of the epoch when its first step was done.
        self._began: tuple[float, int] | None = None
        self._closed: float | None = None  # seconds of the stage after the last epoch's steps
        self._step: float | None = None  # seconds of a step
        self._measuring = self._spent_before = 0.0  # after an epoch's steps; in a resumed epoch

    def begin(self, state, progress: Progress):
        """Before the first step of an epoch, or of the rest of one after a resume."""
        if self._closed is not None:
            self._measuring = progress.seconds - self._closed
        self.last = self._expected_last(state, progress.epoch)
        self._before = jax.device_get(state.arch.alphas)
        self._spent_before, self._deadline, self._began = progress.epoch_seconds, None, None
        return self._with_factor(state, self._share(progress))

    def over(self, state, progress: Progress):
        """(whether the epoch is over, state), after a step of this process.

        Its share of the time counts from then on: the first step may have waited for a compiler.
        """
        if self._began is None or self._deadline is None:
            self._began = progress.seconds, progress.step
            self._deadline = progress.seconds + self._share(progress)
        elif self._step is None and progress.step - self._began[1] >= TIMED:
            self._time(progress, *self._began)
            state = self._with_factor(state, self._deadline - progress.seconds)
        return progress.seconds >= self._deadline, state

    def close(self, progress: Progress) -> None:
        """After the last step of an epoch, before it is measured; ends the stage if it is time."""
        progress.history.setdefault(LENGTHS, []).append(progress.step)
        if self._began is not None and progress.step > self._began[1]:
            self._time(progress, *self._began)
        self._closed = progress.seconds
        if progress.seconds >= LIMIT * self._seconds and not progress.ended:
            progress.ended = "budget"

    def forward(self, state, progress: Progress):
        """The state as of the first step of the epoch that is next."""
        number = progress.epoch * self._steps
        self.moved(number)
        omega_opt = optax.tree_utils.tree_set(state.omega_opt, count=jnp.int32(number))
        return state.replace(step=jnp.int32(number), omega_opt=omega_opt)

    def _time(self, progress, seconds: float, step: int) -> None:
        """Times the steps of the epoch since those seconds of the stage and that step."""
        self._step = (progress.seconds - seconds) / (progress.step - step)

    def _share(self, progress) -> float:
        """Seconds that the epoch has left; a resumed one has had a part of its share."""
        left = AIM * self._seconds - progress.seconds + self._spent_before
        return left / (self.last - progress.epoch) - self._spent_before - self._measuring

    def _with_factor(self, state, seconds: float):
        """The state with the alphas' learning rate for an epoch of so many seconds."""
        factor = 0.0
        if self._step is not None:
            factor = min(1.0, self._whole / max(1.0, seconds / self._step))
        pace = state.alpha_opt._replace(pace=jnp.float32(factor))
        return state.replace(alpha_opt=pace)

    def _expected_last(self, state, epoch: int) -> int:
        """The epoch, counted from 1, at whose end the stage is expected to be over."""
        asked = max(self._asked, epoch + 1)
        if self._decided is None or self._before is None or epoch == 0:
            return asked
        if not bool(self._strategy.learns(jnp.int32((epoch - 1) * self._steps))):
            return asked  # the alphas have not moved yet
        # No later than asked for: an edge whose alphas are close is decided once time is up.
        return min(max(self._decided(state.arch, self._before, epoch).item(), epoch + 1), asked)

    def _epoch_of_decision(self, arch, before, epoch):
        """The first epoch after `epoch` at whose begin all edges would be decided, from 0.

        Args:
          arch: at the begin of `epoch`.
          before: the alphas an epoch earlier.
        """
        speed = jax.tree.map(jnp.subtract, arch.alphas, before)
        still = jax.tree.map(jnp.zeros_like, arch.alphas)

        def later(each, carry):
            arch, found = carry
            alphas = jax.tree.map(jnp.add, arch.alphas, speed)
            arch = self._strategy.prune(arch._replace(alphas=alphas), still, each * self._steps)
            decided = self._strategy.finished(arch) & (found > each)
            return arch, jnp.where(decided, each, found)

        never = jnp.int32(self.epochs)
        return jax.lax.fori_loop(epoch + 1, self.epochs, later, (arch, never))[1]
