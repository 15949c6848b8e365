"""SIGKILL at random moments: what comes out is what an undisturbed run gives, bit for bit.

ASAP_JAX_STRESS=70 kills that many times as often. docs/reliability.md has the counts.
"""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from command import ROOT
from tiny import assert_equal_runs, lines

KILLS = 3 * int(os.environ.get("ASAP_JAX_STRESS", "1"))
SAVE_EVERY = "2"  # steps


def start(workdir):
    script = str(ROOT / "tests" / "support" / "cut_run.py")
    command = [sys.executable, script, str(workdir), "", "0", "SIGKILL", SAVE_EVERY]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir of an undisturbed run, its seconds but for compiling)."""
    workdir, begin = tmp_path_factory.mktemp("kill") / "whole", time.monotonic()
    process = start(workdir)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told
    first = next(each["seconds"] for each in lines(workdir))  # the first epoch compiles
    return workdir, time.monotonic() - begin - first


def test_killed_at_random_moments(whole, tmp_path):
    """While it imports, steps, prunes or writes: every restart goes on, none repeats."""
    undisturbed, seconds = whole
    rng = np.random.default_rng(None if KILLS > 3 else int(time.time()))
    kills, runs, moments = 0, 0, []
    while kills < KILLS:
        workdir, begun = tmp_path / str(runs), time.monotonic()
        while True:
            process = start(workdir)
            # Later, as the run comes closer to its end, but never longer than it takes at all.
            moment = rng.uniform(0.3, 1.0) * seconds if kills < KILLS else 300
            try:
                told = process.communicate(timeout=moment)[1]
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                moments.append(round(moment, 2))
                continue
            assert process.returncode == 0, f"after kills at {moments}: {told}"
            break
        told = f"run {runs}, killed after {moments} s, {time.monotonic() - begun:.0f} s in all"
        epochs = [(each["phase"], each["epoch"]) for each in lines(workdir)]
        assert len(set(epochs)) == len(epochs), told
        assert_equal_runs(workdir, undisturbed)
        runs, moments = runs + 1, []
        print(told, f"({kills} kills so far)")
