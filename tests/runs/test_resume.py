"""Interrupted runs that resume: real signals to real processes, and allowed changes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pytest
from command import ROOT, without_plugin
from tiny import assert_equal_runs, flags, last_state, lines, records, tiny

import asap_jax
from asap_jax import data
from asap_jax.configs import presets
from asap_jax.host import loop
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interrupted
from asap_jax.runs import inputs, runner

HERE = ROOT / "tests" / "support"
SEARCH_EPOCHS, EPOCH_STEPS, TRAIN_STEPS = 8, 4, 8  # of the tiny config; its search ends earlier


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    runner.run(tiny(), workdir, quiet=True)
    return workdir


def search_steps(workdir):
    """Steps of a workdir's search: when it is decided depends on rounding, so on versions."""
    last = [record for record in records(workdir) if record["phase"] == "search"][-1]
    return (last["epoch"] - 1) * EPOCH_STEPS + last["steps"]


def search_epochs(workdir):
    return [r["epoch"] for r in records(workdir) if r["phase"] == "search"]


def cut_run(workdir, phase="", step=0, name="SIGTERM", every_steps=0, **environment):
    """Starts the run in its own process; returns its exit code."""
    arguments = [str(workdir), phase, str(step), name, str(every_steps)]
    done = subprocess.run(
        [sys.executable, str(HERE / "cut_run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def test_the_tiny_run_is_as_long_as_these_tests_think(whole):
    """Its search is decided before its last epoch, and leaves steps to interrupt."""
    epochs = search_epochs(whole)
    assert epochs == list(range(1, len(epochs) + 1))
    assert json.loads((whole / "stages/search-0.json").read_text())["ended"] == "finished"
    assert EPOCH_STEPS < search_steps(whole) <= len(epochs) * EPOCH_STEPS
    assert len(epochs) <= SEARCH_EPOCHS
    # The last state of a stage counts whole epochs.
    for stage, steps in (("search-0", len(epochs) * EPOCH_STEPS), ("train-0", TRAIN_STEPS)):
        assert max(int(p.name) for p in (whole / "checkpoints" / stage).iterdir()) == steps


@pytest.mark.slow
def test_a_clock_that_jumps_damages_nothing(whole, tmp_path, monkeypatch):
    """By up to a month either way after every step.

    Orbax' timeouts go by that clock: a write that is under way may fail, and the same command goes
    on.
    """
    clock, clock_ns, rng, off = time.time, time.time_ns, np.random.default_rng(0), [0.0]
    monkeypatch.setattr(time, "time", lambda: clock() + off[0])
    monkeypatch.setattr(time, "time_ns", lambda: clock_ns() + int(1e9 * off[0]))
    config, jumps = tiny(), []
    config.checkpoint.every_steps = 3

    def jump(record):
        off[0] = rng.uniform(-3e6, 3e6)
        jumps.append(record)

    for _ in range(10):
        try:
            runner.run(config, tmp_path, quiet=True, callbacks=loop.Callbacks(on_step=jump))
            break
        except UserError as error:
            assert "cannot be saved" in str(error)
    assert (tmp_path / "results.json").exists()
    assert len(jumps) >= search_steps(whole) + TRAIN_STEPS
    assert_equal_runs(tmp_path, whole)


FIRST = HERE / "workdir_of_version_1.tar.xz"


def first_config():
    """The config of the archived workdir, whose search was cut in its third epoch."""
    config = tiny()
    config.mode = "search"
    config.search.candidates = ("sep_conv_3x3", "skip_connect")
    config.search.update({"epochs": 4, "channels": 2})
    config.search.alpha.learning_rate = 0.01
    config.checkpoint.keep = 1
    return config


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    """Its digests hold, and the run goes on after the epochs and steps that it has done."""
    with tarfile.open(FIRST) as archive:
        archive.extractall(tmp_path, filter="data")
    before, seen = lines(tmp_path), []

    def on_step(record):
        seen.append((record["epoch"], record["step"]))

    runner.run(first_config(), tmp_path, quiet=True, callbacks=loop.Callbacks(on_step=on_step))
    assert seen[0] == (3, 3)
    assert lines(tmp_path)[:2] == before
    assert (tmp_path / "genotype.json").exists()


@pytest.mark.slow  # by default stress/test_kill.py cuts runs
@pytest.mark.parametrize("cuts", [1, 2])
def test_cut_by_signals_at_random_steps(cuts, whole, tmp_path):
    """Once or twice in the search, once in the training; each time another process resumes."""
    rng = np.random.default_rng()
    before_the_last = np.arange(1, search_steps(whole))
    searching = sorted(rng.choice(before_the_last, cuts, replace=False).tolist())
    training = int(rng.integers(1, TRAIN_STEPS))
    told = f"cut after steps {searching} of the search, {training} of the training"
    for step, name in zip(searching, ("SIGINT", "SIGTERM"), strict=False):
        code = 128 + getattr(signal, name)
        assert cut_run(tmp_path, "search", step, name) == code, told
    assert not (tmp_path / "genotype.json").exists(), told
    assert cut_run(tmp_path, "train", training, "SIGTERM") == 128 + signal.SIGTERM, told
    assert not (tmp_path / "results.json").exists(), told
    assert cut_run(tmp_path) == 0, told
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow  # networks are used there in test_api
def test_a_run_where_jax_knows_64_bits_is_one_where_it_does_not(whole, tmp_path):
    assert cut_run(tmp_path, JAX_ENABLE_X64="1") == 0
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
def test_killed_outright_it_goes_on_from_its_last_checkpoint(whole, tmp_path):
    step = int(np.random.default_rng().integers(4, search_steps(whole)))
    assert cut_run(tmp_path, "search", step, "SIGKILL", every_steps=3) == -signal.SIGKILL
    assert cut_run(tmp_path, every_steps=3) == 0, f"killed after step {step} of the search"
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
def test_the_command_says_how_to_go_on(tmp_path):
    """SIGTERM from outside: exit code 143, and the printed command resumes."""
    command = [
        *(sys.executable, "-m", "asap_jax.main", "--config=search:digits"),
        f"--workdir={tmp_path}/a run",
        *flags(**{"train.epochs": 150}),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if line.startswith("train   3/150"):
            process.send_signal(signal.SIGTERM)
            break
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted; train 0: " in stderr
    assert "Traceback" not in stderr
    again = shlex.split(stderr.strip().splitlines()[-1])
    assert again[:3] == ["python", "-m", "asap_jax.main"]
    again = [sys.executable, *again[1:]]
    done = subprocess.run(again, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "train-0 goes on after" in done.stdout
    assert json.loads((tmp_path / "a run/results.json").read_text())["epochs"]["train"] == 150


def test_a_signal_while_data_are_read_is_told_like_any_other(tmp_path):
    """There is no step yet to finish first."""
    lines = (
        "import os, signal",
        "from asap_jax import main",
        "from asap_jax.runs import runner, resolve",
        "resolve.load_data = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)",
        "main.run()",
    )
    command = [sys.executable, "-c", "\n".join(lines), "--config=search:digits"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM
    first, *again = without_plugin(done.stderr).splitlines()
    assert first.startswith("asap_jax: interrupted; at once")
    assert again == [
        "  python -m asap_jax.main --config=search:digits --workdir=runs/digits",
    ]


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the uninterrupted run, to change."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_finished_run_is_not_run_again(copy, capsys):
    before = (copy / "results.json").read_text()
    started = time.monotonic()
    outcome = runner.run(tiny(), copy)
    assert time.monotonic() - started < 60
    assert "compiling" not in capsys.readouterr().out
    assert outcome.results == json.loads(before)
    assert (copy / "results.json").read_text() == before
    dataset = inputs.load_data(tiny())
    accuracy = outcome.network.accuracy(dataset.test_images, dataset.test_labels)
    assert accuracy == outcome.results["test_accuracy"]


def test_more_epochs_of_training_may_be_asked_for_fewer_not(copy):
    config, before = tiny(), search_epochs(copy)
    config.train.epochs = 3
    runner.run(config, copy, quiet=True)
    epochs = [(r["phase"], r["epoch"]) for r in records(copy)]
    assert epochs[-3:] == [("train", 1), ("train", 2), ("train", 3)]
    assert epochs[:-3] == [("search", i) for i in before]
    # The test images were read at both lengths, and the results report it.
    assert json.loads((copy / "results.json").read_text())["test_readings"] == 2
    assert json.loads((copy / "stages/train-0.json").read_text())["test_readings"] == 2
    config.train.epochs = 1
    with pytest.raises(UserError, match="training of 3 epochs that is done"):
        runner.run(config, copy, quiet=True)
    assert json.loads((copy / "config.json").read_text())["train"]["epochs"] == 3


def test_what_may_change_is_said_and_the_rest_is_refused_by_name(copy):
    config = tiny()
    config.checkpoint.every_seconds = 1.0
    config.data.dir = "/elsewhere"
    runner.run(config, copy, quiet=True)
    config.search.omega.clip = 1.0
    with pytest.raises(UserError, match=r"\(search.omega.clip: 5.0 there, 1.0 here\)"):
        runner.run(config, copy, quiet=True)


def test_a_checkpoint_of_other_data_is_refused(copy):
    (copy / "stages/train-0.json").unlink()
    dataset = inputs.load_data(tiny())
    images = dataset.train_images.copy()
    images[0] = 255 - images[0]
    changed = data.from_arrays(
        images, dataset.train_labels, dataset.test_images, dataset.test_labels
    )
    with pytest.raises(UserError, match=r"belongs to another run \(data: .* there, .* here\)"):
        runner.run(tiny(), copy, dataset=changed, quiet=True)


def test_a_finished_stage_of_other_data_is_refused(copy):
    """What a search found on some images is not trained on others."""
    dataset = inputs.load_data(tiny())
    changed = data.from_arrays(
        255 - dataset.train_images,
        dataset.train_labels,
        dataset.test_images,
        dataset.test_labels,
    )
    with pytest.raises(UserError, match=r"stages/search-0.json belongs to another run \(data: "):
        runner.run(tiny(), copy, dataset=changed, quiet=True)


def test_a_network_that_was_deleted_is_made_again_from_its_checkpoint(copy):
    before = asap_jax.load(copy).variables
    shutil.rmtree(copy / "network")
    runner.run(tiny(), copy, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, asap_jax.load(copy).variables, before)


def test_on_prune_tells_each_candidate_once_over_all_starts(tmp_path):
    told = []

    def cut(record):
        told.extend(record["pruned"])
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        asap_jax.search(tiny(), workdir=tmp_path, on_prune=cut, quiet=True)
    first = len(told)
    asap_jax.search(
        tiny(), workdir=tmp_path, on_prune=lambda record: told.extend(record["pruned"]), quiet=True
    )
    assert 0 < first < len(told) == len(set(told)) == 2 * 14 * 2


@pytest.mark.slow
def test_cut_with_every_option_of_training(tmp_path):
    """Auxiliary head, drop-path, moving average, pieces: interrupted mid-epoch, equal results."""
    config = tiny()
    config.train.update({"auxiliary_weight": 0.4, "drop_path": 0.3, "average": 0.9})
    config.train.update({"accumulate": 2, "epochs": 2})
    config.data.class_weights = "balanced"

    def cut(record):
        if (record["epoch"], record["step"]) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)

    asap_jax.train("ASAP", config, workdir=tmp_path / "whole", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        asap_jax.train("ASAP", config, workdir=tmp_path / "cut", on_step=cut, quiet=True)
    asap_jax.train("ASAP", config, workdir=tmp_path / "cut", quiet=True)
    got, want = (last_state(tmp_path / name, "train-0") for name in ("cut", "whole"))
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_a_checkpoint_of_other_cells_is_refused(copy):
    (copy / "stages/train-0.json").unlink()
    stage = copy / "stages/search-0.json"
    record = json.loads(stage.read_text())
    record["genotype"] = json.loads(asap_jax.GENOTYPES["ASAP"].to_json())
    stage.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"belongs to another run \(genotype: "):
        runner.run(tiny(), copy, quiet=True)


def test_a_checkpoint_that_cannot_be_read_is_named(copy):
    (copy / "stages/train-0.json").unlink()
    state = copy / "checkpoints/train-0" / str(TRAIN_STEPS)
    for file in (state / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=f"train-0/{TRAIN_STEPS}"):
        runner.run(tiny(), copy, quiet=True)


def test_a_workdir_of_a_newer_version_is_refused(copy):
    record = json.loads((copy / "config.json").read_text())
    record["workdir_version"] = 99
    (copy / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="has version 99, this asap_jax reads version 1"):
        runner.run(tiny(), copy, quiet=True)


def test_the_last_few_states_are_kept(tmp_path):
    config = tiny()
    config.checkpoint.update({"every_steps": 2, "keep": 3})
    runner.run(config, tmp_path, mode="search", quiet=True)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints/search-0").iterdir())
    # The very last step is saved as the end of its epoch.
    before = list(range(2, search_steps(tmp_path), 2))
    assert kept == [*before[-2:], len(records(tmp_path)) * EPOCH_STEPS]
    assert len(kept) == 3


def staged():
    config = presets.get_config("digits,p_darts")
    config.data.update({"train_examples": 60, "test_examples": 20})
    config.search.update({"channels": 4, "cells": 3, "epochs": 4, "batch_size": 15})
    config.search.candidates = ("avg_pool_3x3", "max_pool_3x3", "skip_connect")
    options = {"extra_cells": (0, 1), "keep": (2,), "skip_dropout": (0.3, 0.4), "grace": 0.0}
    config.search.strategy.update(options)
    return config


@pytest.mark.slow
def test_a_search_in_stages_is_cut_in_each_of_them(tmp_path):
    def cut_at(stage, step):
        def on_step(record):
            if (record.get("stage", 0), record["epoch"], record["step"]) == (stage, 2, step):
                os.kill(os.getpid(), signal.SIGTERM)

        return on_step

    asap_jax.search(staged(), workdir=tmp_path / "whole", quiet=True)
    for stage in (0, 1):
        with pytest.raises(Interrupted):
            asap_jax.search(
                staged(), workdir=tmp_path / "cut", on_step=cut_at(stage, 1), quiet=True
            )
    found = asap_jax.search(staged(), workdir=tmp_path / "cut", quiet=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert records(cut) == records(whole)
    assert [(r.get("stage", 0), r["epoch"]) for r in records(cut)] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]
    assert (cut / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    for stage in ("search-0", "search-0-1"):
        got, want = last_state(cut, stage), last_state(whole, stage)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{stage} {name}")
    assert "cell3" in str(got.keys())
    assert "cell3" not in str(last_state(cut, "search-0").keys())
    assert found.search["epochs"] == 4
    left = [record["candidates_left"] for record in records(cut)]
    assert left == [2 * 14 * 3] * 2 + [2 * 14 * 2] * 2
