"""Shared by the tables: many runs of the command, each in its own process and workdir.

A run whose workdir holds results.json is skipped, and an interrupted one resumes, so the same
command on the same folder completes an interrupted table. arguments.json, next to the results,
holds the arguments of a run; a command with other options is refused there.
"""

import argparse
import collections
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asap_jax.report import comparison


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
    """Runs every case with seeds from 0; seed by seed, so that a complete table is available early.

    Args:
      cases: {name: arguments of the command}; "{seed}" in them is replaced by the seed, so that a
        case may name the workdir of an earlier one, OUT/NAME-{seed}.
      seeds: number of seeds.
      out: folder of the workdirs, named NAME-SEED, with "/" in a name written as "-".
      record_of: workdir -> what the table needs from a finished run.
      write: saves the records so far, {case: one per seed}.

    Returns:
      All records.

    Raises:
      SystemExit: a folder holds a run with other arguments, or a run failed (with its exit code).
    """
    out.mkdir(parents=True, exist_ok=True)
    records: dict[str, list[dict]] = {}
    for seed in range(seeds):
        for name, arguments in cases.items():
            folder = workdir_of(out, name, seed)
            own = [argument.replace("{seed}", str(seed)) for argument in arguments]
            own.append(f"--config.seed={seed}")
            _claim(folder, own)
            if not (folder / "results.json").exists():
                command = [sys.executable, "-m", "asap_jax.main", *own, f"--workdir={folder}"]
                code = subprocess.run(command, check=False).returncode
                if code:
                    code = code if code > 0 else 128 - code  # by a signal: as a shell reports it
                    print(
                        f"{name}, seed {seed}: the run in {folder} ended with exit code {code}, so "
                        "the table ends here; with the cause mended, the command goes on there",
                        file=sys.stderr,
                    )
                    sys.exit(code)
            records.setdefault(name, []).append({"seed": seed, **record_of(folder)})
            write(records)
    return records


def workdir_of(out: Path, name: str, seed: int) -> Path:
    """The workdir of a case's run."""
    return out / f"{name.replace('/', '-')}-{seed}"


def _claim(folder: Path, arguments: list[str]) -> None:
    """Stores the arguments of a new folder's run; SystemExit if it holds a run with other ones.

    A run without arguments.json is accepted as it is.
    """
    kept = folder / "arguments.json"
    begun = folder.exists() and any(each != kept for each in folder.iterdir())
    if not begun:
        folder.mkdir(exist_ok=True)
        kept.write_text(json.dumps(arguments, indent=2) + "\n")
    elif kept.exists() and (before := json.loads(kept.read_text())) != arguments:
        there, here = collections.Counter(before), collections.Counter(arguments)
        only = {"there": there - here, "here": here - there}
        changed = [
            f"only {where}: {shlex.join(each.elements())}" for where, each in only.items() if each
        ]
        how = "; ".join(changed) or "in another order"
        sys.exit(
            f"{folder} holds a run of other arguments ({how}): choose another --out, or remove "
            "that folder"
        )


def results_of(folder: Path) -> dict:
    """Collects what every table needs from a finished run."""
    results = json.loads((folder / "results.json").read_text())
    kept = ("test_accuracy", "balanced_accuracy", "parameters", "search_seconds", "train_seconds")
    return {key: results[key] for key in (*kept, "total_seconds", "versions")}


def keep(out: Path, name: str, records: dict, text: str) -> None:
    """Writes NAME.json (one record per run), NAME.md (the table) and report.html (a page of both).

    Args:
      records: {case: one record per seed}.
      text: the table as Markdown, whose second line is the rule below its header.
    """
    (out / f"{name}.json").write_text(json.dumps(records, indent=2) + "\n")
    (out / f"{name}.md").write_text(text)
    header, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines()
    )
    cases = {
        case: [
            comparison.Run(
                run["seed"], 100 * run["test_accuracy"], workdir_of(out, case, run["seed"])
            )
            for run in runs
        ]
        for case, runs in records.items()
    }
    comparison.write(out / "report.html", name, "test accuracy, %", header, rows, cases)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'mean +- sample deviation', or the value if there is only one."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
