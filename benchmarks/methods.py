"""Every method, searched, trained and tested by the command, over several seeds: one table.

    python benchmarks/methods.py --size=tiny --seeds=3 --out=runs/methods

Runs one after another, each in a process of its own; a run that is done is not done again. Writes
methods.json (a record a run) and methods.md as results come. Options after `--` go to each run:

    python benchmarks/methods.py --size=cifar10_small --methods=asap,darts -- \
        --config.data.dir=DIR
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from asap_jax.derive import skips
from asap_jax.genotypes import Genotype
from asap_jax.strategies import STRATEGIES


def record_of(folder: Path) -> dict:
    """What the table needs of a finished run."""
    results = json.loads((folder / "results.json").read_text())
    genotype = Genotype.load(folder / "genotype.json")
    return {
        "test_accuracy": results["test_accuracy"],
        "parameters": results["parameters"],
        "search_seconds": results["search_seconds"],
        "total_seconds": results["total_seconds"],
        "skips": skips(genotype),
        "candidates_left": results["candidates_left"],
        "gap": {rule: gap["gap"] for rule, gap in results["gap"].items()},
        "architecture": genotype.architecture_string(),
        "versions": results["versions"],
    }


def table(records: dict) -> str:
    """Markdown: a row a method, means over its seeds, the accuracy with its deviation."""
    lines = [
        "| method | test accuracy, % | parameters | search s | total s | skips, normal cell | "
        "candidates left | gap, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in records.items():

        def mean(value, runs=runs):
            return statistics.fmean(value(run) for run in runs)

        accuracies = [100 * run["test_accuracy"] for run in runs]
        spread = f" +- {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
        gaps = [100 * next(iter(run["gap"].values())) for run in runs if run["gap"]]
        lines.append(
            f"| `{method}` | {statistics.fmean(accuracies):.2f}{spread} "
            f"| {mean(lambda run: run['parameters']):,.0f} "
            f"| {mean(lambda run: run['search_seconds']):.0f} "
            f"| {mean(lambda run: run['total_seconds']):.0f} "
            f"| {', '.join(str(run['skips']['normal']) for run in runs)} "
            f"| {mean(lambda run: run['candidates_left']):.0f} "
            f"| {f'{statistics.fmean(gaps):+.0f}' if gaps else '-'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", help="a size of configs/search.py")
    parser.add_argument("--methods", default=",".join(STRATEGIES), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/methods", help="folder of the workdirs")
    parser.add_argument("options", nargs="*", help="after --: passed on to each run")
    arguments = parser.parse_args()
    out, records = Path(arguments.out), {}
    out.mkdir(parents=True, exist_ok=True)
    # Seed by seed, so that a table of all methods stands early.
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            folder = out / f"{method}-{seed}"
            command = [
                sys.executable,
                "-m",
                "asap_jax.main",
                f"--config=search:{arguments.size},{method}",
                f"--config.seed={seed}",
                f"--workdir={folder}",
                *arguments.options,
            ]
            if not (folder / "results.json").exists():
                subprocess.run(command, check=True)
            records.setdefault(method, []).append({"seed": seed, **record_of(folder)})
            (out / "methods.json").write_text(json.dumps(records, indent=2) + "\n")
            (out / "methods.md").write_text(table(records))
    print(table(records))


if __name__ == "__main__":
    main()
