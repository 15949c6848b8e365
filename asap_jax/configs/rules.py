"""What holds for a config whatever the data: one rule a key, then rules between keys."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from asap_jax.data.autoaugment import POLICIES
from asap_jax.host import precisions
from asap_jax.host.errors import UserError, nearest
from asap_jax.methods import STRATEGIES
from asap_jax.methods.derive import EDGES
from asap_jax.networks.models import OUTPUTS, SQUEEZES, STEMS
from asap_jax.networks.plans import PLANS
from asap_jax.networks.spaces import SPACES


class Rule(NamedTuple):
    """holds: value -> bool; expected: completes "but has to be ..." for a value that breaks it."""

    holds: Callable[[Any], bool]
    expected: Callable[[Any], str]


def at_least(least, unit: str = "") -> Rule:
    words = f"{least} or more{unit}" if least == 0 else f"at least {least}{unit}"
    return Rule(lambda value: value >= least, lambda value: words)


def one_of(known: Collection[str], quoted: bool = False) -> Rule:
    def expected(value):  # when it is asked for: a program may have added to the known ones
        words = ", ".join(map(repr if quoted else str, known))
        return f"one of {words}{nearest(value, known)}"

    return Rule(lambda value: value in known, expected)


ABOVE_0 = Rule(lambda value: value > 0, lambda value: "above 0")
SHARE = Rule(lambda value: 0 <= value < 1, lambda value: "in [0, 1)")
BETWEEN = Rule(lambda value: 0 < value < 1, lambda value: "above 0 and below 1")
JITTER = Rule(
    lambda strengths: not strengths or _is_jitter(strengths),
    lambda strengths: (
        "empty or four numbers from 0 on: brightness, contrast, saturation, and hue up to 0.5"
    ),
)


def _is_jitter(strengths) -> bool:
    numbers = all(isinstance(strength, int | float) for strength in strengths)
    return len(strengths) == 4 and numbers and min(strengths) >= 0 and strengths[3] <= 0.5


def of_each(rule: Rule, *keys: str) -> dict[str, Rule]:
    return dict.fromkeys(keys, rule)


def of_both(rule: Rule, *keys: str) -> dict[str, Rule]:
    """The same keys of the search and of the training."""
    return {f"{part}.{key}": rule for part in ("search", "train") for key in keys}


def of_sgd(*keys: str) -> list[str]:
    """The keys of omega's optimizer in the search and of the training's."""
    return [f"{group}.{key}" for group in ("search.omega", "train") for key in keys]


RULES: dict[str, Rule] = {
    **of_each(at_least(0), "seed", "devices"),
    "mode": one_of(("", "search", "train"), quoted=True),
    "on_nan": one_of(("stop", "skip"), quoted=True),
    **of_each(at_least(1), "searches", "selection.epochs", "checkpoint.keep"),
    **of_each(at_least(0), "checkpoint.every_seconds", "checkpoint.every_steps"),
    **of_each(at_least(0), "data.train_examples", "data.test_examples", "data.image_size"),
    **of_each(at_least(0), "data.split_seed", "data.max_pixels"),
    "data.test_share": BETWEEN,
    "data.class_weights": one_of(("none", "balanced")),
    "data.streaming": one_of(("auto", "on", "off")),
    "data.workers": Rule(lambda value: value >= -1, lambda value: "-1, 0 or more"),
    # With fewer than three cells there is no normal cell besides the two reductions.
    **of_both(at_least(3), "cells"),
    **of_both(at_least(1), "channels", "epochs", "batch_size", "eval_batch_size"),
    **of_both(one_of(precisions.PRECISIONS), "precision"),
    **of_both(at_least(0, " pixels"), "augmentation.pad"),
    **of_both(SHARE, "drop_path"),
    **of_each(ABOVE_0, *of_sgd("learning_rate", "clip")),
    **of_each(at_least(0), *of_sgd("final_learning_rate", "weight_decay")),
    **of_each(SHARE, *of_sgd("momentum")),
    "search.space": one_of(SPACES),
    "search.edges": one_of(EDGES),
    "search.strategy.name": one_of(STRATEGIES),
    "search.plan": one_of(("auto", *PLANS)),
    "search.alpha.learning_rate": ABOVE_0,
    **of_each(SHARE, "search.alpha.b1", "search.alpha.b2"),
    **of_each(at_least(0), "search.alpha.weight_decay", "search.cost_weight"),
    **of_each(at_least(0), "search.target_params", "search.target_macs", "search.target_weight"),
    "search.budget_minutes": at_least(0),
    "search.max_skips": Rule(lambda value: value >= -1, lambda value: "-1, 0 or more"),
    "search.watch.images": at_least(0),
    "search.benchmark_cells": Rule(
        lambda value: value == 0 or value >= 2, lambda value: "0 or at least 2 cells to rank"
    ),
    "search.watch.eigenvalue_every": at_least(1, " epoch"),
    "search.watch.eigenvalue_from": at_least(0, " epochs"),
    "train.seeds": at_least(1),
    "train.accumulate": at_least(1),
    "train.schedule": one_of(("cosine", "power_cosine", "exponential"), quoted=True),
    "train.stem": one_of(STEMS, quoted=True),
    "train.output": one_of(OUTPUTS, quoted=True),
    "train.squeeze": one_of(SQUEEZES, quoted=True),
    "train.cycles": at_least(1),
    **of_each(ABOVE_0, "train.amplitude", "train.power"),
    "train.auxiliary_weight": at_least(0),
    **of_each(SHARE, "train.label_smoothing", "train.validation_share", "train.average"),
    "train.augmentation.cutout": at_least(0, " pixels"),
    "train.augmentation.policy": one_of(("", *POLICIES), quoted=True),
    "train.augmentation.jitter": JITTER,
}


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that no run can use, whatever the data."""
    for key in _unset(config):
        _require(False, key, None, "a value")
    for key, rule in RULES.items():
        value = _value(config, key)
        _require(rule.holds(value), key, value, rule.expected(value))
    search, train = config.search, config.train
    _require(
        search.watch.eigenvalue or not search.early_stop,
        "search.early_stop",
        search.early_stop,
        "False unless config.search.watch.eigenvalue=True, which tells when to stop",
    )
    _require(
        not (search.target_params and search.target_macs),
        "search.target_macs",
        search.target_macs,
        f"0 beside config.search.target_params={search.target_params:g}: choose one of the two",
    )
    _require(
        train.final_learning_rate > 0 or train.schedule != "exponential",
        "train.final_learning_rate",
        train.final_learning_rate,
        "above 0: the exponential schedule falls to it by a constant factor an epoch",
    )
    policy, jitter = train.augmentation.policy, train.augmentation.jitter
    _require(
        not (policy and jitter),
        "train.augmentation.jitter",
        jitter,
        f"empty beside config.train.augmentation.policy={policy}: choose one of the two",
    )
    _require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"a divisor of config.train.batch_size, which is {train.batch_size}",
    )


def _unset(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The keys of value None, except a strategy's options, for which it may mean something."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            yield from _unset(value, f"{key}.")
        elif value is None and (prefix != "search.strategy." or name == "name"):
            yield key


def _value(config: ConfigDict, key: str):
    for name in key.split("."):
        config = config[name]
    return config


def _require(holds: bool, key: str, value, expected: str) -> None:
    if not holds:
        raise UserError(f"config.{key} is {value!r}, but has to be {expected}")
