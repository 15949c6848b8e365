"""What a network's source code has to say, for both frameworks: its cells and how they are stacked.

Nodes and edges that do not reach a cell's output are left out.
"""

from collections.abc import Collection
from typing import NamedTuple

from asap_jax.host.errors import UserError
from asap_jax.layers import ops
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.models import STAGES, STEM_MULTIPLIER, EvalNetwork, cell_types


class Edge(NamedTuple):
    """An operation; `name` is that of its weights: edge<i>."""

    name: str
    op: str
    source: int
    stride: int


class Cell(NamedTuple):
    """A class of cells.

    name: of the class.
    count: number of input nodes, the first ones.
    inputs: those of them that reach the output.
    nodes: {node: edges into it}.
    concat: nodes that form the output.
    reduction: whether it halves the maps.
    convolved: whether a convolution to the cell's width follows.
    after_reduction: values that occur, see `Step`.
    squeeze: values that occur.
    """

    name: str
    count: int
    inputs: tuple[int, ...]
    nodes: dict[int, tuple[Edge, ...]]
    concat: tuple[int, ...]
    reduction: bool
    convolved: bool
    after_reduction: frozenset[bool]
    squeeze: frozenset[int]

    @property
    def halves(self) -> bool | None:
        """Whether the older input has to be halved; None if that differs between the cells."""
        if 0 not in self.inputs:
            return False
        return None if len(self.after_reduction) > 1 else max(self.after_reduction)

    @property
    def gated(self) -> bool | None:
        """Whether there is squeeze and excitation; None if that differs between the cells."""
        return None if any(self.squeeze) and 0 in self.squeeze else any(self.squeeze)

    @property
    def description(self) -> str:
        """What kind of cell it is, a line."""
        if self.count == 1:
            return "A cell that reads the one before it."
        size = "halves" if self.reduction else "keeps"
        return f"A cell that reads the two before it and {size} the size of their maps."


class Step(NamedTuple):
    """A part of the network: a stem, a cell, a reduction.

    name: of its weights.
    kind: name of its class.
    widths: channels of its inputs, where PyTorch has to know them.
    channels: of its nodes.
    after_reduction: whether its older input has twice the size.
    squeeze: factor of squeeze and excitation, 0 for none.
    """

    name: str
    kind: str
    widths: tuple[int, ...]
    channels: int
    after_reduction: bool = False
    squeeze: int = 0


class Layout(NamedTuple):
    """A network: its skeleton as in the genotype, its parts in order, the classes of its cells.

    features: width of the classifier's input.
    """

    skeleton: str
    steps: tuple[Step, ...]
    cells: dict[str, Cell]
    features: int

    def arguments(self, step: Step) -> list[str]:
        """Source of the arguments that make a part, without its inputs' widths."""
        given = [] if step.kind == "NormRelu" else [str(step.channels)]
        if step.kind == "ReluConvNorm":
            given += ["3", "stride=2"]
        if step.kind in self.cells:
            cell = self.cells[step.kind]
            given += ["after_reduction=True"] * (cell.halves is None and step.after_reduction)
            given += [f"squeeze_by={step.squeeze}"] * bool(step.squeeze)
        return given

    def flow(self, step: Step) -> tuple[str, list[str]]:
        """Source of an assignment of a part's output, up to its value, and of its inputs."""
        if self.skeleton == "nasbench201":
            return "x = ", ["x"]
        stems = {
            "stem": ("s0 = s1 = ", ["x"]),
            "stem0": ("s0 = ", ["x"]),
            "stem1": ("s1 = ", ["s0"]),
        }
        return stems.get(step.name, ("s0, s1 = s1, ", ["s0", "s1"]))

    @property
    def output(self) -> str:
        """The name of the last part's output."""
        return "x" if self.skeleton == "nasbench201" else "s1"


def layout(module: EvalNetwork, image_channels: int, known: Collection[str]) -> Layout:
    """The layout of a network.

    Args:
      module: the network.
      image_channels: 1 or 3.
      known: operations that can be written out.

    Raises:
      UserError: an operation is not one of these, or a user's own of the same name.
    """
    _check(module.genotype, known)
    if module.genotype.skeleton == "nasbench201":
        steps, features = _residual_stages(module, image_channels)
        kinds = {"normal": "Cell"}
    else:
        steps, features = _stacked(module, image_channels)
        kinds = {"normal": "NormalCell", "reduce": "ReductionCell"}
    cells = {}
    for cell_type, kind in kinds.items():
        alike = [step for step in steps if step.kind == kind]
        if alike:
            cells[kind] = _cell(module, cell_type, kind, alike)
    return Layout(module.genotype.skeleton, tuple(steps), cells, features)


def _check(genotype, known):
    found = {op for nodes, _ in genotype.cells.values() for node in nodes for op, _ in node}
    unknown = [
        op
        for op in sorted(found)
        if op not in known or getattr(ops.OPERATIONS[op], "__module__", "") != ops.__name__
    ]
    if unknown:
        raise UserError(
            f"the operation {', '.join(map(repr, unknown))} is not one of asap_jax's own, so it "
            "cannot be written out as source code; the formats stablehlo and safetensors hold it"
        )


def _stacked(module, image_channels):
    channels = module.channels
    if module.stem == "imagenet":
        steps = [
            Step("stem0", "HalvingStem", (image_channels,), channels),
            Step("stem1", "ReluConvNorm", (channels,), channels),
        ]
        widths = channels, channels
    else:
        width = STEM_MULTIPLIER * channels
        steps = [Step("stem", "Stem", (image_channels,), width)]
        widths = width, width
    gated = {"": 0, "early": 2 * module.cells // 3 + 1, "every": module.cells}[module.squeeze]
    after_reduction = module.stem == "imagenet"
    for i, cell_type in enumerate(cell_types("darts", module.cells)):
        channels *= 2 if cell_type == "reduce" else 1
        narrower = 4 if channels == module.channels else 8
        kind = "ReductionCell" if cell_type == "reduce" else "NormalCell"
        squeeze = narrower if i < gated else 0
        steps.append(Step(f"cell{i}", kind, widths, channels, after_reduction, squeeze))
        concat = module.genotype.cells[cell_type][1]
        width = channels if module.output == "conv" else len(concat) * channels
        widths, after_reduction = (widths[1], width), cell_type == "reduce"
    return steps, widths[1]


def _residual_stages(module, image_channels):
    channels, length = module.channels, module.cells // STAGES
    steps = [Step("stem", "Stem", (image_channels,), channels)]
    for i in range(module.cells):
        if i and i % length == 0:
            name, channels = f"reduction{i // length}", 2 * channels
            steps.append(Step(name, "ResidualReduction", (channels // 2,), channels))
        steps.append(Step(f"cell{i}", "Cell", (), channels))
    steps.append(Step("last", "NormRelu", (channels,), channels))
    return steps, channels


def _cell(module, cell_type, kind, steps) -> Cell:
    genotype: Genotype = module.genotype
    nodes, concat = genotype.cells[cell_type]
    count, index, edges = genotype.inputs, 0, {}
    for number, node in enumerate(nodes, count):
        edges[number] = []
        for op, source in node:
            stride = 2 if cell_type == "reduce" and source < count else 1
            if op != "none":
                edges[number].append(Edge(f"edge{index}", op, source, stride))
            index += 1
    needed = set(concat)
    for number in reversed(edges):
        if number in needed:
            # Zeros take their shape from the first input.
            needed |= {edge.source for edge in edges[number]} or {0}
    return Cell(
        kind,
        count,
        tuple(number for number in range(count) if number in needed),
        {number: tuple(into) for number, into in edges.items() if number in needed},
        concat,
        cell_type == "reduce",
        module.output == "conv",
        frozenset(step.after_reduction for step in steps),
        frozenset(step.squeeze for step in steps),
    )
