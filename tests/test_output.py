"""Terminals that lack characters, are closed or stop reading; users without a home."""

import io
import os
import pwd
import signal
import subprocess
import sys

import pytest
from command import without_plugin

from asap_jax.data import kept
from asap_jax.host import compile_cache, run_log
from asap_jax.host.interruption import NOBODY_READS, Interrupted, Interruption

LETTERS = ("plain", "caf\u00e9", "\u732b", "\U0001f600", "caf\udce9")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("letters", LETTERS)
def test_a_line_is_printed_whatever_the_terminal_knows(letters, encoding, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    run_log.RunLog(None).say(run_log.table([("accuracy", "1"), (letters, "2")]))
    sys.stdout.flush()
    told = shown.getvalue().decode(encoding)
    assert letters.encode(encoding, "backslashreplace").decode(encoding) in told
    assert "accuracy" in told


def closed_pipe():
    """A pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def test_a_reader_that_has_gone_is_a_wish_to_end(monkeypatch):
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    with Interruption() as interruption:
        log = run_log.RunLog(None, unread=lambda: interruption.ask(NOBODY_READS))
        log.say("somebody?")
        assert interruption.wanted
        with pytest.raises(Interrupted) as stop:
            interruption.check("here")
        log.say("nobody.")
    assert stop.value.signum == signal.SIGPIPE
    sys.stdout.close()


def test_another_broken_pipe_of_the_process_is_none():
    """A worker's, a socket's: its writer gets the error, and the run continues."""
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGPIPE)
        with pytest.raises(BrokenPipeError), closed_pipe() as pipe:
            pipe.write("a line\n")
        assert not interruption.wanted


def test_a_second_signal_ends_a_background_job_of_a_script_too():
    """Whose shell had it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.wanted
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_hang_up_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.wanted
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def start(code, cwd, **options):
    """Starts the command in its own process, with a line of Python in place of a run."""
    lines = (
        "import os, signal",
        "from asap_jax import main",
        "from asap_jax.host import run_log",
        "from asap_jax.runs import runner",
        f"runner.run = lambda *_, **__: {code}",
        "main.run()",
    )
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), "--config=search:digits"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        **options,
    )


@pytest.mark.parametrize("lines", [1, 10000])
def test_a_command_that_nobody_reads_ends_without_a_word(lines, tmp_path):
    with closed_pipe() as nobody:
        process = start(f"[run_log.say('a line') for _ in range({lines})]", tmp_path, stdout=nobody)
    _, stderr = process.communicate(timeout=120)
    assert without_plugin(stderr) == ""
    assert process.returncode in (0, 128 + signal.SIGPIPE)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_ends_the_command_like_a_signal(ignored, tmp_path):
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = start(
        "os.kill(os.getpid(), signal.SIGHUP)",
        tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == (0 if ignored else 128 + signal.SIGHUP)
    assert without_plugin(stderr).startswith("" if ignored else "asap_jax: interrupted; at once")


@pytest.mark.parametrize("cache", ["", "named"])
def test_a_user_without_a_home_has_no_cache_but_a_named_one(cache, tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv(kept.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path) if cache else "")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    set_to = []
    monkeypatch.setattr(compile_cache.jax.config, "update", lambda *pair: set_to.append(pair))
    if cache:
        compile_cache.enable()
        assert set_to[0] == ("jax_compilation_cache_dir", str(tmp_path / "asap_jax" / "xla"))
        assert kept.folder() == tmp_path / "asap_jax" / "images"
    else:
        with pytest.warns(UserWarning, match="there is no home directory"):
            compile_cache.enable()
        assert "jax_compilation_cache_dir" not in dict(set_to)
        assert kept.folder() is None
