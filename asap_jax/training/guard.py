"""A step that leaves the state as it was where it would have put numbers that are not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from asap_jax.training.losses import all_finite

METRIC = "skipped"  # 1.0 for a step that changed nothing, or of which a pass did not; else 0.0


def skipping(run: Callable, fields: tuple[str, ...]) -> Callable:
    """Wraps run(state, *operands) -> (state, metrics).

    If a loss of the metrics that the step has, or a number in the new state, is not finite, the
    fields of the state stay what they were, but for `step`, and the metric `skipped` is 1.

    Args:
      run: a step, or a pass of one.
      fields: those of the state that it changes.
    """
    kept = [name for name in fields if name != "step"]

    def guarded(state, *operands):
        after, metrics = run(state, *operands)
        new = {name: getattr(after, name) for name in kept}
        sound = all_finite(new) & all_finite(metrics.get("train_loss", jnp.zeros(())))
        old = {name: getattr(state, name) for name in kept}
        chosen = jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, old)
        if "finished" in metrics:  # of the state that was not kept
            metrics = {**metrics, "finished": metrics["finished"] & sound}
        return after.replace(**chosen), {**metrics, METRIC: 1.0 - sound}

    return guarded
