"""A step as a sequence of passes, which may be separate programs, compiled and run one by one.

Conditionals stall a GPU, so passes can be built without any; and two small programs compile faster
than a large one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.training import guard


class Pass(NamedTuple):
    """A part of a step.

    name: identifies its program; passes with the same name share one.
    changes: the fields of the state that it changes.
    run: (state, omega batch, alpha batch) -> (state, its part of the metrics).
    """

    name: str
    changes: tuple[str, ...]
    run: Callable[..., tuple[Any, dict[str, jax.Array]]]


def chained(passes) -> Callable[..., tuple[Any, dict]]:
    """Chains passes into one step, with the operands that each of them takes."""

    def step(state, *operands):
        metrics = {"val_loss": np.float32(np.nan)}  # for a step without an alpha update
        for each in passes:
            state, measured = each.run(state, *operands)
            skipped = metrics.get(guard.METRIC, 0.0)
            metrics |= measured
            if guard.METRIC in measured:
                metrics[guard.METRIC] = jnp.maximum(skipped, measured[guard.METRIC])
        return state, metrics

    return step


class SplitState(NamedTuple):
    """A state split for a pass: the fields that it changes, which are donated, and the rest.

    changing: {field: value}.
    resting: the state with those fields set to None.
    """

    changing: dict[str, Any]
    resting: Any

    @classmethod
    def of(cls, state, each: Pass) -> "SplitState":
        changing = {name: getattr(state, name) for name in each.changes}
        return cls(changing, state.replace(**dict.fromkeys(each.changes)))

    @property
    def state(self):
        return self.resting.replace(**self.changing)


def program(each: Pass) -> Callable:
    """A pass as a program: (*SplitState, over, *operands) -> ({field: value} changed, metrics).

    It returns only what it changes, since a program copies whatever it passes through. Where the
    bool scalar `over` is true, the state stays unchanged: a finished search may run one more step
    and donate its state to it.
    """

    def run(changing, resting, over, *operands):
        after, metrics = each.run(SplitState(changing, resting).state, *operands)
        changed = {name: getattr(after, name) for name in changing}
        return jax.tree.map(lambda new, old: jnp.where(over, old, new), changed, changing), metrics

    return run


def of_programs(passes) -> Callable[..., tuple[Any, dict]]:
    """Chains programs, [(pass, its compiled `program`)], into the step (state, over, *operands)."""

    def whole(each, run):
        def after(state, *operands):
            parts = SplitState.of(state, each)
            changed, metrics = run(*parts, *operands)
            return SplitState(changed, parts.resting).state, metrics

        return each._replace(run=after)

    return chained([whole(each, run) for each, run in passes])
