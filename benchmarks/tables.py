"""Shared by the tables: a sweep of runs of the command, and what is written as they finish."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asap_jax.host.errors import UserError
from asap_jax.report import comparison
from asap_jax.runs.sweep import RunFailed, runs_of, sweep, workdir_of


def arguments_of(description: str, name: str) -> argparse.ArgumentParser:
    """The options that every table has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--out", default=f"runs/{name}", help="folder of the workdirs")
    parser.add_argument("--at_once", type=int, default=0, help="runs in progress; 0: one per GPU")
    parser.add_argument("options", nargs="*", help="after --: passed on to each run")
    return parser


def fill(
    cases: Mapping[str, Sequence[str]],
    options: argparse.Namespace,
    record_of: Callable[[Path], dict],
    write: Callable[[dict], None],
) -> dict[str, list[dict]]:
    """Runs every case with every seed, writing the records as they arrive, and returns them.

    Args:
      cases: {name: arguments of the command}, see `sweep.runs_of`.
      options: of `arguments_of`.
      record_of: workdir -> what the table needs from a finished run.
      write: saves the records so far, {case: one per seed}.

    Raises:
      SystemExit: a folder holds a run with other arguments (2), or a run failed (its exit code).
    """
    records: dict[str, list[dict]] = {}

    def on_done(run):
        records.setdefault(run.case, []).append({"seed": run.seed, **record_of(run.folder)})
        write(records)

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    try:
        sweep(runs_of(cases, seeds, Path(options.out)), on_done, options.at_once)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code if isinstance(error, RunFailed) else 2)
    return records


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
    cases = {
        case: [
            comparison.Run(
                run["seed"], 100 * run["test_accuracy"], workdir_of(out, case, run["seed"])
            )
            for run in runs
        ]
        for case, runs in records.items()
    }
    header, rows = comparison.cells(text)
    comparison.write(out / "report.html", name, "test accuracy, %", header, rows, cases)
