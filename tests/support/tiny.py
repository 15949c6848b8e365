"""The digits, reduced to seconds: a run that several tests share, and thus its compilation."""

import json

import jax
import numpy as np

from asap_jax.configs import presets
from asap_jax.host import checkpoint

TRAIN, TEST = 160, 60


def tiny():
    """A config whose search ends within a few epochs, and whose training has two."""
    config = presets.get_config("digits")
    config.data.update({"train_examples": TRAIN, "test_examples": TEST})
    config.search.update({"channels": 4, "cells": 3, "epochs": 8, "batch_size": 20})
    config.search.candidates = ("sep_conv_3x3", "max_pool_3x3", "skip_connect")
    config.search.alpha.learning_rate = 0.3
    config.train.update({"channels": 4, "cells": 3, "epochs": 2, "batch_size": 40})
    return config


def flags(**changes):
    """The flags that turn the preset digits into `tiny()`, with more changes."""
    usual, wanted = (
        dict(leaves(config.to_dict())) for config in (presets.get_config("digits"), tiny())
    )
    changed = {path: value for path, value in wanted.items() if value != usual[path]} | changes
    return [f"--config.{path}={value}" for path, value in changed.items()]


def leaves(tree, path=""):
    """(dotted path, value) of a dict of dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def lines(workdir):
    """metrics.jsonl."""
    return [json.loads(each) for each in (workdir / "metrics.jsonl").read_text().splitlines()]


def records(workdir):
    """metrics.jsonl without the seconds, which differ between runs."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in lines(workdir)]


def last_state(workdir, stage):
    """The newest checkpoint of a stage, as plain arrays by name."""
    steps = [int(path.name) for path in (workdir / "checkpoints" / stage).iterdir()]
    tree = checkpoint.restore(workdir / "checkpoints" / stage / str(max(steps)) / "state")
    leaves = jax.tree.flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal_runs(workdir, whole):
    """Bit for bit: weights, statistics, alphas, masks, optimizers, records, cells, results."""
    assert records(workdir) == records(whole)
    assert (workdir / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    for stage in ("search-0", "train-0"):
        got, want = last_state(workdir, stage), last_state(whole, stage)
        assert got.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{stage} {name}")
    assert any("masks" in name for name in last_state(whole, "search-0"))
    got, want = (json.loads((w / "results.json").read_text()) for w in (workdir, whole))
    for key in ("test_accuracy", "gap", "candidates_left", "epochs", "parameters"):
        assert got[key] == want[key]
