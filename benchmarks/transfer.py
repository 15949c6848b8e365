"""ASAP's table 2: published cells on several data sets with one recipe, over several seeds.

    python benchmarks/transfer.py --seeds=3 --out=runs/transfer -- --config.data.dir=DIR
    python benchmarks/transfer.py --cells=ASAP,runs/mine --data=cifar100,fashion_mnist --seeds=1

Rows are cells, published names or workdirs of searches; columns are recipes of configs/train.py.
The networks of two cells differ only in the cell. Each run has its own process; the same command
resumes where it stopped. Writes transfer.json (one record per run) and transfer.md as results
arrive. Options after `--` are passed to each run; --config.train.epochs=100 shortens all
of them. CINIC-10 and Freiburg are folders (docs/data.md), which --source names, one per column:

    python benchmarks/transfer.py --source=cinic10=cinic10:/data/CINIC-10 \
        --source=freiburg=freiburg:/data/freiburg_groceries_dataset -- --config.data.dir=DIR
"""

from pathlib import Path

from tables import arguments_of, fill, keep, results_of

from asap_jax.configs.recipes import RECIPES
from asap_jax.host.errors import nearest
from asap_jax.runs.comparing import spread

# The paper's rows. Its SNAS has 2.8M parameters in table 1: the moderate cell (2,847,358).
CELLS = "AmoebaNet,NASNet,PNASNet,SNAS_moderate,DARTS_V1,DARTS_V2,ASAP"
DATA = "cinic10,freiburg,cifar100,svhn,fashion_mnist"  # one recipe; the ImageNet column has another


def table(records: dict, data: list[str]) -> str:
    """Markdown: a row per cell, the test error in % on each data set, mean and deviation."""
    lines = [f"| cell | {' | '.join(data)} |", f"|---|{'---|' * len(data)}"]
    for cell in dict.fromkeys(name.rpartition("/")[0] for name in records):
        errors = [
            [100 * (1 - run["test_accuracy"]) for run in records.get(f"{cell}/{each}", ())]
            for each in data
        ]
        told = (spread(each) if each else "" for each in errors)
        lines.append(f"| `{cell}` | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def sources_of(named: list[str], data: list[str]) -> dict[str, list[str]]:
    """{column: the option that names its source}; ValueError for an unknown column."""
    sources = {}
    for each in named:
        recipe, _, source = each.partition("=")
        if not source:
            raise ValueError(
                f"--source={each}: expected RECIPE=SOURCE, such as cinic10=cinic10:/data/CINIC-10"
            )
        if recipe not in data:
            raise ValueError(f"--source={each}: {recipe!r} is none of --data={','.join(data)}")
        sources[recipe] = [f"--config.data.source={source}"]
    return sources


def main() -> None:
    parser = arguments_of(__doc__, "transfer")
    parser.add_argument("--cells", default=CELLS, help="comma-separated")
    parser.add_argument("--data", default=DATA, help=f"comma-separated: {', '.join(RECIPES)}")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="RECIPE=SOURCE",
        help="config.data.source of one column; may be repeated",
    )
    arguments = parser.parse_args()
    out, data, cells = Path(arguments.out), arguments.data.split(","), arguments.cells.split(",")
    if len({Path(cell).name for cell in cells}) < len(cells):
        parser.error(f"--cells={arguments.cells}: two of them have the same last name")
    for each in data:
        if each not in RECIPES:
            known = f"recipes are {', '.join(RECIPES)}"
            parser.error(f"--data={each}{nearest(each, RECIPES)}: {known}")
    try:
        sources = sources_of(arguments.source, data)
    except ValueError as error:
        parser.error(str(error))
    cases = {
        f"{Path(cell).name}/{each}": [
            f"--config=train:{each}",
            f"--config.genotype={cell}",
            *arguments.options,
            *sources.get(each, ()),
        ]
        for cell in cells
        for each in data
    }
    records = fill(
        cases,
        arguments,
        results_of,
        lambda records: keep(out, "transfer", records, table(records, data)),
    )
    print(table(records, data))


if __name__ == "__main__":
    main()
