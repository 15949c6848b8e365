"""Genotypes: the description of a found cell, its JSON form, and the published cells."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from asap_jax.ops import OPERATIONS
from asap_jax.spaces import SKELETONS

FORMAT = "asap_jax.genotype"
VERSION = 2

Node = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """What a search finds: the (operation, source) inputs of each cell type's nodes.

    Sources count from 0: first the nodes that enter the cell (in the "darts" skeleton 0 and 1, the
    outputs of the two cells before), then the intermediate nodes. A node takes any number of
    inputs, none included. `normal_concat` and `reduce_concat` list the nodes whose outputs the cell
    puts side by side. `skeleton` names what the cells are stacked to, see `spaces.SKELETONS`; one
    without reduction cells leaves `reduce` empty.
    """

    normal: tuple[Node, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Node, ...] = ()
    reduce_concat: tuple[int, ...] = ()
    skeleton: str = "darts"

    def __post_init__(self):
        if self.skeleton not in SKELETONS:
            raise ValueError(
                f"the genotype's skeleton is {self.skeleton!r}; known are {', '.join(SKELETONS)}"
            )
        for cell in ("normal", "reduce"):
            try:
                nodes = tuple(
                    tuple((str(op), int(source)) for op, source in node)
                    for node in getattr(self, cell)
                )
                concat = tuple(int(node) for node in getattr(self, f"{cell}_concat"))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{cell} has to be a list of nodes, each a list of pairs (operation, source), "
                    f"and {cell}_concat a list of node numbers: {error}"
                ) from error
            object.__setattr__(self, cell, nodes)
            object.__setattr__(self, f"{cell}_concat", concat)
            if cell in SKELETONS[self.skeleton].cell_types:
                _check(cell, nodes, concat, self.inputs)
            elif nodes or concat:
                raise ValueError(
                    f"cells of the skeleton {self.skeleton!r} come without {cell} cells"
                )

    @property
    def inputs(self) -> int:
        """Number of nodes that enter a cell."""
        return SKELETONS[self.skeleton].inputs

    @property
    def cells(self) -> dict[str, tuple[tuple[Node, ...], tuple[int, ...]]]:
        """{cell type: (nodes, concat)}."""
        return {
            cell: (getattr(self, cell), getattr(self, f"{cell}_concat"))
            for cell in SKELETONS[self.skeleton].cell_types
        }

    def architecture_string(self) -> str | None:
        """NAS-Bench-201's name of the cell, "|op~source|...|+|op~source|..."; None if it has none.

        An edge that is not there is written as `none`. A cell has no such name in another skeleton,
        or with several operations on an edge.
        """
        if self.skeleton != "nasbench201" or any(
            len({source for _, source in node}) < len(node) for node in self.normal
        ):
            return None
        nodes = []
        for target, node in enumerate(self.normal, 1):
            ops = {source: op for op, source in node}
            nodes.append(
                "".join(f"|{ops.get(source, 'none')}~{source}" for source in range(target))
            )
        return "|+".join(nodes) + "|"

    @classmethod
    def from_architecture_string(cls, text: str) -> "Genotype":
        """The cell of such a name; ValueError if the text is none."""
        nodes = []
        try:
            for part in text.strip().split("+"):
                if not (part.startswith("|") and part.endswith("|")):
                    raise ValueError
                inputs = [field.split("~") for field in part.strip("|").split("|")]
                nodes.append(tuple((op, int(source)) for op, source in inputs if op != "none"))
        except ValueError:
            raise ValueError(
                f"not an architecture string: {text!r}; expected such as "
                "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|"
            ) from None
        return cls(tuple(nodes), (len(nodes),), skeleton="nasbench201")

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
                "skeleton": self.skeleton,
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
        if record.get("version") not in (1, VERSION):  # version 1 knew one skeleton
            raise ValueError(
                f"this genotype has version {record.get('version')}, this asap_jax reads 1 and "
                f"{VERSION}: use the asap_jax that wrote it, or a newer one"
            )
        fields = ("normal", "normal_concat", "reduce", "reduce_concat")
        missing = [field for field in fields if field not in record]
        if missing:
            raise ValueError(f"the genotype lacks {', '.join(missing)}")
        skeleton = record.get("skeleton", "darts")
        return cls(**{field: record[field] for field in fields}, skeleton=skeleton)

    def save(self, path) -> None:
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path) -> "Genotype":
        return cls.from_json(Path(path).read_text())


def _check(cell, nodes, concat, inputs):
    for index, node in enumerate(nodes, inputs):
        for op, source in node:
            if op not in OPERATIONS:
                raise ValueError(
                    f"{cell} cell, node {index}: unknown operation {op!r}; known are "
                    f"{', '.join(OPERATIONS)} (your own: asap_jax.register it before)"
                )
            if not 0 <= source < index:
                raise ValueError(
                    f"{cell} cell, node {index}: input {source} does not exist yet; it can be "
                    f"0 to {index - 1}"
                )
    last = len(nodes) + inputs - 1
    if not concat or not all(inputs <= node <= last for node in concat):
        raise ValueError(
            f"{cell} cell: the output concatenates nodes {list(concat)}, but the intermediate "
            f"nodes are {inputs} to {last}: name one or more of those"
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
