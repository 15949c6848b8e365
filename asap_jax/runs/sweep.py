"""Many runs of the command, each in its own process and workdir: seeds, methods, cells, settings.

A run whose workdir holds results.json is skipped, and an interrupted one resumes, so the same sweep
on the same folder completes what is missing. arguments.json, next to the results, holds the
arguments of a run; a sweep with other ones is refused there.
"""

import collections
import contextlib
import fnmatch
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from asap_jax.host import lock, workdir
from asap_jax.host.errors import UserError
from asap_jax.host.run_log import say
from asap_jax.host.timing import duration

# Keys of a config that change no result, so that they may change when a sweep is resumed.
HARMLESS = (
    *("devices", "on_nan", "check_memory", "checkpoint.*", "tensorboard"),
    *("data.dir", "data.prepare", "data.streaming", "data.workers"),
)
ARGUMENTS, OUTPUT = "arguments.json", "output.txt"
_POLL = 0.2  # seconds between looks at the runs in progress
_LIST_DEVICES = "import jax; print(jax.default_backend(), jax.local_device_count())"


class Run(NamedTuple):
    """A run of a sweep.

    case: what it is a run of: a method, a setting.
    seed: its seed.
    folder: its workdir.
    arguments: of the command, without the workdir.
    """

    case: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: of a run that only searches, once its cells are kept."""
        only_searches = "--config.mode=search" in self.arguments
        return (self.folder / ("search.json" if only_searches else "results.json")).exists()

    def __str__(self) -> str:
        return f"{self.case}, seed {self.seed}"


class RunFailed(UserError):
    """A run of a sweep ended with an error; `code` is its exit code, as a shell reports it."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def runs_of(cases: Mapping[str, Sequence[str]], seeds: Sequence[int], out: Path) -> list[Run]:
    """The runs of all cases, seed by seed, so that a complete table is available early.

    Args:
      cases: {name: arguments of the command}; "{seed}" in `config.genotype` is replaced by the
        seed, so that a case may name the workdir of an earlier one, OUT/NAME-{seed}.
      seeds: of each case.
      out: folder of the workdirs, named NAME-SEED, with "/" in a name written as "-".
    """
    return [
        Run(
            name,
            seed,
            workdir_of(out, name, seed),
            (*(_of_seed(each, seed) for each in arguments), f"--config.seed={seed}"),
        )
        for seed in seeds
        for name, arguments in cases.items()
    ]


def _of_seed(argument: str, seed: int) -> str:
    named = argument.startswith("--config.genotype=")
    return argument.replace("{seed}", str(seed)) if named else argument


def workdir_of(out: Path, name: str, seed: int) -> Path:
    """The workdir of a case's run."""
    return out / f"{name.replace('/', '-')}-{seed}"


def sweep(
    runs: Sequence[Run], on_done: Callable[[Run], None] = lambda run: None, at_once: int = 1
) -> None:
    """Runs what is not done yet, in order, each in a process of its own.

    A run's output goes to output.txt in its workdir, where `--mode=watch` follows it as well.

    Args:
      runs: with distinct workdirs.
      on_done: called for each run, those done before included, as soon as it is done.
      at_once: how many run at a time. On GPUs, run i of those in progress sees only one of them:
        the i-th, starting over after the last. 0 for one per GPU, or a single one on a CPU.

    Raises:
      UserError: a folder holds a run with other arguments, or is in use by another process.
      RunFailed: a run failed. The runs beside it were interrupted; they resume with the sweep.
      KeyboardInterrupt: also interrupted all runs in progress, which save their state first.
    """
    for run in runs:
        _claim(run)
    waiting = collections.deque(run for run in runs if not run.done)
    for run in runs:
        if run.done:
            on_done(run)
    if not waiting:
        return
    slots = _slots(at_once)
    free, active, total, begin = (
        collections.deque(range(len(slots))),
        {},
        len(waiting),
        time.monotonic(),
    )
    with _ended_with_this_process(active):
        while waiting or active:
            while waiting and free:
                run, slot = waiting.popleft(), free.popleft()
                active[run] = slot, _start(run, slots[slot]), time.monotonic()
            time.sleep(_POLL)
            for run, (slot, process, started) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[run]
                free.append(slot)
                if process.returncode:
                    raise _failure(run, process.returncode)
                done = total - len(waiting) - len(active)
                left = (time.monotonic() - begin) / done * (total - done)
                rest = f"; about {duration(left)} left" if total > done else ""
                took = duration(time.monotonic() - started)
                say(f"{run}: done in {took} ({done} of {total}{rest})")
                on_done(run)


def _slots(at_once: int) -> list[dict[str, str]]:
    """The environment variables of each of the runs that go on at once."""
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_DEVICES], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise UserError(f"JAX finds no device: {listed.stderr.strip().splitlines()[-1]}")
    platform, count = listed.stdout.split()[-2:]
    if platform != "gpu":
        return [{} for _ in range(at_once or 1)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(int(count))))
    devices = visible.split(",")[: int(count)]
    count = at_once or len(devices)
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if count > len(devices) else {}
    return [shared | {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(count)]


def _start(run: Run, environment: Mapping[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "asap_jax.main", *run.arguments, f"--workdir={run.folder}"]
    say(f"{run}: started, in {run.folder}")
    with open(run.folder / OUTPUT, "a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        # In a session of its own, a Ctrl-C reaches it once: from this process.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


@contextlib.contextmanager
def _ended_with_this_process(active) -> Iterator[None]:
    """Interrupts the runs in progress when this process stops early, and waits until they saved."""
    try:
        yield
    finally:
        processes = [process for _, process, _ in active.values()]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait()
            except KeyboardInterrupt:  # a second one: do not wait for what they would save
                process.kill()
                process.wait()


def _failure(run: Run, code: int) -> RunFailed:
    code = code if code > 0 else 128 - code  # by a signal: as a shell reports it
    lines = (run.folder / OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n$ ")[-1]
    said = [line for line in lines.splitlines()[1:] if line.strip()]
    cause = f": {said[-1]}" if said else ""
    return RunFailed(
        f"{run}: the run in {run.folder} ended with exit code {code}{cause} (all it said is in "
        f"{OUTPUT} there). With the cause mended, the same command continues",
        code,
    )


def _matters(argument: str) -> bool:
    """Whether an argument may change what comes out of a run."""
    key = argument.partition("=")[0].removeprefix("--config.")
    return not any(fnmatch.fnmatch(key, pattern) for pattern in HARMLESS)


def _claim(run: Run) -> None:
    """Stores the arguments of a new folder's run; UserError if it holds a run with other ones.

    A run without arguments.json is accepted as it is.
    """
    kept, arguments = run.folder / ARGUMENTS, list(run.arguments)
    begun = run.folder.exists() and any(
        each.name not in (ARGUMENTS, OUTPUT, lock.NAME) for each in run.folder.iterdir()
    )
    if not begun:
        workdir.write_json(kept, arguments)
        return
    if not kept.exists():
        return
    try:
        before = json.loads(kept.read_text())
        there, here = (collections.Counter(filter(_matters, each)) for each in (before, arguments))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{kept} is not a list of arguments ({error}): was it edited?") from error
    if there != here:
        only = {"there": there - here, "here": here - there}
        changed = [
            f"only {where}: {shlex.join(each.elements())}" for where, each in only.items() if each
        ]
        how = "; ".join(changed)
        raise UserError(
            f"{run.folder} holds a run of other arguments ({how}): choose another folder, or "
            "remove that one"
        )
