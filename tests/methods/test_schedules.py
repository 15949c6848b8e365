"""Schedules at the paper's settings against values computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from asap_jax.methods import schedules
from asap_jax.methods.asap import asap
from asap_jax.networks import spaces

STEPS = 260  # 25,000 // 96


@pytest.fixture(scope="module")
def paper():
    return asap(spaces.ASAP, 50, STEPS)


def temperature(strategy, epoch, step=0):
    return float(strategy.readings(jnp.int32(epoch * STEPS + step))["temperature"])


def test_temperature_at_the_papers_settings(paper):
    assert temperature(paper, 0) == pytest.approx(1.235, rel=1e-6)  # t = 1
    assert temperature(paper, 0, STEPS - 1) == temperature(paper, 0)  # constant within an epoch
    assert temperature(paper, 1) == pytest.approx(1.3 * 0.9025, rel=1e-6)
    assert temperature(paper, 49) == pytest.approx(0.10003, abs=5e-6)  # T(50) = 0.100


def test_exactly_five_grace_epochs(paper):
    learning = [bool(paper.learns(jnp.int32(epoch * STEPS))) for epoch in range(50)]
    assert learning == [False] * 5 + [True] * 45


def test_threshold_is_the_initial_candidates_share(paper):
    for step in (0, 5000, 12999):
        reading = float(paper.readings(jnp.int32(step))["threshold"])
        assert reading == pytest.approx(0.4 / 7, rel=1e-6)
    assert pytest.approx(0.0571, abs=5e-5) == 0.4 / 7


def test_the_decay_can_be_chosen():
    short = asap(spaces.ASAP, 10, STEPS, final_temperature=0.2)
    assert temperature(short, 9) == pytest.approx(0.2, rel=1e-5)
    assert temperature(short, 0) == pytest.approx(1.3 * (0.2 / 1.3) ** 0.1, rel=1e-5)
    fixed = asap(spaces.ASAP, 10, STEPS, decay=0.9)
    assert temperature(fixed, 9) == pytest.approx(1.3 * 0.9**10, rel=1e-5)


@pytest.mark.parametrize("epochs", [10, 50, 73])
def test_every_length_ends_where_the_papers_does(epochs):
    search = asap(spaces.ASAP, epochs, STEPS)
    assert temperature(search, epochs - 1) == pytest.approx(1.3 * 0.95**50, rel=1e-5)


def test_cosine_of_the_last_epoch():
    rate = schedules.cosine_by_epoch(0.025, 0.001, 50, STEPS)
    assert float(rate(jnp.int32(0))) == pytest.approx(0.025, rel=1e-6)
    assert float(rate(jnp.int32(25 * STEPS))) == pytest.approx(0.013, rel=1e-6)
    for step in (49 * STEPS, 50 * STEPS - 1):
        assert float(rate(jnp.int32(step))) == pytest.approx(1.023679e-3, rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0])
def test_power_cosine_is_sharp_darts_at_the_papers_settings(power):
    """Five cycles of 300 epochs, each by NumPy: epochs 1 to 300, rescaled to run from 1 to 0."""
    schedule = schedules.power_cosine_by_epoch(0.025, 1e-8, 1500, STEPS, power=power)
    c = (1 + np.cos(np.pi * np.arange(1, 301) / 300)) / 2
    curve = c if power == 1 else power ** (c + 1)
    curve = (curve - curve.min()) / (curve - curve.min()).max()
    for epoch in (0, 1, 99, 149, 298, 299, 300, 449, 1200, 1498, 1499):
        cycle, i = divmod(epoch, 300)
        want = 1e-8 + (0.025 * 0.5**cycle - 1e-8) * curve[i]
        for step in (epoch * STEPS, (epoch + 1) * STEPS - 1):
            assert float(schedule(jnp.int32(step))) == pytest.approx(want, rel=5e-5, abs=1e-12)


def test_each_cycle_begins_at_its_highest_and_ends_at_the_minimum():
    schedule = schedules.power_cosine_by_epoch(0.025, 1e-8, 1500, STEPS)
    for cycle in range(5):
        first, last = cycle * 300 * STEPS, (cycle * 300 + 299) * STEPS
        assert float(schedule(jnp.int32(first))) == pytest.approx(0.025 * 0.5**cycle, rel=1e-6)
        assert float(schedule(jnp.int32(last))) == pytest.approx(1e-8, rel=1e-6)
    half = float(schedule(jnp.int32(149 * STEPS)))  # epoch 150 of 300: c = 1 / 2, c(1) near 1
    assert half == pytest.approx(0.025 * (2**0.5 - 1), rel=1e-4)


def test_power_cosine_of_any_length_has_its_cycles():
    """7 epochs in 2 cycles of 3.5: the second starts half an epoch before epoch 4."""
    schedule = schedules.power_cosine_by_epoch(1.0, 0.0, 7, 1, cycles=2, amplitude=0.1, power=1.0)
    shares = np.minimum([2 / 7, 4 / 7, 6 / 7, 8 / 7, 3 / 7, 5 / 7, 7 / 7], 1)
    first = (1 + np.cos(np.pi * 2 / 7)) / 2
    want = [
        (1 + np.cos(np.pi * s)) / 2 / first * (0.1 if i > 3 else 1) for i, s in enumerate(shares)
    ]
    got = [float(schedule(jnp.int32(step))) for step in range(7)]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_cycles_of_an_epoch_or_less_stay_at_their_highest():
    schedule = schedules.power_cosine_by_epoch(1.0, 0.0, 2, 3, cycles=5, amplitude=0.5)
    assert [float(schedule(jnp.int32(step))) for step in (0, 2, 3, 5)] == [1, 1, 0.25, 0.25]


def test_exponential_is_darts_imagenet_decay():
    """0.1 * 0.97^epoch over 250 epochs; other lengths end at the same value."""
    last = 0.1 * 0.97**249
    schedule = schedules.exponential_by_epoch(0.1, last, 250, STEPS)
    for epoch, rate in ((0, 0.1), (1, 0.097), (100, 0.1 * 0.97**100), (249, 5.083488e-5)):
        assert float(schedule(jnp.int32(epoch * STEPS))) == pytest.approx(rate, rel=1e-5)
    short = schedules.exponential_by_epoch(0.1, last, 5, STEPS)
    assert float(short(jnp.int32(4 * STEPS))) == pytest.approx(last, rel=1e-5)


def test_drop_path_rises_by_epoch():
    probability = schedules.linear_by_epoch(0.2, 600, STEPS)
    assert float(probability(jnp.int32(STEPS - 1))) == 0
    assert float(probability(jnp.int32(300 * STEPS))) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_temperature": 0.0},
        {"initial_temperature": -1.0},
        {"decay": 1.0},
        {"decay": 0.95, "final_temperature": 0.1},
        {"final_temperature": 0.0},
        {"final_temperature": 1.3},
        {"grace_temperature": 0.0},
        {"threshold": 0.0},
        {"threshold": 1.5},
    ],
)
def test_impossible_values_are_refused(options):
    with pytest.raises(ValueError):
        asap(spaces.ASAP, 50, STEPS, **options)


def test_time_counts_epochs_from_one():
    schedule = schedules.exponential_temperature(2.0, 0.5, 3)
    got = [float(schedule(jnp.int32(step))) for step in range(7)]
    np.testing.assert_allclose(got, [1, 1, 1, 0.5, 0.5, 0.5, 0.25])
