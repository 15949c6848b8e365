"""The benchmarks run, at sizes of no interest, and write what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ("--channels=4", "--cells=3", "--size=8", "--batch=4", "--repeats=2")


def run(script, *options):
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_search_step(tmp_path):
    run("search_step.py", *SMALL, "--masks=one", f"--out={tmp_path}/step.json")
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["environment"]["versions"]["jax"]
    assert record["settings"]["channels"] == 4
    (case,) = record["cases"]
    assert (case["batch"], case["masks"]) == ("4", "one")
    assert case["ours"]["step_seconds"]["count"] == 2
    assert 0 < case["ours"]["step_seconds"]["min"] <= case["ours"]["step_seconds"]["median"]
    assert case["ours"]["temporary_bytes"] > 1000
    assert case["ours"]["peak_bytes"] > 1e8


@pytest.mark.slow
def test_train_step(tmp_path):
    run("train_step.py", *SMALL, "--genotype=ASAP", "--size=16", f"--out={tmp_path}/step.json")
    (case,) = json.loads((tmp_path / "step.json").read_text())["cases"]
    assert case["ours"]["step_seconds"]["count"] == 2


@pytest.mark.slow
def test_search_run(tmp_path):
    run("search_run.py", "--config=tiny", "--epochs=4", f"--out={tmp_path}")
    epochs = json.loads((tmp_path / "search.json").read_text())["epochs"]
    left = [sum(sum(map(sum, mask)) for mask in epoch["masks"].values()) for epoch in epochs]
    assert left == [epoch["candidates_left"] for epoch in epochs]
    assert left[-1] < left[0]
    assert (tmp_path / "search.svg").exists()


@pytest.mark.slow
def test_methods(tmp_path):
    options = ("--methods=asap", "--seeds=1", f"--out={tmp_path}")
    printed = run(
        "methods.py", *options, "--", "--config.search.epochs=2", "--config.train.epochs=1"
    )
    assert "| `asap` |" in printed
    (record,) = json.loads((tmp_path / "methods.json").read_text())["asap"]
    assert record["candidates_left"] >= 28
