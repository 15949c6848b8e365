"""Genotypes: the description of a derived cell, its JSON format, and the published cells."""

import ast
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from asap_jax.layers.ops import OPERATIONS
from asap_jax.networks.spaces import SKELETONS

FORMAT = "asap_jax.genotype"
VERSION = 2

Node = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """The result of a search: the (operation, source) inputs of each cell type's nodes.

    Sources count from 0: first the cell's input nodes (in the "darts" skeleton 0 and 1, the outputs
    of the two previous cells), then the intermediate nodes. A node may have any number of inputs,
    including none. `normal_concat` and `reduce_concat` list the nodes whose outputs the cell
    concatenates. `skeleton` names how the cells are stacked, see `spaces.SKELETONS`; one without
    reduction cells leaves `reduce` empty.
    """

    normal: tuple[Node, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Node, ...] = ()
    reduce_concat: tuple[int, ...] = ()
    skeleton: str = "darts"

    def _repr_svg_(self) -> str:
        """The drawn cells, for notebooks."""
        from asap_jax.networks import drawings  # Matplotlib takes a while to import

        return drawings.svg(self)

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
            except (TypeError, ValueError, OverflowError) as error:
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
        """Number of input nodes of a cell."""
        return SKELETONS[self.skeleton].inputs

    @property
    def cells(self) -> dict[str, tuple[tuple[Node, ...], tuple[int, ...]]]:
        """{cell type: (nodes, concat)}."""
        return {
            cell: (getattr(self, cell), getattr(self, f"{cell}_concat"))
            for cell in SKELETONS[self.skeleton].cell_types
        }

    def architecture_string(self) -> str | None:
        """The cell in NAS-Bench-201's notation, "|op~source|...|+|op~source|...", or None.

        Missing edges are written as `none`. Cells of another skeleton, or with several operations
        on an edge, have no such string.
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
        """Parses NAS-Bench-201's notation; raises ValueError on anything else."""
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
        """Plain, versioned JSON."""
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
        """Parses the output of `to_json`; raises ValueError on anything else."""
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"a genotype has to be JSON ({error}), what DARTS prints (Genotype(normal=[...], "
                "...)), or the name of a cell in NAS-Bench-201 (|nor_conv_3x3~0|+|...|)"
            ) from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f'a genotype file is a JSON object with "format": "{FORMAT}"')
        if record.get("version") not in (1, VERSION):  # version 1 had only one skeleton
            raise ValueError(
                f"this genotype has version {record.get('version')}, this asap_jax reads 1 and "
                f"{VERSION}: use the asap_jax that wrote it, or a newer one"
            )
        fields = ("normal", "normal_concat", "reduce", "reduce_concat")
        missing = [field for field in fields if field not in record]
        if missing:
            raise ValueError(f"the genotype lacks {', '.join(missing)}")
        skeleton = record.get("skeleton", "darts")
        if not isinstance(skeleton, str):
            raise ValueError(f"the genotype's skeleton is {skeleton!r}, expected a name")
        return cls(**{field: record[field] for field in fields}, skeleton=skeleton)

    @classmethod
    def from_darts(cls, text: str) -> "Genotype":
        """Parses the cells printed by DARTS, PC-DARTS and P-DARTS: "Genotype(normal=[...], ...)".

        Text before it, as in a line of their logs, is ignored. Nothing is evaluated.

        Raises:
          ValueError: the text contains no such cells, or several.
        """
        if text.count("Genotype(") != 1:
            raise ValueError(
                f"expected one Genotype(normal=[...], ...), got {text.count('Genotype(')}: leave "
                "the line of the wanted one"
            )
        try:
            begin, end = text.index("Genotype("), text.rindex(")") + 1
            call = ast.parse(text[begin:end], mode="eval").body
            if not isinstance(call, ast.Call) or any(each.arg is None for each in call.keywords):
                raise ValueError("it is more than one call")
            names = ("normal", "normal_concat", "reduce", "reduce_concat", "skeleton")
            fields: dict[str, Any] = dict(zip(names, map(_literal, call.args), strict=False))
            fields |= {each.arg: _literal(each.value) for each in call.keywords if each.arg}
            for cell in ("normal", "reduce"):
                if any(each and isinstance(each[0], str) for each in fields.get(cell, ())):
                    fields[cell] = _in_pairs(fields[cell])  # DARTS' flat form
            return cls(**fields)
        except (
            ArithmeticError,
            LookupError,
            MemoryError,
            RecursionError,
            SyntaxError,
            TypeError,
        ) as error:
            raise ValueError(f"not cells as DARTS prints them: {error}") from error

    @classmethod
    def parse(cls, text: str) -> "Genotype":
        """Parses cells from any supported text format.

        These are this library's JSON (`to_json`), DARTS' printed form (`from_darts`), and
        NAS-Bench-201's notation (`from_architecture_string`).

        Raises:
          ValueError: the text is in none of these formats.
        """
        if "Genotype(" in text:
            return cls.from_darts(text)
        if text.lstrip().startswith("|"):
            return cls.from_architecture_string(text)
        return cls.from_json(text)

    def save(self, path) -> None:
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path) -> "Genotype":
        """Loads cells from a file in any format that `parse` supports."""
        return cls.parse(Path(path).read_text())


def is_text(name: str) -> bool:
    """Whether a text itself describes cells, in a format of `Genotype.parse`, not a name."""
    return name.lstrip().startswith(("{", "|")) or "Genotype(" in name


MOST = 1000  # maximum number of nodes in a range


def _literal(node):
    """The value of a literal, or of a range of literals."""
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if not isinstance(node.func, ast.Name) or node.func.id != "range" or node.keywords:
        raise ValueError("a call of something other than range")
    found = range(*map(ast.literal_eval, node.args))
    if len(found) > MOST:
        raise ValueError(f"a range of {len(found)} nodes")
    return tuple(found)


def _in_pairs(flat) -> tuple:
    """Nodes from DARTS' flat form: two inputs per node, in order."""
    if len(flat) % 2:
        raise ValueError(f"{len(flat)} inputs, where each node has two")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


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
    """Reads the published cells, stored in DARTS' flat form."""
    text = resources.files("asap_jax.networks").joinpath("published_cells.json").read_text()
    return {
        name: Genotype(
            _in_pairs(cell["normal"]),
            cell["normal_concat"],
            _in_pairs(cell["reduce"]),
            cell["reduce_concat"],
        )
        for name, cell in json.loads(text).items()
    }


GENOTYPES = _published()
