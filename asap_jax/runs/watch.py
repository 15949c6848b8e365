"""Follows a run from outside, by the files in its workdir; the run does not notice."""

import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from asap_jax.host import lock, workdir
from asap_jax.host.errors import UserError
from asap_jax.host.lines import MEASURED_ON, epoch_line, seconds_left
from asap_jax.host.run_log import Status, say, table, wait
from asap_jax.runs import runner


def watch(folder: str | Path, pause: float = 1.0) -> bool | None:
    """Prints a run's epochs and warnings as they come, and its end once no process runs it.

    Args:
      folder: the workdir.
      pause: seconds between two looks at its files.

    Returns:
      Whether the run is done; None if nobody reads the output any more.

    Raises:
      UserError: the folder holds no run.
    """
    folder = workdir.locate(folder)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds no run: name the --workdir of one, which begins once its data are read"
        )
    config = ConfigDict(workdir.read_config(folder))
    observer, log = lock.Observer(folder), _News(folder)
    owner = observer.owner()
    lines = [f"{folder}: {config.data.source}; {f'run by {owner}' if owner else 'not running'}"]
    if not config.genotype:
        lines.append(f"note: {MEASURED_ON}")
    with Status() as status:
        while True:
            owner = observer.owner()  # before the files are read: what it wrote last is among them
            if not all(map(say, [*lines, *log])):
                return None
            if not owner:
                break
            status.show(f"{_standing(folder, log.records)}; run by {owner}")
            if not wait(pause):
                return None
            lines = []
    done, words = _end(folder)
    return done if say(words) else None


class _News:
    """Each iteration yields what is new in metrics.jsonl and warnings.txt, as the run prints it.

    records: of metrics.jsonl so far.
    """

    def __init__(self, folder: Path):
        self._epochs = _Lines(folder / "metrics.jsonl")
        self._warnings = _Lines(folder / "warnings.txt")
        self.records: list[dict] = []

    def __iter__(self) -> Iterator[str]:
        dropped, new = self._epochs.read()
        if dropped:
            yield f"note: the run has gone back by {dropped} epochs"
            self.records = self.records[:-dropped]
        for line in new:
            self.records.append(json.loads(line))
            yield epoch_line(self.records[-1])
        for line in self._warnings.read()[1]:
            yield f"warning: {line}"


class _Lines:
    """A file of lines that grows, and may be replaced by one that lacks the last few."""

    def __init__(self, path: Path):
        self._path, self._stat, self._known = path, None, []

    def read(self) -> tuple[int, list[str]]:
        """(number of known lines that are gone, complete lines that are new)."""
        try:
            stat = self._path.stat()
            if (stat.st_ino, stat.st_size, stat.st_mtime_ns) == self._stat:
                return 0, []
            lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return 0, []
        self._stat = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        pairs = enumerate(zip(self._known, lines, strict=False))
        shared = min(len(self._known), len(lines))
        same = next((i for i, (before, now) in pairs if before != now), shared)
        dropped, self._known = len(self._known) - same, lines
        return dropped, lines[same:]


def _standing(folder, records) -> str:
    """Where the run is, and about how long its current stage takes yet."""
    if not records:
        return "no epoch is done yet"
    last, left = records[-1], seconds_left(records)
    text = f"{last['phase']} {last['epoch']}"
    if left is None:
        return text
    text += f"/{last['epochs']}"
    if not left or (folder / "stages" / f"{last['phase']}-{last['run']}.json").exists():
        return f"{text}, done"
    left -= time.time() - (folder / "metrics.jsonl").stat().st_mtime
    return f"{text}, about {datetime.timedelta(seconds=max(0, round(left)))} left of it"


def _end(folder) -> tuple[bool, str]:
    """(whether the run is done, how it ended)."""
    config = ConfigDict(workdir.read_config(folder))
    searches = _stages(folder, "search", config.searches)
    trainings = _stages(folder, "train", config.train.seeds)
    searched = _search_rows(folder, config, searches) if searches else []
    results = folder / "results.json"
    if trainings and results.exists() and all(_is_whole(config, each) for each in trainings):
        return True, table([*searched, *runner.train_rows(workdir.read_json(results))])
    command = folder / "command.txt"
    again = "the same command goes on from what was saved"
    if command.exists():
        again += f":\n  {command.read_text(encoding='utf-8').splitlines()[-1]}"
    trains = any((folder / "checkpoints").glob("train-*"))
    if searched and not trains and (folder / "genotype.json").exists():
        return True, table(searched) + "\n\n  the search is done, and no training has begun"
    return False, f"the run has stopped before its end; {again}"


def _stages(folder, phase, count) -> list[dict] | None:
    """The records of a phase's stages, or None unless all are done."""
    paths = [folder / "stages" / f"{phase}-{index}.json" for index in range(count)]
    return [workdir.read_json(path) for path in paths] if all(p.exists() for p in paths) else None


def _is_whole(config, training) -> bool:
    return training["epochs"] >= config.train.epochs or bool(training["ended"])


def _search_rows(folder, config, searches) -> list[tuple[str, str]]:
    """The rows of the search, or of the one chosen of several, as its run prints them."""
    selected = _stages(folder, "select", config.searches) if len(searches) > 1 else [{}]
    if selected is None:
        return []
    chosen = max(range(len(searches)), key=lambda i: selected[i].get("val_accuracy", 0.0))
    seconds = sum(record.get("seconds", 0.0) for record in (*searches, *selected))
    record = searches[chosen] | selected[chosen] | {"seconds": seconds}
    written = folder / "search.json"
    if written.exists():  # older versions wrote none
        record |= {"certainty": workdir.read_json(written).get("certainty", {})}
    return runner.search_rows(config, record)
