"""What a run tells while it goes: a progress bar, a line an epoch, JSON lines."""

import json
import math
import sys
from pathlib import Path

from tqdm import tqdm


class RunLog:
    """Writes metrics.jsonl into the workdir, and prints.

    Every record is one JSON object a line with "phase" and "epoch"; a number that is not finite is
    written as null.
    """

    def __init__(self, workdir: Path, quiet: bool = False):
        self._file = open(workdir / "metrics.jsonl", "w")
        self._quiet = quiet

    def bar(self, phase: str, steps: int) -> tqdm:
        """A progress bar over `steps`, with the time left; silent where nobody watches."""
        watched = sys.stderr.isatty() and not self._quiet
        return tqdm(total=steps, desc=phase, unit="step", disable=not watched, leave=False)

    def epoch(self, record: dict, line: str) -> None:
        """Writes one record and prints its line."""
        self._file.write(json.dumps({key: _plain(value) for key, value in record.items()}) + "\n")
        self._file.flush()
        self.say(line)

    def say(self, line: str) -> None:
        if not self._quiet:
            tqdm.write(line)

    def close(self) -> None:
        self._file.close()


def _plain(value):
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_over(steps: list[dict], key: str) -> float:
    """Mean of a metric over the steps that have it (NaN marks one that has not); NaN if none."""
    values = [float(step[key]) for step in steps if not math.isnan(step[key])]
    return sum(values) / len(values) if values else math.nan
