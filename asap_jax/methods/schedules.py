"""Schedules: pure functions of the step.

The paper's time t counts epochs from 1: t = step // steps_per_epoch + 1. With T0 = 1.3 and decay
0.95 this gives T(50) = 0.100 and exactly five epochs with T >= 1, the two facts stated in the paper
(sections 4.1 and 6.2.1).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]  # step (int32 scalar) -> float32 scalar


def epoch_of(step, steps_per_epoch: int):
    """The epoch of `step`, counted from 0."""
    return step // steps_per_epoch


def exponential_temperature(initial: float, decay: float, steps_per_epoch: int) -> Schedule:
    """T(t) = initial * decay^t (eq. 9), t = epoch + 1."""

    def temperature(step):
        t = epoch_of(step, steps_per_epoch) + 1
        return initial * jnp.power(jnp.float32(decay), t.astype(jnp.float32))

    return temperature


def decay_to(initial: float, final: float, epochs: int) -> float:
    """The decay per epoch with which `initial` reaches `final` in the last of `epochs` epochs."""
    return (final / initial) ** (1 / epochs)


def exponential_by_epoch(
    initial: float, final: float, epochs: int, steps_per_epoch: int
) -> Schedule:
    """`initial` in the first epoch, `final` in the last, with a constant factor per epoch."""

    def value(step):
        share = epoch_of(step, steps_per_epoch) / max(epochs - 1, 1)
        return initial * jnp.power(jnp.float32(final / initial), jnp.minimum(share, 1))

    return value


def linear_between(initial: float, final: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """`initial` in the first epoch, `final` in the last, with a constant difference per epoch."""

    def value(step):
        share = epoch_of(step, steps_per_epoch) / max(epochs - 1, 1)
        return initial + (final - initial) * jnp.minimum(share, 1)

    return value


def linear_down_to(initial: float, final: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """(1 - (e + 1) / epochs) (initial - final) + final in epoch e, from 0 (SNAS' code).

    Like `linear_between`, but one step ahead: the first epoch is already below `initial`.
    """

    def value(step):
        left = jnp.maximum(epochs - 1 - epoch_of(step, steps_per_epoch), 0) / epochs
        return final + (initial - final) * left

    return value


def gradual_sparsity(
    final: float, start: int, end: int, power: float, steps_per_epoch: int
) -> Schedule:
    """s_t of eq. 13 (Zhu and Gupta, 2017), with t = epoch + 1 and one pruning per epoch.

    0 up to t = start, then final + (0 - final) * (1 - (t - start) / (end - start))^power, and
    `final` from t = end on.
    """

    def sparsity(step):
        t = epoch_of(step, steps_per_epoch) + 1
        share = jnp.clip((t - start) / (end - start), 0, 1)
        return final - final * (1 - share) ** power

    return sparsity


def pac_temperature(candidates: int, bound: float, delta: float) -> Schedule:
    """T of Theorem 2 with nu = 1 / N, so rho = 1: bound sqrt(8/t log(pi^2 N t^2 / (3 delta))).

    Args:
      candidates: N.
      bound: eta L, the learning rate times the bound on the gradients.
      delta: probability that the result is not the best candidate.

    Returns:
      t (from 1, int or array) -> T.
    """

    def temperature(t):
        t = jnp.maximum(t, 1).astype(jnp.float32)
        return bound * jnp.sqrt(8 / t * jnp.log(jnp.pi**2 * candidates * t**2 / (3 * delta)))

    return temperature


def pac_log_threshold(candidates: int) -> Schedule:
    """log theta of Theorem 2 with nu = 1 / N: -log N - t. (theta itself underflows at t = 104.)"""
    return lambda t: -jnp.log(jnp.float32(candidates)) - jnp.maximum(t, 1)


def constant(value: float) -> Schedule:
    """A constant value, such as the paper's threshold 0.4 / N."""
    return lambda step: jnp.full((), value, jnp.float32)


def cosine_by_epoch(initial: float, final: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """PyTorch's CosineAnnealingLR, stepped once per epoch as in DARTS.

    final + (initial - final) * (1 + cos(pi * epoch / epochs)) / 2: `initial` in the first epoch,
    one step short of `final` in the last, and `final` after it.
    """

    def learning_rate(step):
        epoch = jnp.minimum(epoch_of(step, steps_per_epoch), epochs)
        return final + (initial - final) * (1 + jnp.cos(jnp.pi * epoch / epochs)) / 2

    return learning_rate


def power_cosine_by_epoch(
    initial: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    *,
    cycles: int = 5,
    amplitude: float = 0.5,
    power: float = 2.0,
) -> Schedule:
    """Cycles of the power cosine (Hundt et al., 2019, arXiv:1903.09900), stepped once per epoch.

    Cycle k has n = epochs / cycles epochs, starts at initial * amplitude^k and ends at `final`. In
    its epoch i, counted from 1 as in sharpDARTS' code, the value is

        final + (initial * amplitude^k - final) * (power^c(i) - 1) / (power^c(1) - 1),

    c(i) = (1 + cos(pi * i / n)) / 2. There is no warm-up. Power 1 is the limit, a plain cosine;
    `cosine_by_epoch` counts from 0 and therefore never reaches `final`. A cycle of one epoch or
    less stays at its highest value.
    """

    def fall(left):
        c = jnp.sin(jnp.pi / 2 * left) ** 2  # exact near the end, where 1 + cos is not
        return c if power == 1 else jnp.expm1(c * math.log(power))

    def learning_rate(step):
        done = epoch_of(step, steps_per_epoch) * cycles  # in fractions of an epoch, exact integers
        highest = initial * jnp.power(jnp.float32(amplitude), done // epochs)
        if epochs <= cycles:
            return highest
        left = jnp.maximum(epochs - cycles - done % epochs, 0) / epochs
        return final + (highest - final) * fall(left) / fall(1 - cycles / epochs)

    return learning_rate


def linear_by_epoch(final: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """final * epoch / epochs, DARTS' schedule of the drop-path probability."""
    return lambda step: final * epoch_of(step, steps_per_epoch) / epochs
