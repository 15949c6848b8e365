"""What the tables share: many runs of the command, each in a process and workdir of its own.

A run whose workdir holds results.json is not done again, and one that was cut goes on, so the same
command on the same folder finishes a table that was interrupted.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def arguments_of(description: str, name: str) -> argparse.ArgumentParser:
    """The options that every table has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default=f"runs/{name}", help="folder of the workdirs")
    parser.add_argument("options", nargs="*", help="after --: passed on to each run")
    return parser


def by_seed(
    cases: Mapping[str, Sequence[str]],
    seeds: int,
    out: Path,
    record_of: Callable[[Path], dict],
    write: Callable[[dict], None],
) -> dict[str, list[dict]]:
    """Runs every case with the seeds from 0; seed by seed, so that a whole table stands early.

    Args:
      cases: {name: arguments of the command}; "{seed}" in them stands for the seed, so that a case
        may name the workdir of one before it, OUT/NAME-{seed}.
      seeds: how many.
      out: folder of the workdirs, NAME-SEED each, "/" in a name written as "-".
      record_of: workdir -> what the table needs of a finished run.
      write: keeps the records so far, {case: one a seed}.

    Returns:
      All records.
    """
    out.mkdir(parents=True, exist_ok=True)
    records: dict[str, list[dict]] = {}
    for seed in range(seeds):
        for name, arguments in cases.items():
            folder = out / f"{name.replace('/', '-')}-{seed}"
            if not (folder / "results.json").exists():
                own = [argument.replace("{seed}", str(seed)) for argument in arguments]
                own += [f"--config.seed={seed}", f"--workdir={folder}"]
                subprocess.run([sys.executable, "-m", "asap_jax.main", *own], check=True)
            records.setdefault(name, []).append({"seed": seed, **record_of(folder)})
            write(records)
    return records


def results_of(folder: Path) -> dict:
    """What every table needs of a finished run."""
    results = json.loads((folder / "results.json").read_text())
    kept = ("test_accuracy", "balanced_accuracy", "parameters", "search_seconds", "train_seconds")
    return {key: results[key] for key in (*kept, "total_seconds", "versions")}


def keep(out: Path, name: str, records: dict, text: str) -> None:
    """Writes NAME.json (a record a run) and NAME.md (the table)."""
    (out / f"{name}.json").write_text(json.dumps(records, indent=2) + "\n")
    (out / f"{name}.md").write_text(text)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'mean +- sample deviation', or the one value there is."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
