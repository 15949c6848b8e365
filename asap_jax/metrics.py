"""What a run tells while it goes: a progress bar, a line an epoch, JSON lines."""

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm


class RunLog:
    """Writes metrics.jsonl into the workdir, and prints.

    Every record is one JSON object a line with "phase", "run" and "epoch"; a number that is not
    finite is written as null.

    Args:
      workdir: where metrics.jsonl stands, gone on with if it is there; None writes no file.
      quiet: print nothing.
    """

    def __init__(self, workdir: Path | None, quiet: bool = False):
        self._path = workdir and workdir / "metrics.jsonl"
        self._quiet = quiet

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
        if self._path is None or not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if (record := _parsed(line)) is not None and keep(record)]
        if kept != lines:
            beside = self._path.with_name(self._path.name + ".part")
            beside.write_text("".join(line + "\n" for line in kept))
            os.replace(beside, self._path)

    def epoch(self, record: dict, line: str) -> None:
        """Writes one record and prints its line."""
        if self._path is not None:
            text = json.dumps({key: _plain(value) for key, value in record.items()})
            with open(self._path, "a") as file:
                file.write(text + "\n")
        self.say(line)

    def say(self, line: str) -> None:
        if not self._quiet:
            say(line)


def say(line: str) -> None:
    """Prints a line, with what the terminal's encoding lacks as escapes.

    A reader that has gone (`| head`) is a wish to end, which `interruption.Interruption` notes like
    a signal. Without a terminal, as after a hang-up, nothing is printed any more.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError:
        mute()
        signal.raise_signal(signal.SIGPIPE)  # which Python ignores where nobody takes it
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        mute()


def mute() -> None:
    """Has standard output lead nowhere, since nobody is there any more to read it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


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
