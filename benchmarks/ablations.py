"""ASAP with one setting changed at a time, searched, trained and tested over several seeds.

    python benchmarks/ablations.py --size=digits --seeds=3 --out=runs/ablations
    python benchmarks/ablations.py --size=cifar10_small --of=T0,theta -- --config.data.dir=DIR

The settings: T0; tau, and with it the number of grace epochs; theta, in units of 1 / N; the
schedule (the final temperature, Theorem 2 instead of the exponential schedule); the edges kept; the
cells' output. Each run has its own process; the same command resumes where it stopped. Writes
ablations.json (one record per run) and ablations.md as results arrive. Options after `--` are
passed to each run.
"""

import json
import statistics
from pathlib import Path

from tables import arguments_of, fill, keep, results_of

from asap_jax.runs.comparing import spread

# T0 = 1.3 and tau = 1 give five grace epochs of 50; tau = T0 gives none.
STRATEGY = "--config.search.strategy."
CHANGES = {
    "T0": {
        "T0=1.0": (f"{STRATEGY}initial_temperature=1.0",),
        "T0=1.6": (f"{STRATEGY}initial_temperature=1.6",),
    },
    "grace": {
        "no-grace": (f"{STRATEGY}grace_temperature=1.3",),
        "tau=0.7": (f"{STRATEGY}grace_temperature=0.7",),
    },
    "theta": {
        "theta=0.2": (f"{STRATEGY}threshold=0.2",),
        "theta=0.6": (f"{STRATEGY}threshold=0.6",),
    },
    "schedule": {
        "end=0.03": (f"{STRATEGY}final_temperature=0.03",),
        "end=0.3": (f"{STRATEGY}final_temperature=0.3",),
        "theorem-2": ("--config=search:{size},asap_pac",),
    },
    "edges": {"all-edges": ("--config.search.edges=all",)},
    "output": {"conv-output": ("--config.train.output=conv",)},
}
USUAL = "ASAP"


def cases_of(size: str, of: list[str], out: Path, options: list[str]) -> dict[str, list[str]]:
    """{name: arguments of the command}: the default settings, then each change."""
    usual = [f"--config=search:{size},asap", *options]
    cases = {USUAL: usual}
    for kind in of:
        for name, changes in CHANGES[kind].items():
            changes = [change.replace("{size}", size) for change in changes]
            if kind == "output":  # of the same cells, so no new search
                changes += ["--mode=train", f"--config.genotype={out / USUAL}-{{seed}}"]
            own = changes[0].startswith("--config=")
            cases[name] = [*changes, *options] if own else [*usual, *changes]
    return cases


def record_of(folder: Path) -> dict:
    """Collects what the table needs from a finished run."""
    results = json.loads((folder / "results.json").read_text())
    return {
        **results_of(folder),
        "candidates_left": results["candidates_left"],
        "search_epochs": results["epochs"]["search"],
    }


def table(records: dict) -> str:
    """Markdown: a row per setting, means over its seeds, the accuracy with its deviation."""
    lines = [
        "| setting | test accuracy, % | parameters | search epochs | candidates left | search s |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in records.items():
        searched = runs[0]["candidates_left"] is not None
        keys = ("search_epochs", "candidates_left", "search_seconds")
        told = [
            f"{statistics.fmean(run[key] for run in runs):.0f}" if searched else "-" for key in keys
        ]
        lines.append(
            f"| `{name}` | {spread([100 * run['test_accuracy'] for run in runs])} "
            f"| {statistics.fmean(run['parameters'] for run in runs):,.0f} | {' | '.join(told)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments_of(__doc__, "ablations")
    parser.add_argument("--size", default="digits", help="a size of configs/search.py")
    parser.add_argument("--of", default=",".join(CHANGES), help="comma-separated")
    arguments = parser.parse_args()
    out, of = Path(arguments.out), [kind for kind in arguments.of.split(",") if kind]
    unknown = [kind for kind in of if kind not in CHANGES]
    if unknown:
        parser.error(f"--of={','.join(unknown)}: known are {', '.join(CHANGES)}")
    if "output" in of:
        arguments.at_once = 1  # its runs train the cells that others have found
    records = fill(
        cases_of(arguments.size, of, out, arguments.options),
        arguments,
        record_of,
        lambda records: keep(out, "ablations", records, table(records)),
    )
    print(table(records))


if __name__ == "__main__":
    main()
