"""A run is followed from outside: its lines as it prints them, whether it lives, how it ended."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
from command import ROOT, command
from tiny import tiny

from asap_jax.configs import presets
from asap_jax.host import lock, workdir
from asap_jax.host.interruption import NOBODY_READS
from asap_jax.host.lines import MEASURED_ON, epoch_line, seconds_left
from asap_jax.host.run_log import RunLog
from asap_jax.runs import runner
from asap_jax.runs.watch import watch

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
# Holds a workdir like a run, and writes what it reads from its input: epochs, or a warning.
RUN = """
import json, sys
from pathlib import Path
from asap_jax.host import lock
from asap_jax.host.run_log import RunLog
folder = Path(sys.argv[1])
with lock.held(folder):
    log = RunLog(folder, quiet=True)
    print("held", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if isinstance(told, str):
            log.warn(told)
        elif isinstance(told, int):
            log.rewind({"phase": "train", "run": 0}, told)
        else:
            log.epoch(told)
"""


def epoch(number, **more):
    record = {"phase": "train", "run": 0, "epoch": number, "epochs": 20, "seconds": 30.0}
    return record | {"train_loss": 1 / number, "train_accuracy": 0.5} | more


@pytest.fixture
def folder(tmp_path):
    """A workdir that a run has begun with."""
    workdir.claim(tmp_path / "run", json.loads(tiny().to_json()))
    return tmp_path / "run"


class Run:
    """A process that stands for a run of the folder."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout.readline() == "held\n"

    def tell(self, what):
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def end(self, kill=False):
        if kill:
            self._process.kill()
        self._process.communicate()

    @property
    def lives(self):
        return self._process.poll() is None


@pytest.fixture
def run(folder):
    started = Run(folder)
    yield started
    started.end(kill=True)


def start(folder, stdout=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, "-m", "asap_jax.main", "--mode=watch", f"--workdir={folder}"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def until(process, beginning):
    """The lines of a watch up to one that begins so."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return lines
    raise AssertionError(f"{beginning!r} is not in {lines}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, what the run printed)."""
    folder = tmp_path_factory.mktemp("finished")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asap_jax.host.run_log.say", lambda line: printed.append(line) or True)
        runner.run(tiny(), folder)
    return folder, printed


def test_a_run_that_is_done_is_printed_as_it_printed_itself(finished, capsys):
    folder, printed = finished
    assert watch(folder) is True
    seen = capsys.readouterr().out
    assert seen.splitlines()[0] == f"{folder}: digits; not running"
    for line in printed:
        if line.startswith(("search", "train", "warning", "note: val")):
            assert f"{line}\n" in seen
    table = printed[-1].partition("\n\n  in ")[0]
    assert "test accuracy" in table
    assert seen.endswith(f"{table}\n")
    assert not CONTROL.search(seen)


def test_a_search_alone_ends_too(finished, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    (folder / "results.json").unlink()
    for path in (*folder.glob("stages/train-*"), *folder.glob("checkpoints/train-*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert watch(folder) is True
    seen = capsys.readouterr().out
    assert "gap supernet -> derived" in seen
    assert seen.endswith("  the search is done, and no training has begun\n")


def test_a_run_that_was_cut_is_told_how_to_go_on(finished, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    (folder / "stages" / "train-0.json").unlink()
    (folder / "command.txt").write_text("an older one\npython -m asap_jax.main --config=x\n")
    assert watch(folder) is False
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("the run has stopped before its end; the same command goes on")
    assert last[1] == "  python -m asap_jax.main --config=x"


def test_a_training_that_is_to_be_longer_is_not_done(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    config = tiny()
    config.train.epochs = 3
    workdir.claim(folder, json.loads(config.to_json()))
    assert watch(folder) is False


def test_of_several_searches_the_chosen_one_is_told(finished, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    config, stage = json.loads((folder / "config.json").read_text()), folder / "stages"
    (folder / "config.json").write_text(json.dumps(config | {"searches": 2}))
    record = json.loads((stage / "search-0.json").read_text())
    for seed, accuracy in ((0, 0.25), (1, 0.75)):
        told = record | {"seed": seed, "seconds": 100.0}
        (stage / f"search-{seed}.json").write_text(json.dumps(told))
        told = {"val_accuracy": accuracy, "seconds": 10.0}
        (stage / f"select-{seed}.json").write_text(json.dumps(told))
    assert watch(folder) is True
    seen = capsys.readouterr().out
    assert re.search(r"chosen search +seed 1, 75.00 % on the other half\n", seen)
    assert re.search(r"search seconds +220\n", seen)


def test_a_run_is_followed_while_it_lives(folder, run):
    run.tell(epoch(1))
    watching = start(folder)
    seen = until(watching, "train  1/20")
    assert re.fullmatch(rf"{folder}: digits; run by process \d+ on .+, since .+\n", seen[0])
    assert seen[1] == f"note: {MEASURED_ON}\n"
    run.tell("a sign of collapse")
    assert until(watching, "warning") == ["warning: a sign of collapse\n"]
    run.tell(epoch(2))
    assert until(watching, "train  2/20") == [epoch_line(epoch(2)) + "\n"]
    run.end()
    rest, stderr = watching.communicate(timeout=60)
    assert rest.startswith("the run has stopped before its end")
    assert watching.returncode == 1
    assert "Traceback" not in stderr


def test_a_run_that_resumes_meanwhile_is_told(folder, run):
    for number in (1, 2, 3):
        run.tell(epoch(number))
    watching = start(folder)
    until(watching, "train  3/20")
    run.tell(1)
    run.tell(epoch(2, train_loss=0.25))
    assert until(watching, "train  2/20") == [
        "note: the run has gone back by 2 epochs\n",
        epoch_line(epoch(2, train_loss=0.25)) + "\n",
    ]
    run.end()
    watching.communicate(timeout=60)


def test_a_run_that_was_killed_ends_its_watch(folder, run):
    watching = start(folder)
    until(watching, str(folder))
    run.end(kill=True)
    rest, _ = watching.communicate(timeout=60)
    assert "the run has stopped before its end" in rest
    assert watching.returncode == 1


def test_ctrl_c_ends_the_watch_alone_without_a_word(folder, run):
    watching = start(folder)
    until(watching, str(folder))
    time.sleep(0.5)
    watching.send_signal(signal.SIGINT)
    rest, stderr = watching.communicate(timeout=60)
    assert watching.returncode == 128 + signal.SIGINT
    assert rest in ("", f"note: {MEASURED_ON}\n")
    assert "asap_jax" not in stderr
    assert run.lives


def test_a_watch_that_nobody_reads_ends_without_a_word(folder, run):
    """Though the run has nothing new to tell."""
    watching = start(folder)
    until(watching, "note")
    watching.stdout.close()
    assert watching.wait(timeout=60) == 128 + NOBODY_READS
    assert "asap_jax" not in watching.stderr.read()
    assert run.lives


def test_a_terminal_gets_the_time_left_in_a_line_that_is_wiped(folder, run):
    run.tell(epoch(5))
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (30, 100))
    watching = start(folder, terminal)
    os.close(terminal)
    seen = ""
    while "left of it" not in seen and select.select([main], [], [], 60)[0]:
        seen += os.read(main, 4096).decode()
    run.tell(epoch(6))
    while "train  6/20" not in seen and select.select([main], [], [], 60)[0]:
        seen += os.read(main, 4096).decode()
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=60)
    assert re.search(r"\rtrain 5/20, about 0:07:\d\d left of it; run by process \d+ on ", seen)
    assert re.search(r"\r +\rtrain  6/20  loss 0.167 ", seen)
    assert max(len(part) for part in re.split(r"[\r\n]", seen) if "left of it" in part) < 100
    os.close(main)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    for arguments, message in (
        ((f"--workdir={tmp_path}",), f"{tmp_path} holds no run: name the --workdir of one"),
        ((f"--workdir={tmp_path}/missing",), "holds no run"),
        ((), "--mode=watch takes --workdir"),
    ):
        done = command("--mode=watch", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("asap_jax: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_in_which_nothing_is_done_yet(folder, capsys):
    assert watch(folder) is False
    assert "the run has stopped before its end" in capsys.readouterr().out


def test_the_time_left_is_that_of_the_stage_at_its_recent_pace():
    old = [epoch(number, phase="search", seconds=500.0) for number in (1, 2)]
    new = [epoch(number, seconds=float(number)) for number in (1, 2, 3, 4)]
    assert seconds_left(old + new) == 16 * 3.0
    assert seconds_left([epoch(20)]) == 0
    assert seconds_left([]) is None
    assert seconds_left([{"phase": "train", "epoch": 1, "seconds": 1.0}]) is None


def test_a_training_has_no_note_of_a_search(tmp_path, capsys):
    config = presets.get_config("tiny")
    config.genotype = "ASAP"
    workdir.claim(tmp_path, json.loads(config.to_json()))
    RunLog(tmp_path, quiet=True).epoch(epoch(1))
    watch(tmp_path)
    assert "note:" not in capsys.readouterr().out


def test_an_observer_sees_only_owners_that_are_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    observer = lock.Observer(tmp_path)
    assert observer.owner() == ""
    with lock.held(tmp_path):
        assert observer.owner().startswith(f"process {os.getpid()} on ")
        time.sleep(0.7)  # it is touched meanwhile
        assert observer.owner()
    assert observer.owner() == ""
    elsewhere = {"host": "another-machine", "pid": 1, "since": "then"}
    (tmp_path / lock.NAME).write_text(json.dumps(elsewhere))
    assert observer.owner() == "process 1 on another-machine, since then"
    time.sleep(0.6)
    assert observer.owner() == ""
