"""Data parallelism: 1, 2, 4 and 8 virtual CPU devices give the same numbers.

JAX has one CPU device in this process, so what needs more runs in another one (over_devices.py).
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from command import ROOT, command

from asap_jax.host import devices

SCRIPT = ROOT / "tests/support/over_devices.py"


def over_devices(*arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same(found, steps):
    """Metrics of every step and epoch to 1e-9, prunings and cells exactly."""
    alone, *others = found.values()
    assert sum("epochs" not in each for each in alone["steps"]) == steps
    for other in others:
        for one, many in zip(alone["steps"], other["steps"], strict=True):
            assert many == pytest.approx(one, rel=1e-9, abs=1e-9, nan_ok=True)
        assert {k: v for k, v in other.items() if k != "steps"} == {
            k: v for k, v in alone.items() if k != "steps"
        }


def test_a_search_over_devices_has_the_numbers_of_one():
    """20 steps in float64, augmentation included, with candidates pruned on the way."""
    found = over_devices("search", "asap", "loop", 1, 4)
    assert_same(found, 20)
    left = [step["candidates_left"] for step in found["1"]["steps"]]
    assert left[0] > left[15] > left[-1]
    assert "gap" in found["1"]["steps"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["loop", "unrolled"])  # a GPU's is compiled by test_gpu_compile
def test_a_search_over_any_number_of_devices(plan):
    assert_same(over_devices("search", "asap", plan, 1, 2, 4, 8), 20)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["snas", "pc_darts", "parsec", "random", "p_darts", "pr_darts"])
def test_a_search_of_another_method_over_devices(method):
    """Methods that sample, drop paths, restrict channels, rank by accuracy, or have stages."""
    found = over_devices("search", method, "unrolled", 1, 4)
    assert_same(found, sum("epochs" not in each for each in found["1"]["steps"]))


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "counts"), [(1, (1, 4)), (2, (1, 2, 4, 8))])
def test_a_training_over_devices_has_the_numbers_of_one(accumulate, counts):
    """20 steps with an auxiliary head, drop-path, cutout, label smoothing, and the test."""
    assert_same(over_devices("train", accumulate, *counts), 20)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "last"), [("train", 8), ("search", 6)])
def test_a_run_goes_on_with_another_number_of_devices(mode, last, tmp_path):
    """Begun on 8, ended on 1: the losses are those of one device, in float32.

    Only of the first steps: rounding grows tenfold every two or three in so small a network, and
    Adam moves an alpha whose gradient is 0 but for rounding by that one's sign.
    """
    alone, many = over_devices("run", mode, tmp_path / "one", 1, 0, last), []
    for count, cut in ((8, 3), (1, 0)):
        many += over_devices("run", mode, tmp_path / "many", count, cut, last)
    assert len(alone) == last
    assert many == pytest.approx(alone, abs=1e-3)


def test_devices_that_cannot_share_a_batch_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    fixed = ("--mode=search", "--config=configs/search.py:tiny", f"--workdir={tmp_path / 'run'}")
    done = command(*fixed, "--config.devices=8", "--config.search.batch_size=20")
    assert done.returncode == 2
    assert "config.search.batch_size is 20" in done.stderr
    assert "choose 16 or 24, or config.devices=5" in done.stderr
    done = command(*fixed, "--config.devices=9")
    assert done.returncode == 2
    assert "config.devices is 9, but this process has 8" in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_device_knows_no_sharding():
    alone = devices.local()
    assert (alone.count, alone.whole, alone.split) == (1, None, None)
    tree = {"a": jax.numpy.ones(3)}
    assert alone.share(tree) is alone.home(tree) is tree
    assert isinstance(alone.put({"a": np.ones(3)})["a"], jax.Array)
    assert alone.among(7) is alone


def test_deterministic_programs_are_asked_of_a_gpu(monkeypatch):
    exact = devices.local(deterministic=True)
    assert exact.options == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert exact.options == {"xla_gpu_deterministic_ops": True}
    assert exact.among(7).options == exact.options
    assert devices.local().options == {}
