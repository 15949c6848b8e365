"""Several processes of one run (jax.distributed), here two on one machine with a device each.

Their numbers are those of one process with two devices, as far as addition in another order lets
them be.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from command import ROOT, command
from PIL import Image
from tiny import records

from asap_jax import data

COMMAND = (sys.executable, "-m", "asap_jax.main", "--distributed")
POOLS = "Genotype(normal=[('max_pool_3x3', 0), ('skip_connect', 1), ('max_pool_3x3', 0), "
POOLS += "('skip_connect', 1)], normal_concat=[2, 3], reduce=[('max_pool_3x3', 0), "
POOLS += "('skip_connect', 1), ('max_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=[2, 3])"
TRAIN = (
    *("--config=configs/search.py:tiny", "--mode=train", f"--config.genotype={POOLS}"),
    *("--config.train.channels=4", "--config.train.cells=3", "--config.train.epochs=4"),
)
SEARCH = (
    *("--config=configs/search.py:tiny", "--mode=search", "--config.search.channels=4"),
    "--config.search.candidates=('sep_conv_3x3','max_pool_3x3','skip_connect')",
    *("--config.search.epochs=3", "--config.search.watch.images=0"),
)


def start(folder, *arguments, each=((), ())):
    """The two processes of a run, whose output goes to folder.0 and folder.1.

    `each` has the further arguments of each of them.
    """
    return start_two(folder, *COMMAND, *arguments, f"--workdir={folder}", each=each)


def start_two(folder, *command, each=((), ())):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    started = []
    for index in range(2):
        with open(folder.with_name(f"{folder.name}.{index}"), "w") as output:
            started.append(
                subprocess.Popen(
                    [*command, *each[index]],
                    env={**os.environ, **shared, "JAX_PROCESS_ID": str(index)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                )
            )
    return started


def output(folder, index):
    return folder.with_name(f"{folder.name}.{index}").read_text()


def codes(started, timeout=300):
    """Exit codes; kills what is left after a timeout."""
    try:
        return [each.wait(timeout) for each in started]
    finally:
        for each in started:
            each.kill()


def together(folder, *arguments):
    assert codes(start(folder, *arguments)) == [0, 0], output(folder, 0) + output(folder, 1)


def alone(folder, *arguments):
    """The same run by one process with two devices."""
    done = command(*arguments, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr


def losses(folder):
    return [record["train_loss"] for record in records(folder)]


def result(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def write_images(root, classes, **counts):
    """Noise, as a folder of images in parts and classes."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for i in range(count):
            path = root / part / f"class{i % classes}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)


def wait_for(folder, epochs, started):
    """Waits until so many epochs are recorded."""
    end = time.monotonic() + 200
    while time.monotonic() < end and all(each.poll() is None for each in started):
        if (folder / "metrics.jsonl").exists() and len(records(folder)) >= epochs:
            return
        time.sleep(0.05)
    raise AssertionError(output(folder, 0) + output(folder, 1))


def test_two_processes_train_as_one_with_two_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    together(tmp_path / "two", *TRAIN)
    assert "2 of them" in output(tmp_path / "two", 0)
    assert "train" not in output(tmp_path / "two", 1)  # the first process tells
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    alone(tmp_path / "one", *TRAIN)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["devices"] == one["devices"] == {"train": 2}
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.01)


@pytest.mark.slow
def test_two_processes_search_as_one_with_two_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    together(tmp_path / "two", *SEARCH)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    alone(tmp_path / "one", *SEARCH)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-2)
    one, two = (records(tmp_path / name) for name in ("one", "two"))
    assert two[0]["candidates_left"] == one[0]["candidates_left"]
    assert (tmp_path / "two/genotype.json").exists()


@pytest.mark.slow
def test_a_process_that_is_gone_ends_the_others_and_the_run_goes_on(tmp_path, monkeypatch):
    """Kills the second, then the first; SIGTERM to one stops both. The end is that of no kill."""
    monkeypatch.setenv("XLA_FLAGS", "")
    arguments = (*TRAIN[:-1], "--config.train.epochs=60", "--config.checkpoint.every_steps=12")
    together(tmp_path / "whole", *arguments)
    folder, saved = tmp_path / "cut", 0
    for killed in (1, 0):
        started = start(folder, *arguments)
        wait_for(folder, saved + 3, started)
        started[killed].kill()
        begin = time.monotonic()
        other = started[1 - killed].wait(60)
        assert other not in (0, 2), output(folder, 1 - killed)
        assert time.monotonic() - begin < 60
        assert started[killed].wait(10) == -signal.SIGKILL
        saved = len(records(folder))
    started = start(folder, *arguments)
    wait_for(folder, saved + 3, started)
    started[1].terminate()
    assert codes(started, 60) == [143, 143]
    assert "all saved" in output(folder, 0)
    together(folder, *arguments)
    assert [record["epoch"] for record in records(folder)] == list(range(1, 61))
    assert losses(folder) == losses(tmp_path / "whole")
    assert result(folder)["test_accuracy"] == result(tmp_path / "whole")["test_accuracy"]
    together(folder, *arguments)  # nothing is left to do


@pytest.mark.parametrize("batch_size", [8, pytest.param(7, marks=pytest.mark.slow)])
def test_each_process_reads_its_share_of_a_stream(tmp_path, monkeypatch, batch_size):
    """Of a batch that the devices do not divide, each reads all."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_images(tmp_path / "images", train=24, test=10, classes=3)
    script = ROOT / "tests/support/share_of_stream.py"
    both = start_two(tmp_path / "run", sys.executable, script, tmp_path / "images", str(batch_size))
    assert codes(both) == [0, 0], output(tmp_path / "run", 0) + output(tmp_path / "run", 1)
    found = [json.loads(output(tmp_path / "run", i).splitlines()[-1]) for i in range(2)]
    stream = data.stream(
        data.open_source(f"folder:{tmp_path / 'images'}"), image_size=16, workers=0
    )
    want = {
        "train": [np.asarray(y).tolist() for _, y in stream.train_batches(batch_size, 5, 1, 0, 0)],
        "test": [np.asarray(y).tolist() for _, y, _ in stream.test_batches(batch_size)],
    }
    read = batch_size * (len(want["train"]) + len(want["test"]))
    half = batch_size // 2
    for i, each in enumerate(found):
        shared = batch_size % 2 == 0
        assert each["reads"] == (read // 2 if shared else read)
        rows = [i * half, (i + 1) * half] if shared else [0, batch_size]
        for part, batches in want.items():
            assert each[part] == [[[rows, labels[slice(*rows)]]] for labels in batches]


def test_a_run_of_several_processes_is_refused_what_it_cannot_do(tmp_path, monkeypatch):
    done = command("--distributed", *TRAIN, "--dry_run")
    assert done.returncode == 2
    assert "--distributed shares a search or a training" in done.stderr
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    done = command("--distributed", *TRAIN, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "JAX_NUM_PROCESSES and JAX_PROCESS_ID" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("both", "second", "words"),
    [
        ("--config.train.batch_size=25", (), "choose 24 or 26"),
        ("--config.devices=1", (), "leave it 0"),
        ("--config.seed=0", ("--config.seed=1",), "the processes of this run differ in config"),
        (
            "--config.seed=0",
            ("--config.genotype=nowhere",),
            "another process of this run was refused",
        ),
    ],
)
def test_what_both_or_one_cannot_do_is_refused_by_both(tmp_path, monkeypatch, both, second, words):
    monkeypatch.setenv("XLA_FLAGS", "")
    started = start(tmp_path / "run", *TRAIN, both, each=((), second))
    assert codes(started) == [2, 2]
    assert words in output(tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_numbers_that_are_not_finite_end_a_streamed_run_of_two(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    write_images(tmp_path / "images", train=40, test=10, classes=2)
    more = (f"--config.data.source=folder:{tmp_path / 'images'}", "--config.data.streaming=on")
    more += ("--config.data.image_size=16", "--config.train.batch_size=10")
    more += ("--config.train.learning_rate=1e30", "--config.data.at_most=False")
    more += ("--config.data.train_examples=0", "--config.data.test_examples=0")
    started = start(tmp_path / "run", *TRAIN, *more)
    assert codes(started) == [2, 2], output(tmp_path / "run", 0)
    assert "the training loss became" in output(tmp_path / "run", 0)
    assert result(tmp_path / "run", "diverged.json")["batches"] is None
