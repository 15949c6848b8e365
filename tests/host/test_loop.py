"""The host loop, with steps that record when their metrics are fetched."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import last_state, records, tiny

import asap_jax
from asap_jax.host import checkpoint, loop
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interrupted, Interruption
from asap_jax.host.run_log import RunLog

STEPS, EPOCHS = 4, 2


class Value:
    """A metric on a device that appends to `told` when it is fetched."""

    def __init__(self, value, name, told):
        self._value, self._name, self._told = np.float32(value), name, told

    def __array__(self, dtype=None, copy=None):
        self._told.append(f"fetch {self._name}")
        return np.asarray(self._value, dtype)


class Run:
    """`loop.run` on a state that counts its steps; `told` lists the events in order.

    finish, nan: the number of the step that reports `finished`, or whose loss is NaN.
    also: {number of a step: additional metrics}.
    spoils: the number of a step after which the state holds a NaN.
    """

    def __init__(self, folder=None, finish=None, nan=None, also=None, spoils=None, **saving):
        self.told, self.finish, self.nan = [], finish, nan
        self.also, self.spoils = also or {}, spoils
        self.saving = folder and loop.Saving(folder, **saving)

    def step(self, state, number):
        self.told.append(f"step {number}")
        loss = np.nan if number == self.nan else number
        metrics = {"train_loss": Value(loss, number, self.told)}
        if self.finish:
            metrics["finished"] = np.bool_(number == self.finish)
        weight = state["weight"] * (np.nan if number == self.spoils else 1)
        if self.finish and number > self.finish:
            return state, metrics  # as the contract requires
        return {"steps": state["steps"] + 1, "weight": weight}, metrics | self.also.get(number, {})

    def batches(self, epoch, step):
        yield from ((i,) for i in range(epoch * STEPS + step + 1, EPOCHS * STEPS + 1))

    def summary(self, state, progress, last):
        self.told.append(f"epoch {progress.epoch + 1}")
        record = {"mean": progress.mean("train_loss"), "last": float(last["train_loss"])}
        return record | {"steps_of_state": int(state["steps"])}

    def __call__(self, **options):
        callbacks = loop.Callbacks(**{k: options.pop(k) for k in list(options) if k[:3] == "on_"})
        self.records = []
        log = RunLog(None, quiet=True)
        log.epoch = self.records.append
        with Interruption() as interruption:
            session = loop.Session(log, interruption, self.saving, callbacks)
            return loop.run(
                "train",
                {"steps": jnp.int32(0), "weight": jnp.float32(1)},
                self.step,
                self.batches,
                self.summary,
                epochs=EPOCHS,
                steps=STEPS,
                session=session,
                identity={},
                **options,
            )


def test_the_next_step_is_under_way_when_metrics_are_fetched():
    run = Run()
    state, progress = run()
    one = ["step 1", "step 2", "fetch 1", "step 3", "fetch 2", "step 4", "fetch 3", "fetch 4"]
    assert run.told[:9] == [*one, "epoch 1"]
    assert run.told[9:12] == ["step 5", "step 6", "fetch 5"]
    assert (int(state["steps"]), progress.epoch, progress.ended) == (8, 2, "")
    told = [(r["mean"], r["last"], r["steps_of_state"], r["steps"]) for r in run.records]
    assert told == [(2.5, 4, 4, 4), (6.5, 8, 8, 4)]


@pytest.mark.parametrize("last", range(1, 9))
def test_a_search_ends_with_the_state_of_the_step_that_says_so(last, tmp_path):
    run = Run(tmp_path, finish=last)
    state, progress = run()
    assert int(state["steps"]) == last
    assert progress.ended == "finished"
    final = run.records[-1]
    in_epoch = (last - 1) % STEPS + 1
    assert (final["steps"], final["last"], final["steps_of_state"]) == (in_epoch, last, last)
    assert final["mean"] == np.mean(np.arange(last - in_epoch, last) + 1)
    assert f"fetch {last + 1}" not in run.told
    newest = tmp_path / "train-0" / str(saved(tmp_path)[-1])
    assert int(checkpoint.restore(newest / "state")["steps"]) == last


@pytest.mark.parametrize("last", range(1, 9))
def test_a_callback_ends_with_the_state_of_its_step(last):
    """Nothing runs ahead of a callback that may end the run."""

    def is_last(record):
        return (record["epoch"] - 1) * STEPS + record["step"] == last

    for name in ("on_step", "watch"):
        run = Run()
        state, progress = run(**{name: is_last})
        assert int(state["steps"]) == last
        assert progress.ended == "stopped"
        assert f"step {last + 1}" not in run.told
        fetched = [each for each in run.told if each[:5] != "epoch"]
        assert fetched == [f"{what} {i + 1}" for i in range(last) for what in ("step", "fetch")]


@pytest.mark.parametrize("nan", range(1, 9))
def test_a_state_whose_loss_is_not_a_number_is_never_saved(nan, tmp_path):
    run = Run(tmp_path, nan=nan, every_steps=1 + nan % 3)
    with pytest.raises(UserError, match=f"became nan in epoch {1 + (nan - 1) // STEPS} of"):
        run()
    assert f"step {nan + 2}" not in run.told
    assert all(step < nan for step in saved(tmp_path))


BAD = {
    "training loss": {"train_loss": np.float32(np.inf)},
    "loss of the alpha half": {
        "val_loss": np.float32(np.nan),
        "alphas_learned": np.bool_(True),
    },
    "infinite loss of the alpha half": {"val_loss": np.float32(-np.inf)},
    "alpha": {"alphas_finite": np.bool_(False)},
}


@pytest.mark.parametrize("step", [3, 4, 8])
@pytest.mark.parametrize("what", BAD)
def test_a_step_that_says_finished_on_what_is_not_finite_is_an_error(what, step, tmp_path):
    bad = {step: {**BAD[what], "finished": np.bool_(True)}}
    run = Run(tmp_path, also=bad, every_steps=1)
    with pytest.raises(UserError, match=f"in epoch {1 + (step - 1) // STEPS} of the train"):
        run()
    assert all(number < step for number in saved(tmp_path))


@pytest.mark.parametrize(
    ("phase", "lower"),
    [
        ("search", r"lower config\.search\.omega\.learning_rate, in another --workdir$"),
        ("train", r"lower config\.train\.learning_rate, in another --workdir$"),
        ("select", r"lower config\.train\.learning_rate, in another --workdir$"),
        ("fine-tune", "lower learning_rate$"),
    ],
)
def test_what_diverged_is_told_what_to_lower(phase, lower):
    with pytest.raises(UserError, match=f"in epoch 1 of the {phase}: {lower}"):
        loop._check_metrics({"train_loss": np.float32(np.nan)}, phase, loop.Progress())


@pytest.mark.parametrize("saving", [{}, {"every_steps": 1}])
@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_state_with_what_is_no_number_is_neither_saved_nor_measured(step, saving, tmp_path):
    """Even though the loss of the step that produced it was still finite."""
    run = Run(tmp_path, spoils=step, finish=step, **saving)
    with pytest.raises(UserError, match="a weight or a statistic became infinite or nan"):
        run()
    assert f"epoch {1 + (step - 1) // STEPS}" not in run.told
    assert all(number < step for number in saved(tmp_path))


def test_a_step_in_which_the_alphas_rest_has_no_loss_of_them():
    rest = {"val_loss": np.float32(np.nan), "alphas_learned": np.bool_(False)}
    _, progress = Run(also={3: rest, 6: {"val_loss": np.float32(2)}})()
    assert progress.epoch == EPOCHS


@pytest.mark.parametrize("every_steps", [1, 2, 3])
def test_state_and_progress_are_saved_of_one_step(every_steps, tmp_path):
    """Every checkpoint, whether by `every_steps` or at the end of an epoch."""
    Run(tmp_path, every_steps=every_steps, keep=99)()
    steps = saved(tmp_path)
    assert steps == [i for i in range(1, 9) if i % every_steps == 0 or i == 8]
    for step in steps:
        together(tmp_path, step)


@pytest.mark.parametrize("after", range(1, 8))
def test_an_interruption_saves_all_that_was_begun(after, tmp_path):
    """The signal arrives while the metrics of a step are fetched; the step in flight completes."""
    run = Run(tmp_path)

    class Signalling(list):
        def append(self, what):
            super().append(what)
            if what == f"fetch {after}":
                os.kill(os.getpid(), signal.SIGTERM)

    run.told = Signalling()
    with pytest.raises(Interrupted) as stop:
        run()
    done = max(int(each.split()[1]) for each in run.told if each.startswith("fetch"))
    assert max(int(each.split()[1]) for each in run.told if each.startswith("step")) == done
    assert after <= done <= after + 1
    assert saved(tmp_path)[-1] == done
    together(tmp_path, done)
    assert f"{done // STEPS} epochs and {done % STEPS} of {STEPS} steps done" in str(stop.value)
    again = Run(tmp_path)
    state, progress = again()
    assert [each for each in again.told if each[:4] == "step"] == [
        f"step {i}" for i in range(done + 1, 9)
    ]
    assert (int(state["steps"]), progress.epoch) == (8, 2)
    assert [r["mean"] for r in run.records + again.records] == [2.5, 6.5]


@pytest.mark.parametrize("signum", Interruption.SIGNALS)
def test_each_signal_saves(signum, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Interrupted) as stop:
        run(on_step=lambda record: record["step"] == 3 and os.kill(os.getpid(), signum))
    assert stop.value.signum == signum
    assert saved(tmp_path) == [3]


def saved(folder):
    return sorted(int(path.name) for path in (folder / "train-0").iterdir())


def together(folder, step):
    """Asserts that the checkpoint of `step` holds the state and the sums of exactly that step."""
    where = folder / "train-0" / str(step)
    assert int(checkpoint.restore(where / "state")["steps"]) == step
    progress = json.loads((where / "progress" / "metadata").read_text())
    assert progress["epoch"] * STEPS + progress["step"] == step
    counted = np.arange(progress["epoch"] * STEPS, step) + 1
    sums = {"train_loss": [counted.sum(), len(counted)]} if len(counted) else {}
    assert progress["sums"] == sums


def test_a_search_that_runs_ahead_is_one_that_does_not(tmp_path):
    """Bit for bit: records, cells, and the state that reports every edge decided."""
    for name, on_step in (("ahead", None), ("not", lambda record: None)):
        asap_jax.search(tiny(), workdir=tmp_path / name, on_step=on_step, quiet=True)
    assert records(tmp_path / "ahead") == records(tmp_path / "not")
    assert records(tmp_path / "not")[-1]["candidates_left"] == 28
    for name in ("genotype.json", "stages/search-0.json"):
        told = [json.loads((tmp_path / each / name).read_text()) for each in ("ahead", "not")]
        for record in told:
            record.pop("seconds", None)
        assert told[0] == told[1]
    got, want = (last_state(tmp_path / name, "search-0") for name in ("ahead", "not"))
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
