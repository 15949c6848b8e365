"""A comparison: methods times seeds, each a run of its own, and what follows from them."""

import html
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from asap_jax.configs import comparisons
from asap_jax.host import lock, workdir
from asap_jax.host.errors import UserError
from asap_jax.host.run_log import say
from asap_jax.methods import derive
from asap_jax.networks.genotypes import Genotype
from asap_jax.report import charts, comparison
from asap_jax.runs import sweep
from asap_jax.searching import certainty
from asap_jax.searching.stages import make_space

GRID = 41  # points of a curve over the scaled time
Records = Mapping[str, Sequence[Mapping[str, Any]]]  # {method: one record per seed}


class Comparison(NamedTuple):
    """The result of a comparison.

    records: {method: one record per seed}, see `record_of`.
    table: Markdown, a row per method.
    folder: holds the page, the figures and the runs' workdirs.
    """

    records: dict[str, list[dict]]
    table: str
    folder: Path

    def _repr_html_(self) -> str:
        """The table and the figures, for notebooks."""
        header, rows = comparison.cells(self.table)
        pictures = figures(self.folder, self.records)
        drawn = "".join(
            f"<figure>{charts.standalone(picture, names)}<figcaption>{html.escape(caption)}"
            "</figcaption></figure>"
            for picture, names, caption in pictures.values()
        )
        return comparison.html_table(header, rows) + drawn


def compare(config: ConfigDict, folder: str | Path) -> Comparison:
    """Runs what is missing of a comparison; writes the table, the figures and the page.

    comparison.json has one record per run (see `record_of`), comparison.md the table, figures/ the
    pictures, report.html all of it; they are written anew after each run.

    Args:
      config: from `comparisons.get_config`.
      folder: of the comparison; a run's workdir is FOLDER/METHOD-SEED.

    Raises:
      UserError: the config is unusable, or a folder holds a run with other arguments.
      RunFailed, KeyboardInterrupt: see `sweep.sweep`; the same call continues.
    """
    folder = workdir.locate(folder)
    cases = comparisons.cases(config)
    if (folder / "config.json").exists() or (folder / "network.json").exists():
        raise UserError(f"--workdir={folder} holds a run, not a comparison: choose another one")
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    runs = sweep.runs_of(cases, seeds, folder)
    records: dict[str, list[dict]] = {}

    def on_done(run):
        records.setdefault(run.case, []).append({"seed": run.seed, **record_of(run.folder)})
        records[run.case].sort(key=lambda record: record["seed"])
        if run not in finished:
            write(config, folder, records)

    with lock.held(folder):
        finished = [run for run in runs if run.done]
        say(f"{len(cases)} methods, {len(seeds)} seeds: {len(finished)} of {len(runs)} runs done")
        sweep.sweep(runs, on_done, config.at_once)
        write(config, folder, records)
    records = {method: records[method] for method in cases}
    result = Comparison(records, table(records, config.baseline), folder)
    say(f"\n{result.table}\n{folder / 'report.html'}")
    return result


def record_of(folder: Path) -> dict[str, Any]:
    """Collects what a comparison needs from a finished run.

    accuracy: the trained network's on the test (or validation) images; None after a search alone.
    derived_accuracy: of the derived cells on the alpha half, with the supernet's weights.
    benchmark, worse: {column: value} of the cell, of `config.search.benchmark`; {column: the share
      of its cells that are worse, in %}, {} of older versions.
    ranking: see `SearchOutcome.ranking`.
    """
    search = workdir.read_json(folder / "search.json")
    path = folder / "results.json"
    results = workdir.read_json(path) if path.exists() else {}
    genotype = Genotype.load(folder / "genotype.json")
    edges = workdir.read_config(folder)["search"]["edges"]
    return {
        "accuracy": results.get("test_accuracy", results.get("val_accuracy")),
        "derived_accuracy": search["derived_accuracy"],
        "parameters": results.get("parameters"),
        "multiply_adds": results.get("multiply_adds"),
        "search_seconds": search["seconds"],
        "total_seconds": results.get("total_seconds", search["seconds"]),
        "skips": derive.skips(genotype),
        "candidates_left": search["candidates_left"],
        "epochs": search["epochs"],
        "gap": search["gap"].get(edges, {}).get("gap"),
        "genotype": json.loads(genotype.to_json()),
        "architecture": genotype.architecture_string(),
        "benchmark": search["benchmark"],
        "worse": search.get("worse", {}),
        "ranking": search["ranking"],
        "device": results.get("device"),
        "versions": results.get("versions"),
    }


def measure(records: Records) -> tuple[str, dict[str, list[float]]]:
    """What methods are compared by, in %: (its name, {method: one value per seed}).

    That is the accuracy of the trained networks, or without trainings the benchmark's last column.
    """
    everything = [run for runs in records.values() for run in runs]
    if any(run["accuracy"] is not None for run in everything):
        name = "test accuracy, %"
        return name, {m: [100 * run["accuracy"] for run in runs] for m, runs in records.items()}
    columns = list(max((run["benchmark"] for run in everything), key=len))
    if columns:
        name = columns[-1]
        return name, {
            m: [run["benchmark"].get(name, math.nan) for run in runs] for m, runs in records.items()
        }
    name = "accuracy with shared weights, %"
    return name, {m: [100 * run["derived_accuracy"] for run in runs] for m, runs in records.items()}


def welch(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float] | None:
    """(difference of the means, two-sided p-value of Welch's t-test); None without two of each."""
    values, baseline = _known(values), _known(baseline)
    if min(len(values), len(baseline)) < 2:
        return None
    sides = [
        (statistics.fmean(side), statistics.stdev(side), len(side)) for side in (values, baseline)
    ]
    difference = sides[0][0] - sides[1][0]
    if not sides[0][1] and not sides[1][1]:  # without spread there is nothing to test
        return difference, float(difference == 0)
    return difference, float(stats.ttest_ind_from_stats(*sides[0], *sides[1], False).pvalue)


def table(records: Records, baseline: str) -> str:
    """Markdown: a row per method, means and sample deviations over its seeds."""
    name, values = measure(records)
    everything = [run for runs in records.values() for run in runs]
    trained = everything[0]["accuracy"] is not None
    columns = {
        "method": lambda method, runs: f"`{method}`",
        name: lambda method, runs: spread(values[method]),
    }
    if baseline in records:

        def against(method, runs):
            tested = welch(values[method], values[baseline])
            if method == baseline or tested is None:
                return "-"
            return f"{tested[0]:+.2f} (p = {tested[1]:.2f})"

        columns[f"against `{baseline}`"] = against
    if any(run["benchmark"] for run in everything):
        columns["worst, best seed"] = lambda method, runs: (
            f"{min(known):.2f}, {max(known):.2f}" if (known := _known(values[method])) else "-"
        )
    if any(run["worse"] for run in everything):
        column = list(max((run["worse"] for run in everything), key=len))[-1]
        columns["cells that are worse, %"] = lambda method, runs: spread(
            [run["worse"].get(column, math.nan) for run in runs], 0
        )
    columns["with shared weights, %"] = lambda method, runs: spread(
        [100 * run["derived_accuracy"] for run in runs]
    )
    if any(run["ranking"] for run in everything):
        columns["rank correlation"] = lambda method, runs: spread(
            [run["ranking"]["kendall"] for run in runs if run["ranking"]]
        )
    if trained:
        columns["parameters"] = lambda method, runs: _mean(runs, "parameters")
        columns["multiply-adds"] = lambda method, runs: _mean(runs, "multiply_adds")
    columns["seeds agree, %"] = lambda method, runs: _agreement(runs)
    columns["search s"] = lambda method, runs: _mean(runs, "search_seconds")
    columns["skips, normal cell"] = lambda method, runs: ", ".join(
        str(run["skips"]["normal"]) for run in runs
    )
    columns["candidates left"] = lambda method, runs: _mean(runs, "candidates_left")
    columns["gap, points"] = lambda method, runs: spread(
        [100 * run["gap"] for run in runs if run["gap"] is not None], 0, sign=True
    )
    columns["seeds"] = lambda method, runs: str(len(runs))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for method, runs in records.items():
        lines.append(f"| {' | '.join(cell(method, runs) for cell in columns.values())} |")
    return "\n".join(lines) + "\n"


def _agreement(runs) -> str:
    """The share of operations that the cells of two seeds have in common, in the mean."""
    shared = certainty.between([Genotype.from_json(json.dumps(run["genotype"])) for run in runs])
    return "-" if shared is None else f"{100 * shared:.0f}"


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(runs, key) -> str:
    return f"{statistics.fmean(run[key] for run in runs):,.0f}"


def spread(values: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    """'mean +- sample deviation'; the value if there is only one, '-' if there is none.

    NaN, as of a cell that is not in the benchmark's table, does not count.
    """
    values = _known(values)
    if not values:
        return "-"
    text = f"{statistics.fmean(values):{'+' * sign}.{digits}f}"
    return f"{text} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def write(config: ConfigDict, folder: Path, records: Records) -> None:
    """Writes comparison.json, comparison.md, figures/ and report.html into the folder."""
    # In the order of the config, whichever method was done first.
    records = {m: records[m] for m in comparisons.cases(config) if m in records}
    text, (name, values) = table(records, config.baseline), measure(records)
    workdir.write_json(folder / "comparison.json", records)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    pictures = figures(folder, records)
    for title, (picture, legend, _) in pictures.items():
        path = folder / "figures" / f"{title.lower().replace(' ', '_')}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(charts.standalone(picture, legend), encoding="utf-8")
    header, rows = comparison.cells(text)
    runs = {
        method: [
            comparison.Run(run["seed"], value, sweep.workdir_of(folder, method, run["seed"]))
            for run, value in zip(each, values[method], strict=True)
        ]
        for method, each in records.items()
    }
    title = folder.resolve().name
    comparison.write(folder / "report.html", title, name, header, rows, runs, pictures)


def figures(folder: Path, records: Records) -> dict[str, tuple[str, dict[str, int], str]]:
    """{title: (SVG, {name of a series: its number}, caption)}: the paper's figures 1, 3, 6 and 7.

    Curves are means over the seeds; the time is scaled so that each search lasts from 0 to 1.
    """
    values, found = measure(records)[1], {}
    sized = [m for m, runs in records.items() if runs[0]["parameters"] is not None]
    if sized:
        parameters = {m: statistics.fmean(run["parameters"] for run in records[m]) for m in sized}
        spots = [
            charts.Spot(
                method,
                statistics.fmean(run["search_seconds"] for run in records[method]),
                100 - statistics.fmean(values[method]),
                parameters[method] / max(parameters.values()),
            )
            for method in sized
        ]
        found["Error and search time"] = (
            charts.scatter(
                "test error over the seconds of the search", spots, "seconds", "% test error"
            ),
            {},
            "Test error in % over the seconds of the search; a disc's area is the number of "
            "parameters (the paper's figure 1).",
        )
    curves = {}
    for method, runs in records.items():
        workdirs = [sweep.workdir_of(folder, method, run["seed"]) for run in runs]
        curves[method] = [(_epochs(each), _candidates(each)) for each in workdirs]
    wanted = {
        "Validation accuracy": (
            lambda epochs, _: [epoch.get("val_accuracy") for epoch in epochs],
            "Accuracy of the supernet on the alpha half during the search (figure 6).",
        ),
        "Entropy": (
            lambda epochs, _: [epoch.get("entropy") for epoch in epochs],
            "Normalized entropy of the mixtures, mean over the cells (figure 7).",
        ),
        "Epoch duration": (
            lambda epochs, _: [each["seconds"] / epochs[1]["seconds"] for each in epochs[1:]],
            "Seconds of an epoch relative to the second; the first compiles (figure 3).",
        ),
        "Candidates left": (
            lambda epochs, total: [1.0] + [epoch["candidates_left"] / total for epoch in epochs],
            "Candidates left, relative to all: one minus the sparsity (figure 3).",
        ),
    }
    for title, (value, caption) in wanted.items():
        series = {}
        for method, runs in curves.items():
            scaled = [_scaled(value(epochs, total)) for epochs, total in runs]
            whole = [each for each in scaled if each is not None]
            if len(whole) == len(scaled):
                series[method] = np.mean(whole, 0).tolist()
        if title == "Candidates left":  # of the methods that prune
            series = {method: each for method, each in series.items() if each[-1] < 1}
        if series:
            numbers = {method: i for i, method in enumerate(records) if method in series}
            chart = charts.line_chart(
                f"{title} over the scaled time", series, span=(0, 1), numbers=numbers
            )
            found[title] = chart, numbers, caption
    return found


def _epochs(folder: Path) -> list[dict]:
    """The records of a search's epochs, of its first search."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [each for each in records if each["phase"] == "search" and each["run"] == 0]


def _candidates(folder: Path) -> int:
    """The number of candidates that a search starts with, over all its cell types."""
    space = make_space(ConfigDict(workdir.read_config(folder)["search"]))
    return math.prod(space.shape) * len(space.cell_types)


def _scaled(values: Sequence[float | None]) -> np.ndarray | None:
    """A curve over the epochs on `GRID` points from its begin to its end; None with gaps."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None
    return np.interp(np.linspace(0, len(known) - 1, GRID), np.arange(len(known)), known)
