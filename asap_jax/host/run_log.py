"""What a run tells while it goes: a progress bar, a line an epoch, JSON lines."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm


class RunLog:
    """Writes metrics.jsonl, weights.jsonl and warnings.txt into the workdir, and prints.

    Every record is one JSON object a line with "phase", "run" and "epoch"; a number that is not
    finite is written as null. What a search weighs its candidates by, {cell type: [E][O]} under
    "weights", stands in weights.jsonl, beside the same keys.

    Args:
      workdir: where metrics.jsonl stands, gone on with if it is there; None writes no file.
      quiet: print nothing.
      unread: called once when nobody reads any more what is printed (`| head`); None for nothing.
    """

    def __init__(
        self, workdir: Path | None, quiet: bool = False, unread: Callable[[], None] | None = None
    ):
        self._path = workdir and workdir / "metrics.jsonl"
        self._weights = workdir and workdir / "weights.jsonl"
        self._warnings = workdir and workdir / "warnings.txt"
        self._quiet, self._unread = quiet, unread

    def bar(self, phase: str, steps: int, done: int = 0) -> tqdm:
        """A progress bar over `steps`, with the time left; silent where nobody watches."""
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        return tqdm(
            total=steps,
            initial=done,
            desc=phase,
            unit="step",
            disable=self._quiet or not watched,
            leave=False,
        )

    def rewind(self, keep: Callable[[dict], bool]) -> None:
        """Drops the records that a resumed run will write again."""
        for path in (self._path, self._weights):
            if path is None or not path.exists():
                continue
            lines = path.read_text().splitlines()
            kept = [
                line for line in lines if (record := _parsed(line)) is not None and keep(record)
            ]
            if kept != lines:
                beside = path.with_name(path.name + ".part")
                beside.write_text("".join(line + "\n" for line in kept))
                os.replace(beside, path)

    def epoch(self, record: dict, line: str) -> None:
        """Writes one record and prints its line."""
        if self._path is not None:
            numbers = {k: _plain(value) for k, value in record.items() if k != "weights"}
            _append(self._path, json.dumps(numbers))
            if "weights" in record:
                kept = {k: record[k] for k in ("phase", "run", "stage", "epoch") if k in record}
                _append(self._weights, json.dumps(kept | {"weights": record["weights"]}))
        self.say(line)

    def warn(self, words: str) -> None:
        """Prints a warning, and keeps it."""
        if self._warnings is not None:
            _append(self._warnings, words)
        self.say(f"warning: {words}")

    def say(self, line: str) -> None:
        if not self._quiet and not say(line) and self._unread:
            self._unread()


def say(line: str) -> bool:
    """Prints a line, with what the terminal's encoding lacks as escapes.

    False if nobody reads it (`| head`). Then, and without a terminal, as after a hang-up, nothing
    is printed any more.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError:
        mute()
        return False
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        mute()
    return True


def mute() -> None:
    """Has standard output lead nowhere, since nobody is there any more to read it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def _append(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _parsed(line: str) -> dict | None:
    """None for a line that a dying process left half written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _plain(value):
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[tuple[str, str]]) -> str:
    """Rows of (name, value), the values under each other."""
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
