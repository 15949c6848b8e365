"""Several searches are compared on equal terms."""

import json
import types

import numpy as np
import pytest
from tiny import tiny

from asap_jax import GENOTYPES, data
from asap_jax.host import loop
from asap_jax.host.interruption import Interruption
from asap_jax.host.run_log import RunLog
from asap_jax.runs import resolve, runner


def numbered(count=400, classes=4):
    """A data set whose images encode their index."""
    images = np.arange(count, dtype=np.uint16).view(np.uint8).reshape(count, 1, 2, 1)
    labels = np.arange(count) % classes
    return data.from_arrays(images, labels, images[:8], labels[:8])


def number(images):
    return images.reshape(len(images), 2).view(np.uint16).ravel()


@pytest.mark.parametrize("searches", [2, 5])
@pytest.mark.parametrize("seed", [0, 1, 23])
def test_no_search_is_measured_on_its_own_half(seed, searches, monkeypatch):
    seen, accuracies = [], np.random.default_rng(seed).random(searches)

    def train(config, genotype, split, seed, session, **options):
        seen.append((seed, number(split.train_images), number(split.test_images)))
        answers = types.SimpleNamespace(accuracy=accuracies[options["index"]])
        return types.SimpleNamespace(answers=answers, seconds=0.0)

    monkeypatch.setattr(runner.train_loop, "train", train)
    config, dataset = tiny(), numbered()
    config.seed, config.searches = seed, searches
    session = loop.Session(RunLog(None, quiet=True), Interruption())
    whole = resolve.Job(config, {}, None, "", dataset, None, None, None)
    run = runner._Run(whole, session, loop.Stopwatch())
    found = {"genotype": json.loads(GENOTYPES["ASAP"].to_json()), "seconds": 0.0}
    assert run.select([dict(found) for _ in range(searches)]) == np.argmax(accuracies)
    count = len(dataset.train_labels)
    for train_seed, trained_on, measured_on in seen:  # the same for all
        assert train_seed == seed
        np.testing.assert_array_equal(trained_on, seen[0][1])
        np.testing.assert_array_equal(measured_on, seen[0][2])
        assert sorted([*trained_on, *measured_on]) == list(range(count))
    for index in range(searches):
        _, alpha_half = data.halves(dataset.train_labels, seed + index)
        own = number(dataset.train_images[alpha_half])
        assert 0.4 < np.isin(own, measured_on).mean() < 0.6
