"""ASAP's schedule of Theorem 2."""

import jax.numpy as jnp
import numpy as np
import pytest
import theory
from small_space import CELLS, EDGES, KEY, SPACE

from asap_jax import STRATEGIES
from asap_jax.methods import schedules


def test_pac_schedule_at_hand_computed_values():
    """N = 7, delta = 0.1, eta L = 1."""
    temperature = schedules.pac_temperature(7, 1.0, 0.1)
    for t, want in ((1, 6.5966), (100, 1.0826), (11_700, 0.1286)):
        formula = np.sqrt(8 / t * np.log(np.pi**2 * 7 * t**2 / 0.3))
        assert formula == pytest.approx(want, abs=1e-4)
        assert float(temperature(jnp.int32(t))) == pytest.approx(formula, rel=1e-5)
    assert float(schedules.pac_log_threshold(7)(200)) == pytest.approx(-np.log(7) - 200)


def test_asap_pac_compares_logarithms():
    """At t = 200 theta is 0 in float32, but two candidates can still be told apart."""
    strategy = STRATEGIES["asap_pac"](SPACE, 1000, 1, gradient_bound=1.0, grace=0.0)
    arch, step = strategy.init(KEY), jnp.int32(199)
    temperature = float(strategy.readings(step)["temperature"])
    limit = temperature * (200 + np.log(3))
    logs = jnp.tile(jnp.asarray([0.0, -1.02 * limit, -0.98 * limit]), (EDGES, 1))
    gradients = dict.fromkeys(CELLS, jnp.zeros((EDGES, 3)))
    pruned = strategy.prune(arch._replace(alphas=dict.fromkeys(CELLS, logs)), gradients, step)
    np.testing.assert_array_equal(pruned.masks["normal"], np.tile([True, False, True], (EDGES, 1)))
    assert not bool(STRATEGIES["asap_pac"](SPACE, 10, 5, grace=0.2).learns(jnp.int32(9)))
    assert bool(STRATEGIES["asap_pac"](SPACE, 10, 5, grace=0.2).learns(jnp.int32(10)))


def test_asap_pac_counts_the_gradients_that_its_bound_cuts():
    """Only of live alphas: 2 of 3 candidates exceed L in the first step, 1 of 2 in the next."""
    strategy = STRATEGIES["asap_pac"](SPACE, 1000, 1, gradient_bound=0.01, grace=0.0)
    arch = strategy.init(KEY)
    assert float(strategy.measured(arch)["clipped_share"]) == 0
    gradients = dict.fromkeys(CELLS, jnp.tile(jnp.asarray([0.02, -0.011, 0.009]), (EDGES, 1)))
    arch = strategy.prune(arch, gradients, jnp.int32(0))
    assert float(strategy.measured(arch)["clipped_share"]) == pytest.approx(2 / 3)
    dead = {cell: mask.at[:, 0].set(False) for cell, mask in arch.masks.items()}
    arch = strategy.prune(arch._replace(masks=dead), gradients, jnp.int32(1))
    assert float(strategy.measured(arch)["clipped_share"]) == pytest.approx(3 / 5)


@pytest.mark.parametrize(("arms", "gap", "delta"), [(2, 0.8, 0.1), (7, 0.8, 0.1), (7, 1.2, 0.3)])
def test_the_survivor_is_the_best_arm_as_often_as_the_theorem_promises(arms, gap, delta):
    kept = theory.simulate(KEY, theory.pac_rule(arms, delta), arms, gap, 1000, 4000)
    assert kept.undecided == 0
    assert kept.wrong <= delta


def test_a_colder_temperature_breaks_the_bound():
    rule = theory.pac_rule(7, 0.1, scale=0.1)
    assert theory.simulate(KEY, rule, 7, 0.4, 1000, 4000).wrong > 0.2


def test_arms_without_a_difference_are_not_decided_by_the_theorem():
    still = theory.simulate(KEY, theory.pac_rule(3, 0.1), 3, 0.0, 200, 500)
    assert still.undecided > 0.9
    assert still.steps == pytest.approx(500, rel=0.02)
