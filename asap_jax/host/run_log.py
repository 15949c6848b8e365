"""Output of a run in progress: a progress bar, one line per epoch, JSON lines."""

import errno
import html
import json
import math
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from asap_jax.host.event_files import EventFiles
from asap_jax.host.lines import epoch_line

STAGE = "phase", "run", "stage"  # what tells the stage of a record
_BLOCK = 2**16  # bytes read at a time from the end of a file


class RunLog:
    """Writes metrics.jsonl, weights.jsonl and warnings.txt to the workdir, and prints.

    Each record is one JSON object per line with "phase", "run" and "epoch"; non-finite numbers are
    written as null. A search's candidate weights, {cell type: [E][O]} under "weights", and the
    epoch's prunings, [step, cell type, edge, candidate] under "pruned", go to weights.jsonl with
    the same keys. What is printed of an epoch is made of its JSON object.

    Args:
      workdir: folder of the files, which are appended to if present; None writes no files.
      quiet: print nothing.
      unread: called once when the output has lost its reader (`| head`); None for nothing.
      tensorboard: write the records to `event_files` too, in the folder tensorboard.
    """

    def __init__(
        self,
        workdir: Path | None,
        quiet: bool = False,
        unread: Callable[[], None] | None = None,
        tensorboard: bool = False,
    ):
        self._path = workdir and workdir / "metrics.jsonl"
        self._weights = workdir and workdir / "weights.jsonl"
        self._warnings = workdir and workdir / "warnings.txt"
        self._quiet, self._unread = quiet, unread
        self._events_folder = workdir / "tensorboard" if tensorboard and workdir else None
        self._events = self._copied()

    def bar(self, phase: str, steps: int | None, done: int = 0) -> tqdm:
        """Progress bar over `steps` with the time left; disabled without a terminal or notebook.

        With None for an unknown number, it counts the steps.
        """
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        return tqdm(
            total=steps,
            initial=0 if steps is None else done,
            desc=phase,
            unit="step",
            disable=self._quiet or not watched,
            leave=False,
        )

    def rewind(self, place: dict, epoch: int) -> None:
        """Drops the records of a stage after an epoch, which the resumed stage will write again.

        Args:
          place: the stage: {"phase", "run"}, and "stage" from the second one on.
          epoch: the last one to keep.
        """
        paths = [path for path in (self._path, self._weights) if path is not None and path.exists()]
        dropped = [_rewind(path, place, epoch) for path in paths]
        if any(dropped):
            self._events = self._copied()

    def epoch(self, record: dict) -> None:
        """Writes one record and prints its line."""
        numbers = {k: _plain(v) for k, v in record.items() if k not in ("weights", "pruned")}
        if self._path is not None:
            _append(self._path, json.dumps(numbers))
            if "weights" in record:
                keys = ("phase", "run", "stage", "epoch", "weights", "pruned")
                _append(self._weights, json.dumps({k: record[k] for k in keys if k in record}))
        if self._events is not None:
            weights = {"weights": record["weights"]} if "weights" in record else {}
            self._events.write(numbers | weights)
        self.say(epoch_line(numbers))

    def warn(self, words: str) -> None:
        """Prints a warning and appends it to warnings.txt."""
        if self._warnings is not None:
            _append(self._warnings, words)
        self.say(f"warning: {words}")

    def keep_divergence(self, record: dict, operands: tuple) -> str:
        """Writes diverged.json: where a step's numbers were no longer finite, and on what images.

        Returns its name, or "" without a workdir.

        Args:
          record: of the step.
          operands: its batches; kept where these are indices of training images.
        """
        if self._path is None:
            return ""
        all_indices = all(np.ndim(each) == 1 for each in operands)
        whole = [np.asarray(each).tolist() for each in operands] if all_indices else None
        text = json.dumps(
            {key: _plain(value) for key, value in record.items()} | {"batches": whole}
        )
        self._path.with_name("diverged.json").write_text(text + "\n")
        return "diverged.json"

    def _copied(self) -> EventFiles | None:
        """Event files of the records so far: those of metrics.jsonl, with their weights."""
        if self._events_folder is None:
            return None
        weights = {_place(record): record["weights"] for record in _read(self._weights)}
        records = [
            record | ({"weights": weights[place]} if (place := _place(record)) in weights else {})
            for record in _read(self._path)
        ]
        return EventFiles(self._events_folder, records)

    def say(self, line: str) -> None:
        if not self._quiet and not say(line) and self._unread:
            self._unread()


def say(line: str) -> bool:
    """Prints a line at once, escaping characters that the terminal's encoding lacks.

    Returns False if the reader is gone (`| head`). From then on, and after the terminal is gone
    (hang-up), nothing is printed.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()  # a pipe or a file would get it by the kilobyte
    except BrokenPipeError:
        mute()
        return False
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        mute()
    return True


def wait(seconds: float) -> bool:
    """Waits; returns False as soon as nobody reads the output any more (`| head`)."""
    try:
        descriptor = sys.stdout.fileno()
        readers = select.poll()  # which Windows lacks
    except (AttributeError, OSError, ValueError):
        time.sleep(seconds)
        return True
    readers.register(descriptor, 0)  # for errors alone
    begin = time.monotonic()
    for _, event in readers.poll(1000 * seconds):
        if event & (select.POLLERR | select.POLLHUP):
            return False
    time.sleep(max(0.0, seconds - (time.monotonic() - begin)))
    return True


class Status:
    """A line at the end of a terminal that changes in place; elsewhere nothing is shown."""

    def __init__(self):
        shown = sys.stdout is not None and sys.stdout.isatty()
        self._bar = tqdm(bar_format="{desc}", leave=False, file=sys.stdout, disable=not shown)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()

    def show(self, line: str) -> None:
        width = shutil.get_terminal_size().columns
        self._bar.set_description_str(line[: width - 1])


def mute() -> None:
    """Redirects standard output to the null device once nobody reads it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def _append(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _rewind(path: Path, place: dict, epoch: int) -> bool:
    """Drops a stage's records after an epoch, and broken lines; returns whether there were any.

    It reads from the end back to that epoch, so that a long file takes no time.
    """
    others, dropped = [], False  # lines of other stages after that epoch, the last one first
    with open(path, "rb") as file:
        end = size = file.seek(0, os.SEEK_END)
        for end, line in _lines_from_the_end(file, size):
            record = _parsed(line.decode(errors="replace")) if line.endswith(b"\n") else None
            if not isinstance(record, dict):
                dropped = True
            elif {key: record[key] for key in STAGE if key in record} != place:
                others.append(line)
            elif record["epoch"] > epoch:
                dropped = True
            else:
                end += len(line)
                break
        partial = path.with_name(path.name + ".part")
        if dropped and others:
            file.seek(0)
            with open(partial, "wb") as rewritten:
                rewritten.write(file.read(end))
                rewritten.writelines(reversed(others))
    if dropped and others:
        os.replace(partial, path)
    elif dropped:
        os.truncate(path, end)
    return dropped


def _lines_from_the_end(file, end: int) -> Iterator[tuple[int, bytes]]:
    """(where it begins, the line with its end) of each line before `end`, the last one first."""
    begin, tail = end, b""  # the bytes from `begin` on that were not yielded yet
    while begin or tail:
        start = tail.rfind(b"\n", 0, -1) + 1
        if not start and begin:
            read = min(_BLOCK, begin)
            begin = file.seek(begin - read)
            tail = file.read(read) + tail
            continue
        yield begin + start, tail[start:]
        tail = tail[:start]


def _read(path: Path | None) -> list[dict]:
    """The records of a file; none if it is missing."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    return [record for line in lines if (record := _parsed(line)) is not None]


def _place(record: dict) -> tuple:
    return tuple(record.get(key) for key in ("phase", "run", "stage", "epoch"))


def _parsed(line: str) -> dict | None:
    """The record, or None for a line that a killed process left incomplete."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _plain(value):
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[tuple[str, str]]) -> str:
    """Formats rows of (name, value) with the values aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def html_table(rows: list[tuple[str, str]]) -> str:
    """The same as an HTML element, for notebooks."""
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td>" for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"
