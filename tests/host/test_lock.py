"""One run per workdir: the holder is named in the error, and a dead process holds nothing."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from tiny import tiny

from asap_jax.host import lock
from asap_jax.host.errors import UserError
from asap_jax.runs import runner

HERE, OTHER = socket.gethostname(), "another-machine"
HOLD = """
import os, signal, sys
from pathlib import Path
from asap_jax.host import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def process(tmp_path):
    """Another process that holds the folder; it kills itself when its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        yield other


def no_locks(*_):
    raise OSError(38, "Function not implemented")


@pytest.fixture(params=["the kernel's locks", "no locks", "no fcntl"])
def system(request, monkeypatch):
    """What the file system, or the operating system, supports of locks."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    if request.param == "no locks":
        monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    if request.param == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    return request.param


def names(folder, host, pid):
    (folder / lock.NAME).write_text(json.dumps({"host": host, "pid": pid, "since": "then"}))


@contextlib.contextmanager
def touched(path):
    """Touches a file repeatedly, as a running owner does."""
    over = threading.Event()

    def touch():
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    yield
    over.set()
    thread.join()


def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_second_run_is_refused_and_told_whose_the_first_is(tmp_path, system):
    with lock.held(tmp_path):
        who = f"in use by process {os.getpid()} on {HERE}, since 20"
        with pytest.raises(UserError, match=who), lock.held(tmp_path):
            pass
        with pytest.raises(UserError, match=who):
            runner.run(tiny(), tmp_path, quiet=True)
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    with lock.held(tmp_path):  # released when the first one ended
        pass


def test_another_process_is_refused_while_it_lives_and_taken_over_from_when_killed(
    process, tmp_path
):
    with pytest.raises(UserError, match=f"process {process.pid} on"), lock.held(tmp_path):
        pass
    process.stdin.close()
    process.wait()
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == process.pid
    begin = time.monotonic()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin < lock.BEAT


@pytest.mark.parametrize("owner", ["of another machine", "of this machine", "half written"])
def test_a_dead_owner_is_taken_over_from(owner, tmp_path, system):
    if owner == "half written":
        (tmp_path / lock.NAME).write_text('{"host": "')
    else:
        names(tmp_path, *((OTHER, 1) if "another" in owner else (HERE, dead_pid())))
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert (tmp_path / lock.NAME).read_text() == ""


def test_an_owner_of_another_machine_that_is_at_work_is_not(tmp_path, system):
    names(tmp_path, OTHER, 1)
    with touched(tmp_path / lock.NAME), pytest.raises(UserError, match=f"process 1 on {OTHER}"):
        with lock.held(tmp_path):
            pass


def test_who_holds_a_folder_touches_its_file(tmp_path, system):
    with lock.held(tmp_path):
        before = (tmp_path / lock.NAME).stat().st_mtime_ns
        until = time.monotonic() + 10
        while (tmp_path / lock.NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_folder_that_goes_while_it_is_held_does_no_harm(tmp_path):
    with lock.held(tmp_path / "run"):
        (tmp_path / "run" / lock.NAME).unlink()
        (tmp_path / "run").rmdir()
