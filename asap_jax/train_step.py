"""One step of training a network built from a genotype: a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import lax

from asap_jax.networks import EvalNetwork
from asap_jax.ops import Context
from asap_jax.search_step import Batch


@flax.struct.dataclass
class TrainState:
    """Everything a training carries from step to step.

    step: steps done, int32.
    params, batch_stats: weights and running statistics.
    opt_state: the optimizer's.
    key: the training's random key; each step folds its number in.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array


def step_keys(key, step):
    """(drop-path key, augmentation key) of `step`, from the training's key."""
    return jax.random.split(jax.random.fold_in(key, step))


def init_state(
    network: EvalNetwork, optimizer: optax.GradientTransformation, key, image_shape
) -> TrainState:
    """The state before the first step, for images of `image_shape` [H, W, C]."""
    key_params, key_steps = jax.random.split(key)
    # Only the parameters are kept of this run, so the compiler drops the rest of it.
    plain = Context(reference=True)
    init = jax.jit(lambda key: network.init(key, jnp.zeros((1, *image_shape)), plain))
    variables = init(key_params)
    return TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        key=key_steps,
    )


def make_train_step(
    network: EvalNetwork,
    optimizer: optax.GradientTransformation,
    *,
    auxiliary_weight: float = 0.4,
    label_smoothing: float = 0.0,
    drop_path: Callable | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds step(state, batch) -> (state, metrics).

    Args:
      network: with `auxiliary=True` its second classifier joins the loss.
      optimizer: an optax transformation.
      auxiliary_weight: factor of the auxiliary loss.
      label_smoothing: share of the target spread evenly over the classes.
      drop_path: step -> probability that an edge drops a sample, or None.
      axis_name: the batch is one device's part; statistics and gradients are those of the whole.
    """
    context = Context(train=True, axis_name=axis_name)

    def mean(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def cross_entropy(logits, labels):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    def step(state, batch):
        def loss(params):
            (logits, auxiliary), new = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch.images,
                context,
                None if drop_path is None else drop_path(state.step),
                mutable=["batch_stats"],
                rngs={"drop_path": step_keys(state.key, state.step)[0]},
            )
            value = cross_entropy(logits, batch.labels)
            if auxiliary is not None:
                value += auxiliary_weight * cross_entropy(auxiliary, batch.labels)
            return value, (new["batch_stats"], logits)

        (value, (batch_stats, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(mean(gradients), state.opt_state, state.params)
        correct = jnp.mean(logits.argmax(-1) == batch.labels)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, mean({"train_loss": value, "train_accuracy": correct})

    return step
