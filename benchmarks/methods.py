"""Every method, searched, trained and tested by the command, over several seeds: one table.

    python benchmarks/methods.py --size=tiny --seeds=3 --out=runs/methods

All methods have the same budget (the presets' word "fair"), including at the paper's size.

Runs one after another, each in its own process; finished runs are skipped. Writes methods.json (one
record per run) and methods.md as results arrive. Options after `--` are passed to each run:

    python benchmarks/methods.py --size=cifar10_small --methods=asap,darts -- \
        --config.data.dir=DIR
"""

import json
import statistics
from pathlib import Path

from runs import arguments_of, by_seed, keep, results_of, spread

from asap_jax.methods import STRATEGIES
from asap_jax.methods.derive import skips
from asap_jax.networks.genotypes import Genotype


def record_of(folder: Path) -> dict:
    """Collects what the table needs from a finished run."""
    results = json.loads((folder / "results.json").read_text())
    genotype = Genotype.load(folder / "genotype.json")
    return {
        **results_of(folder),
        "skips": skips(genotype),
        "candidates_left": results["candidates_left"],
        "gap": {rule: gap["gap"] for rule, gap in results["gap"].items()},
        "architecture": genotype.architecture_string(),
    }


def table(records: dict) -> str:
    """Markdown: a row per method, means over its seeds, the accuracy with its deviation."""
    lines = [
        "| method | test accuracy, % | parameters | search s | total s | skips, normal cell | "
        "candidates left | gap, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in records.items():

        def mean(value, runs=runs):
            return statistics.fmean(value(run) for run in runs)

        gaps = [100 * next(iter(run["gap"].values())) for run in runs if run["gap"]]
        lines.append(
            f"| `{method}` | {spread([100 * run['test_accuracy'] for run in runs])} "
            f"| {mean(lambda run: run['parameters']):,.0f} "
            f"| {mean(lambda run: run['search_seconds']):.0f} "
            f"| {mean(lambda run: run['total_seconds']):.0f} "
            f"| {', '.join(str(run['skips']['normal']) for run in runs)} "
            f"| {mean(lambda run: run['candidates_left']):.0f} "
            f"| {f'{statistics.fmean(gaps):+.0f}' if gaps else '-'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments_of(__doc__, "methods")
    parser.add_argument("--size", default="tiny", help="a size of configs/search.py")
    parser.add_argument("--methods", default=",".join(STRATEGIES), help="comma-separated")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    cases = {
        method: [f"--config=search:{arguments.size},{method},fair", *arguments.options]
        for method in arguments.methods.split(",")
    }
    records = by_seed(
        cases,
        arguments.seeds,
        out,
        record_of,
        lambda records: keep(out, "methods", records, table(records)),
    )
    print(table(records))


if __name__ == "__main__":
    main()
