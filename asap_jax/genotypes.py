"""Genotypes: the description of a found cell, its JSON form, and the published cells."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from asap_jax.ops import OPERATIONS

FORMAT = "asap_jax.genotype"
VERSION = 1

Node = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """What a search finds: the (operation, source) inputs of each cell type's nodes.

    Sources count from 0: nodes 0 and 1 are the outputs of the two cells before, node 2 is the first
    intermediate node. A node takes any number of inputs, none included. `normal_concat` and
    `reduce_concat` list the nodes whose outputs the cell puts side by side.
    """

    normal: tuple[Node, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Node, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self):
        for cell in ("normal", "reduce"):
            nodes = tuple(
                tuple((str(op), int(source)) for op, source in node) for node in getattr(self, cell)
            )
            concat = tuple(int(node) for node in getattr(self, f"{cell}_concat"))
            object.__setattr__(self, cell, nodes)
            object.__setattr__(self, f"{cell}_concat", concat)
            _check(cell, nodes, concat)

    def to_json(self) -> str:
        """Plain JSON text, versioned."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "normal": self.normal,
                "normal_concat": self.normal_concat,
                "reduce": self.reduce,
                "reduce_concat": self.reduce_concat,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Reads `to_json`'s text; raises ValueError on anything else."""
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a genotype has to be JSON: {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f'a genotype file is a JSON object with "format": "{FORMAT}"')
        if record.get("version") != VERSION:
            raise ValueError(
                f"this genotype has version {record.get('version')}, this asap_jax reads version "
                f"{VERSION}: use the asap_jax that wrote it, or a newer one"
            )
        fields = ("normal", "normal_concat", "reduce", "reduce_concat")
        missing = [field for field in fields if field not in record]
        if missing:
            raise ValueError(f"the genotype lacks {', '.join(missing)}")
        return cls(**{field: record[field] for field in fields})

    def save(self, path) -> None:
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path) -> "Genotype":
        return cls.from_json(Path(path).read_text())


def _check(cell, nodes, concat):
    for index, node in enumerate(nodes, 2):
        for op, source in node:
            if op not in OPERATIONS:
                raise ValueError(
                    f"{cell} cell, node {index}: unknown operation {op!r}; known are "
                    f"{', '.join(OPERATIONS)}"
                )
            if not 0 <= source < index:
                raise ValueError(
                    f"{cell} cell, node {index}: input {source} does not exist yet; it can be "
                    f"0 to {index - 1}"
                )
    missing = [node for node in concat if not 2 <= node < len(nodes) + 2]
    if missing or not concat:
        raise ValueError(
            f"{cell} cell: the output concatenates nodes {list(concat)}, but the intermediate "
            f"nodes are 2 to {len(nodes) + 1}"
        )


def _published() -> dict[str, Genotype]:
    """Reads the published cells, which stand in DARTS' flat form: two inputs a node, in order."""

    def nodes(flat):
        return tuple(zip(flat[::2], flat[1::2], strict=True))

    text = resources.files("asap_jax").joinpath("published_cells.json").read_text()
    return {
        name: Genotype(
            nodes(cell["normal"]),
            cell["normal_concat"],
            nodes(cell["reduce"]),
            cell["reduce_concat"],
        )
        for name, cell in json.loads(text).items()
    }


GENOTYPES = _published()
