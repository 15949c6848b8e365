"""Event files hold what metrics.jsonl holds, once, also after an interruption; read with
TensorBoard's own readers."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from command import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from tiny import tiny

from asap_jax.host.errors import UserError
from asap_jax.host.event_files import scalars
from asap_jax.host.interruption import Interrupted
from asap_jax.host.loop import Callbacks
from asap_jax.host.run_log import RunLog
from asap_jax.runs import runner

WEIGHTS = {"normal": [[0.25, 0.75], [1.0, 0.0]], "reduce": [[0.5, 0.5]]}


def record(epoch, loss=None, **more):
    loss = loss or 1 / epoch
    return {"phase": "search", "run": 0, "epoch": epoch, "epochs": 9, "train_loss": loss} | more


def read(folder):
    """{stage: [(tag, epoch, value)]} in order of writing: what the files hold, nothing hidden."""
    found = {}
    for stage in sorted(folder.iterdir()):
        for path in sorted(stage.iterdir()):
            for event in LegacyEventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    got = value.simple_value
                    if value.HasField("tensor"):
                        got = make_ndarray(value.tensor)
                    found.setdefault(stage.name, []).append((value.tag, event.step, got))
    return found


def numbers(events):
    return [each for each in events if np.ndim(each[2]) == 0]


def expected(folder):
    """The same of metrics.jsonl."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        each = json.loads(line)
        stage = "-".join(str(each[key]) for key in ("phase", "run", "stage") if key in each)
        told = [(tag, each["epoch"], np.float32(value)) for tag, value in scalars(each).items()]
        found.setdefault(stage, []).extend(told)
    return found


def test_scalars_are_named_by_phase():
    searched = record(3, val_accuracy=0.5, val_loss=None, architecture="|none~0|")
    searched |= {"benchmark": {"cifar10": 91.0}, "steps": 4, "stages": 2, "stage": 1}
    assert scalars(searched | {"weights": WEIGHTS, "entropy": float("nan")}) == {
        "search/train_loss": 1 / 3,
        "search/val_accuracy": 0.5,
        "search/benchmark/cifar10": 91.0,
    }
    trained = {"phase": "train", "run": 1, "epoch": 1, "train_loss": 0.5, "seconds": 2.0}
    assert scalars(trained) == {"train/loss": 0.5, "train/seconds": 2.0}


def test_each_stage_has_a_folder_and_each_epoch_an_event(tmp_path):
    log = RunLog(tmp_path, quiet=True, tensorboard=True)
    for each in (record(1), record(2), record(1, stage=1), record(1, phase="train", run=2)):
        log.epoch(each)
    assert read(tmp_path / "tensorboard") == expected(tmp_path)
    assert list(read(tmp_path / "tensorboard")) == ["search-0", "search-0-1", "train-2"]


def test_the_weights_are_a_histogram_of_each_cell_type(tmp_path):
    RunLog(tmp_path, quiet=True, tensorboard=True).epoch(record(4, weights=WEIGHTS))
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "search-0")).Reload()
    for cell, weights in WEIGHTS.items():
        (event,) = shown.Tensors(f"search/weights_{cell}")
        buckets = make_ndarray(event.tensor_proto)  # rows of left, right, count
        assert event.step == 4
        assert buckets[:, 2].sum() == np.size(weights)
        assert (buckets[0, 0], buckets[-1, 1]) == (np.min(weights), np.max(weights))
        metadata = shown.SummaryMetadata(f"search/weights_{cell}")
        assert metadata.plugin_data.plugin_name == "histograms"


def test_a_run_that_goes_back_shows_no_epoch_twice(tmp_path):
    first = RunLog(tmp_path, quiet=True, tensorboard=True)
    for each in (record(1, weights=WEIGHTS), record(2), record(3), record(1, phase="select")):
        first.epoch(each)
    (before,) = (tmp_path / "tensorboard" / "search-0").iterdir()
    again = RunLog(tmp_path, quiet=True, tensorboard=True)
    again.rewind({"phase": "search", "run": 0}, 1)
    for each in (record(2, 0.125), record(3, 0.25)):
        again.epoch(each)
    found = read(tmp_path / "tensorboard")
    assert {stage: numbers(events) for stage, events in found.items()} == expected(tmp_path)
    assert [each[1] for each in found["search-0"]] == [1, 1, 1, 2, 3]
    (after,) = (tmp_path / "tensorboard" / "search-0").iterdir()
    assert before.name < after.name
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "search-0")).Reload()
    told = [(event.step, event.value) for event in shown.Scalars("search/train_loss")]
    assert told == [(1, 1), (2, 0.125), (3, 0.25)]


def test_files_that_are_missing_or_broken_off_are_made_again(tmp_path):
    """As after a kill; or of a run that began without them."""
    RunLog(tmp_path, quiet=True).epoch(record(1, weights=WEIGHTS))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"phase": "search", "ru')
    for _ in range(2):
        RunLog(tmp_path, quiet=True, tensorboard=True)
        (path,) = (tmp_path / "tensorboard" / "search-0").iterdir()
        tags = [each[0] for each in read(tmp_path / "tensorboard")["search-0"]]
        assert tags == ["search/train_loss", "search/weights_normal", "search/weights_reduce"]
        path.write_bytes(path.read_bytes()[:-5])


def test_without_the_wish_there_are_none(tmp_path):
    RunLog(tmp_path, quiet=True).epoch(record(1))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["a signal", "a crash"])
def test_a_run_that_is_cut_and_resumed(end, tmp_path):
    """By a signal it has saved the last step; by a crash its last record is of an unsaved epoch."""
    config = tiny()
    config.tensorboard, config.checkpoint.every_steps = True, 3

    def cut(step):
        if (step["epoch"], step["step"]) == (3, 1):
            if end == "a crash":
                raise ZeroDivisionError
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises((Interrupted, ZeroDivisionError)):
        runner.run(config, tmp_path, quiet=True, callbacks=Callbacks(on_step=cut))
    assert {each[1] for each in read(tmp_path / "tensorboard")["search-0"]} == {1, 2}
    runner.run(config, tmp_path, quiet=True)
    found = read(tmp_path / "tensorboard")
    assert {stage: numbers(events) for stage, events in found.items()} == expected(tmp_path)
    epochs = [each[1] for each in found["search-0"] if each[0] == "search/val_accuracy"]
    assert epochs == list(range(1, len(epochs) + 1))
    histograms = [each[1] for each in found["search-0"] if each[0] == "search/weights_normal"]
    assert histograms == epochs
    assert [each[1] for each in found["train-0"] if each[0] == "train/loss"] == [1, 2]


def test_a_missing_package_is_told_before_anything_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    config = tiny()
    config.tensorboard = True
    with pytest.raises(UserError, match=r"pip install 'asap_jax\[tensorboard\]'"):
        runner.run(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_no_tensorflow_is_loaded(tmp_path):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in ('tensorflow', 'torch'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from pathlib import Path\n"
        "from asap_jax.host.run_log import RunLog\n"
        f"log = RunLog(Path({str(tmp_path)!r}), quiet=True, tensorboard=True)\n"
        f"log.epoch({record(1, weights=WEIGHTS)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
    assert len(read(tmp_path / "tensorboard")["search-0"]) == 3
