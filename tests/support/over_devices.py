"""Searches and trainings over 1 to 8 virtual CPU devices, for test_devices; prints JSON.

python tests/support/over_devices.py search METHOD PLAN COUNT ...       20 steps, in float64
python tests/support/over_devices.py train ACCUMULATE COUNT ...         the same
python tests/support/over_devices.py run MODE WORKDIR COUNT CUT LAST    losses of a run's steps
"""

import json
import os
import signal
import sys

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np
from jax.sharding import PartitionSpec

from asap_jax import GENOTYPES, data
from asap_jax.configs import presets
from asap_jax.host import compile_cache, devices, loop
from asap_jax.host.interruption import Interrupted, Interruption
from asap_jax.host.run_log import RunLog
from asap_jax.runs import runner
from asap_jax.searching import search_loop
from asap_jax.training import train_loop

IMAGES, STEPS, BATCH = 160, 20, 16


def dataset():
    """Noise around a mean of each class: no two pixels are equal in all of an operation's window.

    Among equal values a pooling's gradient picks one by their last bits, which differ by the number
    of devices.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % 4
    means = rng.integers(60, 190, (4, 8, 8, 3))
    images = np.clip(means[labels] + rng.integers(-60, 60, (IMAGES, 8, 8, 3)), 0, 255)
    images = images.astype(np.uint8)
    return data.from_arrays(images, labels, images[:40], labels[:40])


def config(method="asap"):
    made = presets.get_config(f"tiny,{method},fair")
    made.search.update({"channels": 4, "cells": 3, "batch_size": BATCH, "epochs": 4})
    made.search.candidates = ("sep_conv_3x3", "max_pool_3x3", "skip_connect")
    made.search.alpha.learning_rate /= 3
    if method == "p_darts":  # two stages: of three candidates, one can leave
        options = {"extra_cells": (0, 0), "keep": (2,), "skip_dropout": (0.3, 0.4)}
        made.search.strategy.update(options)
    made.search.augmentation.update({"pad": 1, "flip": True})
    made.train.update({"channels": 4, "cells": 3, "batch_size": BATCH, "epochs": 2})
    made.train.update({"auxiliary_weight": 0.4, "drop_path": 0.3, "label_smoothing": 0.1})
    for part in (made.search, made.train):
        part.eval_batch_size = BATCH  # with a last batch that is not full
    made.train.augmentation.update({"pad": 1, "flip": True, "cutout": 2})
    return made


def session(count, seen):
    def keep(record):
        wanted = {k: v for k, v in record.items() if k != "seconds"}
        seen.append({k: v for k, v in wanted.items() if isinstance(v, int | float | bool)})

    log, shared = RunLog(None, quiet=True), devices.local(count)
    assert shared.among(BATCH).count == count
    if count > 1:
        assert shared.place(BATCH).spec == PartitionSpec(devices.AXIS)
    callbacks = loop.Callbacks(on_step=keep, on_epoch=keep)
    return loop.Session(log, Interruption(), None, callbacks, "stop", shared)


def search(method, plan, counts):
    made, found = config(method).search, {}
    made.plan = plan
    for count in counts:
        seen = []
        with jax.enable_x64(True):
            outcome = search_loop.search(made, dataset(), 0, session(count, seen))
        found[count] = {"steps": seen, "genotype": outcome.genotype.to_json()}
        found[count]["accuracy"] = outcome.derived_accuracy
    return found


def train(accumulate, counts):
    made, found = config().train, {}
    made.accumulate = accumulate
    for count in counts:
        seen = []
        with jax.enable_x64(True):
            outcome = train_loop.train(made, GENOTYPES["ASAP"], dataset(), 0, session(count, seen))
        found[count] = {"steps": seen, "accuracy": outcome.answers.accuracy}
    return found


def run(mode, folder, count, cut, last):
    """Ends after `last` steps in all; killed after `cut` steps of this start, if that is not 0."""
    made, steps = config(), []
    made.devices, made.mode, made.genotype = count, mode, "ASAP" * (mode == "train")

    def on_step(record):
        done = (record["epoch"] - 1) * STEPS // made[mode].epochs + record["step"]
        steps.append(record["train_loss"])
        if len(steps) == cut:
            os.kill(os.getpid(), signal.SIGTERM)
        return done == last

    callbacks = loop.Callbacks(on_step)
    try:
        runner.run(made, folder, dataset=dataset(), callbacks=callbacks, quiet=True)
    except Interrupted:
        pass
    return steps


def main(what, *arguments):
    compile_cache.enable()
    if what == "search":
        method, plan, *counts = arguments
        found = search(method, plan, map(int, counts))
    elif what == "train":
        accumulate, *counts = map(int, arguments)
        found = train(accumulate, counts)
    else:
        mode, folder, *numbers = arguments
        found = run(mode, folder, *map(int, numbers))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
