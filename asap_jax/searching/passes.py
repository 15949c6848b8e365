"""A step in passes: parts of it that may be programs of their own, compiled and run apart.

A GPU waits for conditions, so each pass is written without one; and two small programs are compiled
sooner than a large one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Pass(NamedTuple):
    """A part of a step.

    name: identifies it; passes of one name are one program.
    changes: the fields of the state that it changes.
    run: (state, omega batch, alpha batch) -> (state, its part of the metrics).
    """

    name: str
    changes: tuple[str, ...]
    run: Callable[..., tuple[Any, dict[str, jax.Array]]]


def in_turn(passes) -> Callable[..., tuple[Any, dict]]:
    """The passes as one step, of the operands that each of them takes."""

    def step(state, *operands):
        metrics = {"val_loss": np.float32(np.nan)}  # of a step in which the alphas rest
        for each in passes:
            state, measured = each.run(state, *operands)
            metrics |= measured
        return state, metrics

    return step


class Parts(NamedTuple):
    """A state as a pass takes it: what it changes, whose memory it may reuse, and the rest.

    changing: {field: value}.
    resting: the state without those fields, None in their places.
    """

    changing: dict[str, Any]
    resting: Any

    @classmethod
    def of(cls, state, each: Pass) -> "Parts":
        changing = {name: getattr(state, name) for name in each.changes}
        return cls(changing, state.replace(**dict.fromkeys(each.changes)))

    @property
    def state(self):
        return self.resting.replace(**self.changing)


def program(each: Pass) -> Callable:
    """A pass as a program: (*Parts, over, *operands) -> (what it changes {field: value}, metrics).

    It returns nothing that it does not change, since a program copies what it passes through.
    Where the bool scalar `over` is true, the state stays as it was: a search that has finished may
    be sent one step more, and donate its state to it.
    """

    def run(changing, resting, over, *operands):
        after, metrics = each.run(Parts(changing, resting).state, *operands)
        changed = {name: getattr(after, name) for name in changing}
        return jax.tree.map(lambda new, old: jnp.where(over, old, new), changed, changing), metrics

    return run


def of_programs(passes) -> Callable[..., tuple[Any, dict]]:
    """The step (state, over, *operands) of programs: [(pass, what `program` made of it)]."""

    def whole(each, run):
        def after(state, *operands):
            parts = Parts.of(state, each)
            changed, metrics = run(*parts, *operands)
            return Parts(changed, parts.resting).state, metrics

        return each._replace(run=after)

    return in_turn([whole(each, run) for each, run in passes])
