"""Theorem 2 of the ASAP paper as an experiment: Algorithm 1's pruning on arms of known value.

    python benchmarks/theory.py --plot=docs/theory.svg

prints the table of docs/theory.md and draws its plot.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.methods import pruning, schedules

LEARNING_RATE = 1.0  # eta; temperatures are in units of eta * L, with L = 1


class Rule(NamedTuple):
    """Prunes an arm if log softmax(alpha / T(t)) < log theta(t), t from 1."""

    temperature: Callable
    log_threshold: Callable


def pac_rule(arms: int, delta: float, scale: float = 1.0) -> Rule:
    """Theorem 2's schedule; a `scale` other than 1 violates its temperature, as a control."""
    temperature = schedules.pac_temperature(arms, LEARNING_RATE, delta)
    return Rule(lambda t: scale * temperature(t), schedules.pac_log_threshold(arms))


def exponential_rule(
    arms: int, learning_rate: float = 1e-3, steps_per_epoch: int = 260, epochs: int = 50
) -> Rule:
    """The schedule of the paper's searches: T = 1.3 * 0.95^epoch, theta = 0.4 / N.

    Its temperature is meant for alphas that move by `learning_rate` per step, so it is divided by
    that. After `epochs` the temperature is constant.
    """
    annealed = schedules.exponential_temperature(1.3, 0.95, steps_per_epoch)

    def temperature(t):
        return annealed(jnp.minimum(t - 1, epochs * steps_per_epoch - 1)) / learning_rate

    return Rule(temperature, lambda t: jnp.log(0.4 / arms))


class Trials(NamedTuple):
    """Results over many runs: share that lost the best arm, share undecided, mean steps."""

    wrong: float
    undecided: float
    steps: float


def simulate(key, rule: Rule, arms: int, gap: float, trials: int, max_steps: int) -> Trials:
    """Runs Algorithm 1's pruning on `arms` arms until one is left.

    Each step moves alpha_i by eta times an independent draw of -1 or 1, with mean gap / 2 for the
    first arm and -gap / 2 for the others: gradients bounded by L = 1. Weights are compared as
    logarithms, since theta underflows.

    Args:
      key: PRNG key.
      rule: the schedule.
      arms: N.
      gap: difference between the best arm's mean and the others', in (0, 2).
      trials: number of independent runs.
      max_steps: steps after which an undecided run stops.

    Returns:
      `Trials`. A run is wrong if the best arm was pruned.
    """
    means = jnp.where(jnp.arange(arms) == 0, gap / 2, -gap / 2)

    @jax.jit
    def all_trials(key):
        def undecided(carry):
            t, _, alive, _ = carry
            return (t <= max_steps) & (alive.sum(-1) > 1).any()

        def step(carry):
            t, alphas, alive, taken = carry
            up = jax.random.bernoulli(jax.random.fold_in(key, t), (1 + means) / 2, (trials, arms))
            open_runs = alive.sum(-1, keepdims=True) > 1
            alphas = alphas + LEARNING_RATE * jnp.where(alive, 2.0 * up - 1, 0)
            logits = jnp.where(alive, alphas / rule.temperature(t), -jnp.inf)
            log_weights = jax.nn.log_softmax(logits, -1)
            kept = pruning.prune_below(alive, log_weights, rule.log_threshold(t))
            return t + 1, alphas, jnp.where(open_runs, kept, alive), taken + open_runs[:, 0]

        start = (
            jnp.int32(1),
            jnp.zeros((trials, arms)),
            jnp.ones((trials, arms), bool),
            jnp.zeros(trials, jnp.int32),
        )
        _, _, alive, taken = lax.while_loop(undecided, step, start)
        return (
            jnp.mean(~alive[:, 0]),
            jnp.mean(alive.sum(-1) > 1),
            jnp.mean(taken.astype(jnp.float32)),
        )

    return Trials(*(float(value) for value in all_trials(key)))


CASES = ((2, 0.4), (7, 0.4), (7, 0.8), (20, 0.8), (7, 0.05))  # arms, gap


def table(trials: int, max_steps: int) -> str:
    """Markdown table: share of runs that lost the best arm, by schedule, number of arms and gap."""
    rules = (
        ("Theorem 2, delta 0.1", lambda arms: pac_rule(arms, 0.1)),
        ("Theorem 2, delta 0.3", lambda arms: pac_rule(arms, 0.3)),
        ("control: T / 10, delta 0.1", lambda arms: pac_rule(arms, 0.1, 0.1)),
        ("1.3 * 0.95^epoch, 0.4 / N", exponential_rule),
    )
    lines = [
        "| schedule | arms | gap | best arm lost | undecided | mean steps |",
        "|---|---|---|---|---|---|",
    ]
    for name, rule in rules:
        for arms, gap in CASES:
            key = jax.random.key(arms)
            got = simulate(key, rule(arms), arms, gap, trials, max_steps)
            lines.append(
                f"| {name} | {arms} | {gap} | {100 * got.wrong:.2f} % | "
                f"{100 * got.undecided:.1f} % | {got.steps:.0f} |"
            )
    return "\n".join(lines)


def draw(path: str, arms: int = 7, delta: float = 0.1) -> None:
    """Plots T / (eta L), beta / (eta L) and -log theta over the steps, on log axes."""
    from matplotlib.figure import Figure

    t = jnp.arange(1, 11_701)
    temperature = schedules.pac_temperature(arms, LEARNING_RATE, delta)(t)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.loglog(t, temperature, label="T(t) / (eta L)")
    axis.loglog(t, temperature / 2, "--", label="beta_t / (eta L) = T / 2")
    axis.loglog(t, -schedules.pac_log_threshold(arms)(t), label="-log theta_t")
    axis.set_xlabel("alpha steps t")
    axis.set_title(f"Theorem 2, N = {arms}, delta = {delta}, nu = 1/N", loc="left", fontsize=10)
    axis.grid(True, which="major", color="#dddddd")
    axis.legend()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Theorem 2 as an experiment.")
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--max-steps", type=int, default=13_000)
    parser.add_argument("--plot", help="file to draw T, theta and beta into (.svg, .png)")
    options = parser.parse_args()
    if options.plot:
        draw(options.plot)
    print(table(options.trials, options.max_steps))


if __name__ == "__main__":
    main()
