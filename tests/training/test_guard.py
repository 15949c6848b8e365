"""Numbers that are not finite: where the run stops and what it says, or what it skips."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from tiny import tiny

import asap_jax
from asap_jax.host.errors import UserError
from asap_jax.searching.search_step import SearchStep
from asap_jax.training import guard
from asap_jax.training.train_step import TrainStep


class State(struct.PyTreeNode):
    step: jax.Array
    weight: jax.Array
    mask: jax.Array


@pytest.mark.parametrize("what", ["loss", "weight", "nothing"])
def test_a_step_changes_nothing_but_its_number_where_it_is_not_finite(what):
    def run(state, x):
        weight = jnp.where(what == "weight", jnp.inf, state.weight + x)
        loss = jnp.where(what == "loss", jnp.nan, 1.0)
        after = state.replace(step=state.step + 1, weight=weight, mask=~state.mask)
        return after, {"train_loss": loss, "finished": jnp.bool_(True)}

    state = State(jnp.int32(4), jnp.float32(2.0), jnp.array([True, False]))
    after, metrics = jax.jit(guard.skipping(run, ("step", "weight", "mask")))(state, 3.0)
    assert after.step == 5
    skipped = what != "nothing"
    assert metrics[guard.METRIC] == skipped
    assert metrics["finished"] != skipped  # of a state that is not kept
    assert after.weight == (2.0 if skipped else 5.0)
    np.testing.assert_array_equal(after.mask, state.mask if skipped else ~state.mask)


@pytest.fixture
def poisoned(monkeypatch):
    """The loss of the third step of a search, or of a training, is NaN."""
    searching, training = SearchStep.loss, TrainStep.loss

    def search_loss(self, state, *arguments, **options):
        loss = searching(self, state, *arguments, **options)

        def spoilt(*operands):
            value, others = loss(*operands)
            return value + jnp.where(state.step == 2, jnp.nan, 0.0), others

        return spoilt

    def train_loss(self, params, batch_stats, batch, step, key):
        value, others = training(self, params, batch_stats, batch, step, key)
        return value + jnp.where(step == 2, jnp.nan, 0.0), others

    monkeypatch.setattr(SearchStep, "loss", search_loss)
    return types.SimpleNamespace(
        training=lambda: monkeypatch.setattr(TrainStep, "loss", train_loss)
    )


def test_a_search_says_where_it_was(poisoned, tmp_path):
    config = tiny()
    message = r"loss became nan in epoch 1 of the search.*\(diverged.json has the step, its"
    with pytest.raises(UserError, match=message):
        asap_jax.search(config, workdir=tmp_path)
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert (told["phase"], told["epoch"], told["step"]) == ("search", 1, 3)
    assert told["learning_rate"] == pytest.approx(config.search.omega.learning_rate)
    assert 0.9 < told["temperature"] < 1
    assert told["train_loss"] is None
    omega, alpha = told["batches"]
    assert len(omega) == len(alpha) == config.search.batch_size
    assert not set(omega) & set(alpha)


@pytest.mark.slow
def test_steps_are_skipped_and_counted(poisoned, tmp_path):
    """In the search and in the training; the run ends as if nothing had happened."""
    poisoned.training()
    config, seen = tiny(), []
    config.on_nan = "skip"
    outcome = asap_jax.run(config, workdir=tmp_path, on_epoch=seen.append)
    counts = {(record["phase"], record["epoch"]): record["skipped"] for record in seen}
    assert counts.pop(("search", 1)) == 1
    assert counts.pop(("train", 1)) == 1
    assert set(counts.values()) == {0}
    assert all(np.isfinite(record["train_loss"]) for record in seen)
    assert outcome.results["test_accuracy"] > 0
    assert not (tmp_path / "diverged.json").exists()


@pytest.mark.slow
def test_skipping_everything_is_an_error(tmp_path):
    config = tiny()
    config.on_nan, config.search.omega.learning_rate = "skip", 1e30
    config.search.omega.clip = 1e30
    with pytest.raises(UserError, match="no step gave finite numbers in epoch"):
        asap_jax.search(config)
