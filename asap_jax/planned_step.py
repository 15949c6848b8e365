"""The jitted step of a search on the host: data on the device, and compiled as its plan asks."""

import time

import jax
import numpy as np

from asap_jax import compile_cache, plans, precisions
from asap_jax.data.augment import Augmentation, augment
from asap_jax.search_step import Batch, make_search_step, step_keys

WORTH = 1.0  # seconds that compiling anew has to save for each second it takes


class PlannedStep:
    """The jitted step of a stage, compiled anew where its plan and the pruned masks call for it.

    The live candidates that it was compiled for stand in `Progress.history`, so that a search that
    goes on computes as it did before.
    """

    def __init__(self, stage, class_weights):
        self._stage, self._class_weights = stage, class_weights
        self._network, self._jitted, self._compile_seconds = stage.network, None, None
        self._fresh = False  # whether the epoch under way holds the time of a compilation

    def follow(self, progress) -> None:
        """Takes the plan that the search's history tells of, or notes its own there."""
        name, live = progress.history.setdefault("plan", [self._network.plan.name, None])
        plan = plans.Plan(name, live and plans.freeze(live))
        if self._jitted is None or plan != self._network.plan:
            self._network, self._compile_seconds = self._stage.network.clone(plan=plan), None
            self._jitted = self._compiled()

    def _compiled(self):
        stage, augmentation = self._stage, self._stage.config.augmentation
        step = make_search_step(
            self._network,
            stage.strategy,
            stage.optimizers,
            class_weights=self._class_weights,
            dtype=precisions.map_dtype(stage.config.precision),
        )
        mean, std = stage.dataset.mean, stage.dataset.std
        return _with_data(step, Augmentation(mean, std, augmentation.pad, augmentation.flip))

    def __call__(self, state, *indices):
        begin = time.monotonic()
        held = self._stage.held
        state, metrics = self._jitted(state, held.images, held.labels, *indices)
        if self._compile_seconds is None:  # the call returns when all is compiled and under way
            self._compile_seconds, self._fresh = time.monotonic() - begin, True
        return state, metrics

    def consider(self, state, progress) -> None:
        """After an epoch: drops dead candidates if that is expected to save more than it takes."""
        stage, plan = self._stage, self._network.plan
        if plan.name != "unrolled":
            return
        masks = jax.device_get(state.arch.masks)
        computed = dict(plan.live or plans.freeze(jax.tree.map(np.ones_like, masks)))
        share = plans.cost(masks, stage.space) / plans.cost(computed, stage.space)
        seconds = progress.epoch_seconds - self._compile_seconds * self._fresh
        remaining, self._fresh = (stage.epochs - progress.epoch - 1) * seconds, False
        if (1 - share) * remaining > WORTH * self._compile_seconds:
            live = {cell: mask.tolist() for cell, mask in masks.items()}
            progress.history["plan"] = [plan.name, live]
            stage.session.log.say(
                f"compiling the search step for the {sum(mask.sum() for mask in masks.values())} "
                "candidates that are left"
            )
            self.follow(progress)


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
