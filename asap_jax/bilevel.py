"""Gradients of the alphas, by the way each method relates them to the network's weights omega.

Every function here has the signature

    (loss, point) -> ((value, (new batch_stats, logits)), gradients)

with loss(params, alphas, batch_stats, batch, key) -> (value, (new batch_stats, logits)); the key is
for methods that sample, which may so take several samples at one point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Point(NamedTuple):
    """Where a gradient is taken.

    params, alphas, batch_stats: the supernet's weights, architecture parameters and statistics.
    omega_opt: state of omega's optimizer.
    step: int32, for schedules.
    train, val: a batch of the omega half and one of the alpha half.
    key: for sampling.
    virtual_step: (params, gradients, omega_opt, step) -> params, the omega step that methods which
      look ahead differentiate through; None if the search has none.
    """

    params: Any
    alphas: Any
    batch_stats: Any
    omega_opt: Any
    step: jax.Array
    train: Any
    val: Any
    key: jax.Array
    virtual_step: Callable | None = None


def first_order(loss, point: Point):
    """Gradient of the validation loss, omega held fixed (ASAP's line 6; DARTS with xi = 0)."""
    return jax.value_and_grad(loss, 1, has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.val, point.key
    )


def second_order_exact(loss, point: Point):
    """Gradient of L_val(omega'(alpha), alpha) through the virtual step omega' (DARTS, eq. 6)."""

    def unrolled(alphas):
        params = _virtual(loss, point, alphas)
        return loss(params, alphas, point.batch_stats, point.val, point.key)

    return jax.value_and_grad(unrolled, has_aux=True)(point.alphas)


def second_order(loss, point: Point, epsilon: float = 0.01):
    """The published approximation: the mixed second derivative by a finite difference (eq. 8).

    With v the gradient of L_val at omega' and eps = epsilon / |v|, the chain's second term is
    xi * (d L_train(omega + eps v) - d L_train(omega - eps v)) / (2 eps), d to alpha. xi, the
    virtual step's learning rate, is read off the step itself: d omega' / d gradient = -xi.
    """
    params = _virtual(loss, point, point.alphas)
    (value, aux), (v, gradients) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        params, point.alphas, point.batch_stats, point.val, point.key
    )
    length = jnp.sqrt(optax.tree.vdot(v, v))
    eps = epsilon / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    # v, pulled back through the virtual step: -xi v.
    zeros = jax.tree.map(jnp.zeros_like, point.params)
    pulled = jax.vjp(
        lambda g: point.virtual_step(point.params, g, point.omega_opt, point.step), zeros
    )[1](v)[0]
    xi = -optax.tree.vdot(pulled, v) / length**2

    def at(sign):
        moved = jax.tree.map(lambda w, d: w + sign * eps * d, point.params, v)
        return jax.grad(loss, 1, has_aux=True)(
            moved, point.alphas, point.batch_stats, point.train, point.key
        )[0]

    implicit = jax.tree.map(lambda p, m: (p - m) / (2 * eps), at(1.0), at(-1.0))
    gradients = jax.tree.map(lambda g, i: g - xi * i, gradients, implicit)
    return (value, aux), gradients


def _virtual(loss, point, alphas):
    """omega' = the virtual step along the training loss's gradient at these alphas."""
    if point.virtual_step is None:
        raise ValueError("a second-order gradient needs Optimizers with a virtual_step")
    gradients = jax.grad(loss, has_aux=True)(
        point.params, alphas, point.batch_stats, point.train, point.key
    )[0]
    return point.virtual_step(point.params, gradients, point.omega_opt, point.step)


def omega_of_train(loss, point: Point):
    """Gradient of the training loss with respect to omega: the plain omega step."""
    return jax.value_and_grad(loss, has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.train, point.key
    )


def single_level(loss, point: Point):
    """Gradients of the training loss to (omega, alphas), at one point and with one sample."""
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.train, point.key
    )
