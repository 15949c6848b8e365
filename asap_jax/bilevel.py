"""Gradients of the alphas, by the way each method relates them to the network's weights omega.

Every function here has the signature

    (loss, point) -> ((value, (new batch_stats, logits)), gradients)

with loss(params, alphas, batch_stats, batch, key) -> (value, (new batch_stats, logits)); the key is
for methods that sample, which may so take several samples at one point.
"""

from typing import Any, NamedTuple

import jax


class Point(NamedTuple):
    """Where a gradient is taken.

    params, alphas, batch_stats: the supernet's weights, architecture parameters and statistics.
    omega_opt: state of omega's optimizer, for methods that look a step ahead.
    step: int32, for schedules.
    train, val: a batch of the omega half and one of the alpha half.
    key: for sampling.
    """

    params: Any
    alphas: Any
    batch_stats: Any
    omega_opt: Any
    step: jax.Array
    train: Any
    val: Any
    key: jax.Array


def first_order(loss, point: Point):
    """Gradient of the validation loss, omega held fixed (ASAP's line 6; DARTS with xi = 0)."""
    return jax.value_and_grad(loss, 1, has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.val, point.key
    )


def omega_of_train(loss, point: Point):
    """Gradient of the training loss with respect to omega: the plain omega step."""
    return jax.value_and_grad(loss, has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.train, point.key
    )
