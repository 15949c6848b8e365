"""Many runs of the command: in order, at once, resumed, refused, interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from asap_jax.host.errors import UserError
from asap_jax.runs import sweep


class Fake:
    """A run's process that ends after a number of looks; `code` is its exit code."""

    def __init__(self, run, environment, looks, code):
        self.run, self.environment, self.looks, self.code = run, environment, looks, code
        self.returncode, self.signals = None, []
        (run.folder / sweep.OUTPUT).write_text("$ command\nfirst words\nlast words\n")

    def poll(self):
        self.looks -= 1
        if self.looks <= 0:
            self.returncode = self.code
            if not self.code:
                (self.run.folder / "results.json").write_text("{}")
        return self.returncode

    def send_signal(self, signum):
        self.signals.append(signum)

    def wait(self):
        return self.returncode


@pytest.fixture
def fakes(monkeypatch):
    """The processes started; `codes` and `looks` are by case."""
    started, codes, looks = [], {}, {}

    def start(run, environment):
        started.append(Fake(run, environment, looks.get(run.case, 1), codes.get(run.case, 0)))
        return started[-1]

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(sweep, "_slots", lambda at_once: [{"SLOT": str(i)} for i in range(at_once)])
    monkeypatch.setattr(sweep, "_POLL", 0.0)
    return types.SimpleNamespace(all=started, codes=codes, looks=looks)


def names(processes):
    return [f"{each.run.case}-{each.run.seed}" for each in processes]


def test_seed_by_seed_and_nothing_twice(fakes, tmp_path):
    cells = "--config.genotype=out/a-{seed}"
    runs = sweep.runs_of({"a": [cells, "--x={seed}"], "b/c": []}, range(3, 5), tmp_path)
    assert [run.folder.name for run in runs] == ["a-3", "b-c-3", "a-4", "b-c-4"]
    cells = "--config.genotype=out/a-4"
    assert runs[2].arguments == (cells, "--x={seed}", "--config.seed=4")
    done = []
    sweep.sweep(runs[:1], done.append)
    sweep.sweep(runs, done.append)
    assert names(fakes.all) == ["a-3", "b/c-3", "a-4", "b/c-4"]
    assert [run.folder.name for run in done] == ["a-3", "a-3", "b-c-3", "a-4", "b-c-4"]
    sweep.sweep(runs, done.append)
    assert len(fakes.all) == 4
    assert len(done) == 9


def test_several_at_once_each_in_a_slot_of_its_own(fakes, tmp_path):
    fakes.looks.update(slow=5)
    runs = sweep.runs_of({"slow": [], "b": [], "c": []}, [0], tmp_path)
    done = []
    sweep.sweep(runs, lambda run: done.append(run.case), at_once=2)
    assert done == ["b", "c", "slow"]
    assert [each.environment["SLOT"] for each in fakes.all] == ["0", "1", "1"]


def test_a_failure_interrupts_the_others_and_says_what_it_said(fakes, tmp_path):
    fakes.looks.update(slow=9)
    fakes.codes.update(bad=2)
    runs = sweep.runs_of({"slow": [], "bad": [], "c": []}, [0], tmp_path)
    with pytest.raises(sweep.RunFailed, match=r"bad, seed 0: .* exit code 2: last words") as failed:
        sweep.sweep(runs, at_once=2)
    assert failed.value.code == 2
    slow, _ = fakes.all
    assert slow.signals == [signal.SIGTERM]


@pytest.mark.parametrize(("code", "shell"), [(-9, 137), (143, 143)])
def test_a_signals_exit_code_is_the_shells(code, shell, fakes, tmp_path):
    fakes.codes.update(a=code)
    with pytest.raises(sweep.RunFailed) as failed:
        sweep.sweep(sweep.runs_of({"a": []}, [0], tmp_path))
    assert failed.value.code == shell


def test_a_run_of_other_arguments_is_not_taken_for_this_one(fakes, tmp_path):
    """Neither a finished nor an interrupted one; one that never started leaves nothing behind."""
    first = sweep.runs_of({"a": ["--x=1"]}, [0], tmp_path)
    fakes.codes.update(a=2)
    with pytest.raises(sweep.RunFailed):  # nothing of it is there yet but its arguments
        sweep.sweep(first)
    fakes.codes.clear()
    second = sweep.runs_of({"a": ["--x=2"]}, [0], tmp_path)
    sweep.sweep(second)
    kept = json.loads((second[0].folder / sweep.ARGUMENTS).read_text())
    assert kept == ["--x=2", "--config.seed=0"]
    only = r"a-0 holds a run of other arguments \(only there: --x=2; only here: --x=1\)"
    with pytest.raises(UserError, match=only):
        sweep.sweep(first)
    (second[0].folder / "results.json").rename(second[0].folder / "config.json")
    with pytest.raises(UserError, match=only):
        sweep.sweep(first)


def test_what_changes_no_result_may_change(fakes, tmp_path):
    sweep.sweep(sweep.runs_of({"a": ["--x=1", "--config.data.dir=here"]}, [0], tmp_path))
    changed = ["--config.on_nan=skip", "--x=1", "--config.data.dir=there"]
    sweep.sweep(sweep.runs_of({"a": changed}, [0], tmp_path))
    assert len(fakes.all) == 1
    (tmp_path / "a-0" / sweep.ARGUMENTS).write_text("[1")
    with pytest.raises(UserError, match=r"arguments.json is not a list of arguments .* edited"):
        sweep.sweep(sweep.runs_of({"a": changed}, [0], tmp_path))


def test_a_run_that_only_searches_is_done_with_its_cells(tmp_path):
    (run,) = sweep.runs_of({"a": ["--config.mode=search"]}, [0], tmp_path)
    (whole,) = sweep.runs_of({"a": []}, [0], tmp_path)
    run.folder.mkdir()
    assert not run.done
    (run.folder / "search.json").write_text("{}")
    assert run.done
    assert not whole.done


@pytest.mark.parametrize(
    ("devices", "visible", "at_once", "want"),
    [
        ("cpu 2", None, 0, [{}]),
        ("cpu 1", None, 2, [{}, {}]),
        ("gpu 2", None, 0, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ("gpu 2", "5,GPU-3", 0, [{"CUDA_VISIBLE_DEVICES": d} for d in ("5", "GPU-3")]),
        ("gpu 2", "", 1, [{"CUDA_VISIBLE_DEVICES": "0"}]),
        (
            "gpu 1",
            "3",
            2,
            [{"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_VISIBLE_DEVICES": "3"}] * 2,
        ),
    ],
)
def test_a_gpu_a_run(devices, visible, at_once, want, monkeypatch):
    monkeypatch.setattr(sweep, "_LIST_DEVICES", f"print('a word first'); print({devices!r})")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert sweep._slots(at_once) == want


def test_an_interrupted_sweep_waits_until_its_runs_have_saved(tmp_path, monkeypatch):
    """With a real process, which takes a moment to save after the one signal that it gets."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(sys.argv[1]).write_text('running')\n"
        "while True: time.sleep(0.01)\n"
    )
    state = tmp_path / "state"

    def start(run, environment):
        return subprocess.Popen([sys.executable, "-c", code, str(state)], start_new_session=True)

    def interrupt():
        while not state.exists() or state.read_text() != "running":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(sweep, "_slots", lambda at_once: [{}])
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(sweep.runs_of({"a": []}, [0], tmp_path))
    assert state.read_text() == "saved"
