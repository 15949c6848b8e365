"""One training step of a network built from a genotype: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from asap_jax.layers.ops import Context
from asap_jax.networks.models import EvalNetwork
from asap_jax.training.feed import Batch
from asap_jax.training.losses import accuracy, cross_entropy


class TrainState(struct.PyTreeNode):
    """Everything a training carries from step to step.

    step: steps done, int32.
    params, batch_stats: weights and running statistics.
    opt_state: state of the optimizer.
    average: exponential moving average of {"params", "batch_stats"}, or None.
    key: the training's random key; each step folds in its number.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    key: jax.Array

    @property
    def variables(self):
        """What is tested and saved: the moving average if there is one."""
        if self.average is not None:
            return self.average
        return {"params": self.params, "batch_stats": self.batch_stats}


def step_keys(key, step):
    """(drop-path key, augmentation key) of `step`, derived from the training's key."""
    return jax.random.split(jax.random.fold_in(key, step))


def init_state(
    network: EvalNetwork,
    optimizer: optax.GradientTransformation,
    key,
    image_shape,
    average: bool = False,
) -> TrainState:
    """The initial state, for images of `image_shape` [H, W, C].

    With `average`, it holds a moving average of the variables.
    """

    def begin(key):
        key_params, key_steps = jax.random.split(key)
        # Only the variables are used, so the compiler removes the rest of the forward pass.
        plain = Context(reference=True)
        variables = network.init(key_params, jnp.zeros((1, *image_shape)), plain)
        return from_variables(variables, optimizer, key_steps, average)

    return jax.jit(begin)(key)


def from_variables(variables, optimizer, key, average: bool = False) -> TrainState:
    """The initial state with the given {"params", "batch_stats"}."""
    kept = {name: variables[name] for name in ("params", "batch_stats")}
    return TrainState(
        step=jnp.int32(0),
        **kept,
        opt_state=optimizer.init(kept["params"]),
        average=jax.tree.map(jnp.copy, kept) if average else None,
        key=key,
    )


def make_train_step(
    network: EvalNetwork, optimizer: optax.GradientTransformation, **options
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds step(state, batch) -> (state, metrics); `options` are those of `TrainStep`."""
    return TrainStep(network, optimizer, **options).step


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """One training step.

    Attributes:
      network: with `auxiliary=True`, its second classifier contributes to the loss.
      optimizer: an optax transformation.
      auxiliary_weight: factor of the auxiliary loss.
      label_smoothing: share of the target spread evenly over the classes.
      drop_path: step -> probability that an edge drops a sample, or None.
      class_weights: [classes], weights of the loss, or None.
      accumulate: number of pieces a batch is split into, processed one after another; gradients are
        averaged over them, and batch norm sees each piece alone. Divides the memory of a step.
        Piece i holds every accumulate-th image from the i-th on, a share of each device's.
      average: decay of the moving average (which the state must hold), or 0. It starts lower:
        min(average, (1 + step) / (10 + step)), as in TensorFlow.
      dtype, folded: see `ops.Context`.
    """

    network: EvalNetwork
    optimizer: optax.GradientTransformation
    auxiliary_weight: float = 0.4
    label_smoothing: float = 0.0
    drop_path: Callable | None = None
    class_weights: Any = None
    accumulate: int = 1
    average: float = 0.0
    dtype: str | None = None
    folded: bool = False

    def step(self, state: TrainState, batch: Batch):
        """Returns (next state, {"train_loss", "train_accuracy"})."""
        gradients, batch_stats, value, correct = self.gradients(state, batch)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=self.moving_average(state, params, batch_stats),
        )
        return state, {"train_loss": value, "train_accuracy": correct}

    def loss(self, params, batch_stats, batch, step, key):
        """Returns (loss, (new statistics, accuracy on the batch))."""
        context = Context(train=True, dtype=self.dtype, folded=self.folded)
        (logits, auxiliary), new = self.network.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            context,
            None if self.drop_path is None else self.drop_path(step),
            mutable=["batch_stats"],
            rngs={"drop_path": key},
        )
        value = self.classification_loss(logits, batch.labels)
        if auxiliary is not None:
            value += self.auxiliary_weight * self.classification_loss(auxiliary, batch.labels)
        return value, (new["batch_stats"], accuracy(logits, batch.labels))

    def classification_loss(self, logits, labels):
        return cross_entropy(logits, labels, self.class_weights, self.label_smoothing)

    def gradients(self, state, batch):
        """(gradients, new statistics, loss, accuracy), averaged over the batch's pieces."""
        key, accumulate = step_keys(state.key, state.step)[0], self.accumulate

        def piece(carry, part):
            batch_stats, index = carry
            part_key = key if accumulate == 1 else jax.random.fold_in(key, index)
            (value, (batch_stats, correct)), gradients = jax.value_and_grad(
                self.loss, has_aux=True
            )(state.params, batch_stats, part, state.step, part_key)
            return (batch_stats, index + 1), (gradients, value, correct)

        start = (state.batch_stats, 0)
        if accumulate == 1:
            (batch_stats, _), sums = piece(start, batch)
            return sums[0], batch_stats, *sums[1:]
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
        )

        def add(carry, part):
            inner, sums = carry
            inner, new = piece(inner, part)
            return (inner, jax.tree.map(jnp.add, sums, new)), None

        nothing = jnp.zeros((), batch.images.dtype)
        zeros = (jax.tree.map(jnp.zeros_like, state.params), nothing, nothing)
        ((batch_stats, _), sums), _ = lax.scan(add, (start, zeros), parts)
        gradients, value, correct = jax.tree.map(lambda s: s / accumulate, sums)
        return gradients, batch_stats, value, correct

    def moving_average(self, state, params, batch_stats):
        """The moving average after this step; unchanged if `average` is 0."""
        if not self.average:
            return state.average
        decay = jnp.minimum(self.average, (1 + state.step) / (10 + state.step))
        return jax.tree.map(
            lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
            state.average,
            {"params": params, "batch_stats": batch_stats},
        )
