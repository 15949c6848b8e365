"""The bilevel problem: what learns in a step, in which order, and by which gradient.

A method specifies this as one value, `Updates`: `omega_then_alpha(first_order)` is Algorithm 1,
`alpha_then_omega(second_order)` DARTS, `joint(single_level)` SNAS. Every gradient function, here or
defined by a method, has the signature

    (loss, point) -> ((value, (new batch_stats, logits)), gradients)

with loss(params, alphas, batch_stats, batch, key) -> (value, (new batch_stats, logits)). Methods
that sample use the key, and may take several samples at one point.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Point(NamedTuple):
    """The point at which a gradient is taken.

    params, alphas, batch_stats: the supernet's weights, architecture parameters and statistics.
    omega_opt: state of omega's optimizer.
    step: int32, for schedules.
    train, val: a batch of the omega half and one of the alpha half.
    key: for sampling.
    virtual_step: (params, gradients, omega_opt, step) -> params, the omega step through which
      look-ahead methods differentiate; None if the search has none.
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


def of_omega(loss, point: Point):
    """Gradient of the training loss by omega (ASAP's line 4), that of most methods."""
    return jax.value_and_grad(loss, has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.train, point.key
    )


def first_order(loss, point: Point):
    """Gradient of the validation loss at fixed omega (ASAP's line 6; DARTS with xi = 0)."""
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
    """DARTS' approximation: the mixed second derivative by a finite difference (eq. 8).

    With v the gradient of L_val at omega' and eps = epsilon / |v|, the second term of the chain
    rule, which is subtracted, is
    xi * (d L_train(omega + eps v) - d L_train(omega - eps v)) / (2 eps), with d the derivative by
    alpha. xi, the virtual step's learning rate, is read off the step itself:
    d omega' / d gradient = -xi.
    """
    params = _virtual(loss, point, point.alphas)
    (value, aux), (v, gradients) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        params, point.alphas, point.batch_stats, point.val, point.key
    )
    length = jnp.sqrt(optax.tree.vdot(v, v))
    eps = epsilon / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    # v, pulled back through the virtual step: -xi v.
    zeros = jax.tree.map(jnp.zeros_like, point.params)
    pulled = jax.vjp(partial(_moved, point), zeros)[1](v)[0]
    xi = jnp.negative(optax.tree.vdot(pulled, v)) / length**2

    def at(sign):
        moved = jax.tree.map(lambda w, d: w + sign * eps * d, point.params, v)
        return jax.grad(loss, 1, has_aux=True)(
            moved, point.alphas, point.batch_stats, point.train, point.key
        )[0]

    implicit = jax.tree.map(lambda p, m: (p - m) / (2 * eps), at(1.0), at(-1.0))
    gradients = jax.tree.map(lambda g, i: g - xi * i, gradients, implicit)
    return (value, aux), gradients


def _virtual(loss, point, alphas):
    """omega': one virtual step along the training loss's gradient at these alphas."""
    gradients = jax.grad(loss, has_aux=True)(
        point.params, alphas, point.batch_stats, point.train, point.key
    )[0]
    return _moved(point, gradients)


def _moved(point, gradients):
    """omega after one virtual step along these gradients."""
    if point.virtual_step is None:
        raise ValueError("a second-order gradient needs Optimizers with a virtual_step")
    return point.virtual_step(point.params, gradients, point.omega_opt, point.step)


def single_level(loss, point: Point):
    """Gradients of the training loss by (omega, alphas), at one point and with one sample."""
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(
        point.params, point.alphas, point.batch_stats, point.train, point.key
    )


class Updates(NamedTuple):
    """The updates of a step; built by the functions below.

    order: ("omega", "alpha"), ("alpha", "omega"), ("joint",) or ("omega",).
    gradient: of the alphas, or of (omega, alphas) if they learn jointly; None without alphas.
    differentiations: how often it differentiates the loss. With 2, for a gradient through a
      gradient, the layers use forms that are twice differentiable.
    omega: gradient of omega where it learns by itself. One that takes several samples goes with
      `Strategy.trained`.
    """

    order: tuple[str, ...]
    gradient: Callable | None = None
    differentiations: int = 2
    omega: Callable = of_omega

    @property
    def has_alphas(self) -> bool:
        """Whether any alphas learn."""
        return self.gradient is not None

    @property
    def joint(self) -> bool:
        """Whether one loss trains omega and the alphas, on all training images, not on halves."""
        return self.order == ("joint",)

    @property
    def has_val_loss(self) -> bool:
        """Whether the alphas learn from a loss of their own."""
        return "alpha" in self.order

    @property
    def alternates_first_order(self) -> bool:
        """Whether both updates use plain gradients of the loss, each on its own batch."""
        return self.has_val_loss and self.gradient is first_order and self.omega is of_omega


def omega_then_alpha(
    gradient: Callable, differentiations: int | None = None, omega: Callable = of_omega
) -> Updates:
    """Updates omega, then the alphas at the new omega: Algorithm 1.

    Args:
      gradient: of the alphas, one of this module's or your own.
      differentiations: 1 or 2, see `Updates`. By default 1 for those of this module that
        differentiate once and 2, which is right for every gradient, for any other. With 1, a
        gradient through a gradient raises in one plan and is wrong in the other.
      omega: gradient of omega, see `Updates`.
    """
    return Updates(("omega", "alpha"), gradient, _times(gradient, differentiations), omega)


def alpha_then_omega(gradient: Callable, differentiations: int | None = None) -> Updates:
    """Updates the alphas, then omega at the new alphas: DARTS. For the rest `omega_then_alpha`."""
    return Updates(("alpha", "omega"), gradient, _times(gradient, differentiations))


def joint(gradient: Callable, differentiations: int | None = None) -> Updates:
    """Updates both on one loss, at one point; the gradient is that of (omega, alphas).

    For the rest `omega_then_alpha`.
    """
    return Updates(("joint",), gradient, _times(gradient, differentiations))


def _times(gradient, differentiations):
    if differentiations is not None:
        return differentiations
    return 1 if gradient in (first_order, second_order, single_level) else 2


def omega_alone() -> Updates:
    """Updates omega only; there are no alphas."""
    return Updates(("omega",), differentiations=1)
