"""How much better than random cells a search's are, over its number of steps.

    python benchmarks/search_quality.py --table=nasbench201.csv --steps=300,1000 --seeds=5 \
        --out=runs/quality -- --config.data.dir=DIR
    python benchmarks/search_quality.py --table=nasbench201.csv --methods=asap --steps=1000 \
        --vary=search.alpha.learning_rate=0.003,0.05 -- --config.data.dir=DIR

Searches NAS-Bench-201's space as `nb201_small` does and looks each cell up in a table of
accuracies, as `config.search.benchmark` reads it. The quality of a cell is the share of the table's
cells that are worse: 50 % for random cells, whatever the accuracies are. A budget grows by images:
each search has 10 epochs, so that the temperature falls alike at each, and the alphas' learning
rate falls as the number of steps grows, so that they can move as far. --vary changes one setting at
a time. Each run has its own process; the same command resumes where it stopped. Writes
search_quality.json (one record per run), .md (the table) and .svg (the curves) as results arrive.
Options after `--` are passed to each run.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tables import arguments_of, fill

from asap_jax.configs import comparisons, presets
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.nasbench201 import NASBench201
from asap_jax.report import charts
from asap_jax.runs.comparing import spread

SIZE, EPOCHS, STEPS = "nb201_small", 10, 1000  # the preset's epochs and steps
GRID = 41  # points of a curve


def chance(percentiles: Sequence[float]) -> float:
    """How often as many random draws have at least this mean: a sum of uniform variables, exact."""
    count, below = len(percentiles), sum(100 - each for each in percentiles) / 100
    terms = (
        (-1) ** k * math.comb(count, k) * (below - k) ** count for k in range(math.floor(below) + 1)
    )
    return min(1.0, max(0.0, sum(terms) / math.factorial(count)))


def cases_of(arguments) -> dict[str, list[str]]:
    """{METHOD/STEPS or METHOD/STEPS/KEY=VALUE: arguments of the command}."""
    changes = [("", [])]
    for each in arguments.vary:
        key, _, values = each.partition("=")
        changes += [(f"{key}={value}", [f"--config.{key}={value}"]) for value in values.split(",")]
    cases = {}
    for steps in map(int, arguments.steps.split(",")):
        for method in arguments.methods.split(","):
            search = presets.get_config(f"{SIZE},{method}").search
            rate, images = search.alpha.learning_rate * STEPS / steps, 2 * search.batch_size * steps
            usual = [
                f"--config=search:{SIZE},{method}",
                "--config.mode=search",
                f"--config.search.benchmark={arguments.table}",
                f"--config.search.epochs={EPOCHS}",
                f"--config.search.alpha.learning_rate={rate:.3g}",
                "--config.search.watch.images=0",
                f"--config.data.train_examples={images // EPOCHS}",
                *arguments.options,
            ]
            for change, options in changes:
                cases["/".join(filter(None, (method, str(steps), change)))] = usual + options
    return cases


def record_of(folder: Path, benchmark: NASBench201) -> dict:
    """Collects what the table needs from a finished search."""
    found = json.loads((folder / "search.json").read_text())
    cell = Genotype.load(folder / "genotype.json")
    return {
        "architecture": cell.architecture_string(),
        "benchmark": benchmark[cell],
        "worse": benchmark.worse(cell),
        "candidates_left": found["candidates_left"],
        "certainty": found["certainty"],
        "seconds": found["seconds"],
    }


def table(records: dict, column: str) -> str:
    """Markdown: a row per case, means and sample deviations over its seeds."""
    lines = [
        f"| search | {column}, % | cells that are worse, % | standard errors above random "
        "| as good by chance | by seed | candidates left | s |",
        f"|{'---|' * 8}",
    ]
    for case, runs in records.items():
        shares = [run["worse"][column] for run in runs]
        error = statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan
        above = f"{(statistics.fmean(shares) - 50) / error:+.1f}" if error > 0 else "-"
        told = (
            f"`{case}`",
            spread([run["benchmark"][column] for run in runs]),
            spread(shares, 0),
            above,
            "p < 0.001" if (p := chance(shares)) < 0.001 else f"p = {p:.3f}",
            ", ".join(f"{share:.0f}" for share in shares),
            f"{statistics.fmean(run['candidates_left'] for run in runs):.0f}",
            f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
        )
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def curves(records: dict, column: str) -> str:
    """SVG: each method's mean share of worse cells over the steps, by straight lines."""
    means: dict[str, dict[int, float]] = {}
    for case, runs in records.items():
        method, steps, *changed = case.split("/")
        if not changed:
            mean = statistics.fmean(run["worse"][column] for run in runs)
            means.setdefault(method, {})[int(steps)] = mean
    budgets = sorted({steps for found in means.values() for steps in found})
    grid = np.linspace(budgets[0], budgets[-1], GRID)
    series = {
        method: np.interp(grid, sorted(found), [found[k] for k in sorted(found)]).tolist()
        for method, found in means.items()
    }
    title = f"cells that are worse, % ({column}), over the steps of a search"
    span = budgets[0], budgets[-1]
    chart = charts.line_chart(title, series, low=0, high=100, span=span)
    return charts.standalone(chart, list(series))


def main() -> None:
    parser = arguments_of(__doc__, "quality")
    parser.add_argument("--table", required=True, help="CSV of NAS-Bench-201's accuracies")
    parser.add_argument("--column", default="", help="of the table; by default its first")
    parser.add_argument("--methods", default=comparisons.BY_EVIDENCE, help="comma-separated")
    parser.add_argument("--steps", default="300,1000", help="comma-separated budgets")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="a setting of the config and its values, one changed at a time; may be repeated",
    )
    arguments = parser.parse_args()
    out = Path(arguments.out)
    try:
        benchmark = NASBench201(arguments.table)
    except (OSError, ValueError) as error:
        parser.error(f"--table={arguments.table}: {error}")
    arguments.table = benchmark.path.resolve()
    columns = list(next(iter(benchmark.values())))
    column = arguments.column or columns[0]
    if column not in columns:
        parser.error(f"--column={column}: {benchmark.path} has {', '.join(columns)}")

    def write(records):
        (out / "search_quality.json").write_text(json.dumps(records, indent=1) + "\n")
        (out / "search_quality.md").write_text(table(records, column))
        (out / "search_quality.svg").write_text(curves(records, column))

    records = fill(cases_of(arguments), arguments, lambda each: record_of(each, benchmark), write)
    print(table(records, column))


if __name__ == "__main__":
    main()
