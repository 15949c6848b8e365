"""Second-order DARTS, on a small smooth problem in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import KEY

from asap_jax.methods import bilevel, schedules
from asap_jax.training import optim


def bilevel_problem():
    """(loss, point) of two coupled smooth losses; omega [5], alphas [3]."""
    rng = np.random.default_rng(1)
    weights = {half: jnp.asarray(rng.normal(size=(5, 3))) for half in ("train", "val")}

    def loss(params, alphas, batch_stats, batch, key):
        mixed = jnp.tanh(batch @ jax.nn.softmax(alphas)) * params
        return jnp.sum(jnp.sin(mixed) + 0.3 * params**2), (batch_stats, mixed)

    rate = schedules.cosine_by_epoch(0.2, 0.1, 10, 1)
    omega = optim.sgd(rate, momentum=0.9, weight_decay=0.01)
    params = jnp.asarray(rng.normal(size=5))
    state = omega.init(params)
    _, state = omega.update(jnp.asarray(rng.normal(size=5)), state, params)  # some momentum
    return loss, bilevel.Point(
        params,
        jnp.asarray(rng.normal(size=3)),
        {},
        state,
        jnp.int32(4),
        weights["train"],
        weights["val"],
        KEY,
        optim.virtual_sgd(rate, 0.9, 0.01),
    )


def unrolled_loss(loss, point, alphas):
    """L_val(omega - xi (momentum m + dL_train + decay omega), alpha), by hand."""
    gradient = jax.grad(lambda w: loss(w, alphas, {}, point.train, KEY)[0])(point.params)
    xi = 0.1 + 0.1 * (1 + np.cos(np.pi * 4 / 10)) / 2
    trace = jnp.asarray(
        next(leaf for leaf in jax.tree.leaves(point.omega_opt) if leaf.shape == point.params.shape)
    )
    moved = point.params - xi * (0.9 * trace + gradient + 0.01 * point.params)
    return loss(moved, alphas, {}, point.val, KEY)[0]


def test_exact_second_order_is_the_derivative_of_the_unrolled_loss():
    with jax.enable_x64(True):
        loss, point = bilevel_problem()
        (value, _), got = bilevel.second_order_exact(loss, point)
        assert value == pytest.approx(float(unrolled_loss(loss, point, point.alphas)), rel=1e-6)
        for i in range(3):
            step = 1e-5 * jnp.eye(3)[i]
            ahead, behind = (
                unrolled_loss(loss, point, point.alphas + sign * step) for sign in (1, -1)
            )
            assert got[i] == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-5, abs=1e-8)
        _, plain = bilevel.first_order(loss, point)
        assert np.abs(got - plain).max() > 1e-2  # the problem distinguishes them


def test_the_finite_difference_converges_to_it():
    with jax.enable_x64(True):
        loss, point = bilevel_problem()
        _, exact = bilevel.second_order_exact(loss, point)
        errors = [
            float(np.abs(bilevel.second_order(loss, point, epsilon)[1] - exact).max())
            for epsilon in (0.1, 0.01, 0.001)
        ]
        assert errors[1] < errors[0] / 50  # quadratic in epsilon
        assert errors[2] < errors[1] / 50
        assert errors[2] < 1e-7


def test_a_gradient_of_ones_own_may_be_one_through_a_gradient():
    def own(loss, point):
        return bilevel.second_order_exact(loss, point)

    for updates in (bilevel.omega_then_alpha, bilevel.alpha_then_omega, bilevel.joint):
        assert updates(own).differentiations == 2
        assert updates(own, differentiations=1).differentiations == 1
    once = bilevel.first_order, bilevel.second_order, bilevel.single_level
    assert {bilevel.omega_then_alpha(each).differentiations for each in once} == {1}
    assert bilevel.alpha_then_omega(bilevel.second_order_exact).differentiations == 2
    assert bilevel.omega_alone().differentiations == 1
