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
import numpy as np
import optax

from asap_jax.host.loop import Progress
from asap_jax.methods import Strategy

BEYOND = 1.5  # epochs that a search whose edges are undecided may have, per epoch of the config
AIM = 0.97  # of the budget; the rest is for a search whose edges are undecided by then
LIMIT = 1.08  # of the budget, at which a search ends, decided or not
NUMBERS = 2**22  # step numbers of a stage, whatever its budget: they are compiled in
TIMED = 3  # steps that tell how long one takes

LENGTHS, PACE = "epoch_steps", "pace"  # keys of `Progress.history`: steps of each epoch; `_Kept`


class PacedState(NamedTuple):
    """State of `paced`: the factor of the updates, and the state of the optimizer."""

    factor: jax.Array
    inner: Any


def paced(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with updates times a factor in its state, which the host may change."""

    def init(params):
        return PacedState(jnp.float32(0), optimizer.init(params))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.inner, params)
        updates = jax.tree.map(lambda u: u * state.factor, updates)
        return updates, PacedState(state.factor, inner)

    return optax.GradientTransformation(init, update)


def step_numbers(epochs: int) -> int:
    """Step numbers of an epoch, of which it uses as many as it has time for."""
    return max(1, NUMBERS // math.ceil(BEYOND * epochs))


class Pace:
    """When the epochs of a stage end, for `loop.run`.

    An epoch has a fixed number of step numbers, uses the first few of them, and the state then goes
    on with the first number of the next epoch (`forward`).

    A search that ends once its edges are decided may do so before the last epoch. When that will be
    is estimated before each epoch: the alphas go on as they moved in the epoch before, and the
    first epoch whose temperature would then decide all edges is the one to end with. The time that
    is left is divided over the epochs until there. A search that is undecided when the time is up
    goes on with epochs of a step or two, in which the temperature falls, until it is decided.

    What must survive a resume is in `Progress.history`: the expected last epoch, seconds of a step,
    how far the alphas have gone in the epoch (in steps of their own learning rate), and the alphas
    at its begin.

    Attributes:
      seconds: the stage's share of the budget.
      limit: seconds of the stage at which it ends, decided or not.
      epochs: of the stage at most.
      last: the epoch with which the stage is expected to end, counted from 1.
      moved: called with the number of the step that is next when an epoch has ended.
    """

    def __init__(self, seconds: float, strategy: Strategy, epochs: int, numbers: int, whole: int):
        """Makes the pace of a stage.

        Args:
          seconds: the stage's share of the budget.
          strategy: of the stage.
          epochs: those that the config asks for.
          numbers: step numbers of an epoch, see `step_numbers`.
          whole: steps of an epoch without a budget.
        """
        ends_itself = strategy.finished is not Strategy._field_defaults["finished"]
        self.seconds, self.limit = seconds, LIMIT * seconds
        self.epochs = math.ceil(BEYOND * epochs) if ends_itself else epochs
        self.last = epochs
        self.moved: Callable[[int], None] = lambda number: None
        self._strategy, self._asked, self._numbers, self._whole = strategy, epochs, numbers, whole
        self._decided = jax.jit(self._epoch_of_decision) if ends_itself else None
        self._factor = 0.0  # of the alphas' learning rate, until a step's time is known
        self._counted = 0  # steps of the epoch that are in the history
        self._deadline = 0.0  # seconds of the stage at which the epoch is over
        # Seconds of the stage and steps of the epoch after the first step of this process in it.
        self._began: tuple[float, int] | None = None
        self._timed = False  # whether steps of this epoch have been timed
        self._closed: float | None = None  # seconds of the stage after the last epoch's steps
        self._measuring = self._spent_before = 0.0  # after an epoch's steps; in a resumed epoch

    def begin(self, state, progress: Progress):
        """Before the first step of an epoch, or of the rest of one after a resume."""
        kept = progress.history.setdefault(PACE, [{"last": self.last, "step": None}])[0]
        if self._closed is not None:
            self._measuring = progress.seconds - self._closed
        if progress.step == 0:
            before, alphas = kept.get("before"), jax.device_get(state.arch.alphas)
            kept["last"] = self._expected_last(state, before, progress.epoch)
            kept["gone"] = 0.0
            if self._decided is not None:
                kept["before"] = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), alphas)
        self.last, self._counted = kept["last"], progress.step
        self._spent_before, self._began, self._timed = progress.epoch_seconds, None, False
        return self._with_factor(state, progress, self._share(progress))

    def over(self, state, progress: Progress):
        """(whether the epoch is over, state), after a step of this process.

        Its share of the time counts from then on: the first step may have waited for a compiler.
        """
        kept = progress.history[PACE][0]
        kept["gone"] += self._factor * (progress.step - self._counted)
        self._counted = progress.step
        if self._began is None:
            self._began = progress.seconds, progress.step
            self._deadline = progress.seconds + self._share(progress)
        elif not self._timed and progress.step - self._began[1] >= TIMED:
            self._time(progress)
            state = self._with_factor(state, progress, self._deadline - progress.seconds)
        return progress.seconds >= self._deadline, state

    def close(self, progress: Progress) -> None:
        """After the last step of an epoch, before it is measured; ends the stage if it is time."""
        progress.history.setdefault(LENGTHS, []).append(progress.step)
        if self._began is not None and progress.step > self._began[1]:
            self._time(progress)
        self._closed = progress.seconds
        all_done = progress.epoch + 1 == self.epochs
        undecided = self._decided is not None and all_done
        if undecided or (progress.seconds >= self.limit and not all_done):
            progress.ended = progress.ended or "budget"

    def forward(self, state, progress: Progress):
        """The state as of the first step of the epoch that is next."""
        number = progress.epoch * self._numbers
        self.moved(number)
        omega_opt = optax.tree_utils.tree_set(state.omega_opt, count=jnp.int32(number))
        return state.replace(step=jnp.int32(number), omega_opt=omega_opt)

    def _time(self, progress) -> None:
        """Times the steps of the epoch since the first one in this process."""
        assert self._began is not None
        seconds, step = self._began
        progress.history[PACE][0]["step"] = (progress.seconds - seconds) / (progress.step - step)
        self._timed = True

    def _share(self, progress) -> float:
        """Seconds that the epoch has left; a resumed one has had a part of its share."""
        left = AIM * self.seconds - progress.seconds + self._spent_before
        return left / (self.last - progress.epoch) - self._spent_before - self._measuring

    def _with_factor(self, state, progress, seconds: float):
        """The state with the alphas' learning rate for the rest of the epoch, of so many seconds.

        The alphas then go as far in the epoch as without a budget, in steps that are no larger.
        """
        kept = progress.history[PACE][0]
        if kept["step"] is not None:
            rest = max(1.0, seconds / kept["step"])
            self._factor = min(1.0, max(0.0, self._whole - kept["gone"]) / rest)
        factor = state.alpha_opt._replace(factor=jnp.float32(self._factor))
        return state.replace(alpha_opt=factor)

    def _expected_last(self, state, before, epoch: int) -> int:
        """The epoch, counted from 1, at whose end the stage is expected to be over.

        `before` has the alphas at the begin of the epoch before, as lists, or is None.
        """
        asked = max(self._asked, epoch + 1)
        if self._decided is None or before is None:
            return asked
        if not bool(self._strategy.learns(jnp.int32((epoch - 1) * self._numbers))):
            return asked  # the alphas have not moved yet
        arch = state.arch
        before = jax.tree.map(
            lambda leaf, old: jnp.asarray(old, leaf.dtype),
            arch.alphas,
            before,
            is_leaf=lambda node: isinstance(node, list),
        )
        # No later than asked for: an edge whose alphas are close is decided once time is up.
        return min(max(self._decided(arch, before, epoch).item(), epoch + 1), asked)

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
            arch = self._strategy.prune(arch._replace(alphas=alphas), still, each * self._numbers)
            decided = self._strategy.finished(arch) & (found > each)
            return arch, jnp.where(decided, each, found)

        never = jnp.int32(self.epochs)
        return jax.lax.fori_loop(epoch + 1, self.epochs, later, (arch, never))[1]
