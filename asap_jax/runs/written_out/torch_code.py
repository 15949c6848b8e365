"""A network's cells as PyTorch modules, of the pieces in network_torch.py."""

import re

from asap_jax.runs.written_out.code import indented, joined, listed, summed
from asap_jax.runs.written_out.layout import Cell, Edge, Layout

OPERATIONS = {
    "none": "",
    "skip_connect": "FactorizedReduce(c, c)",  # that of stride 2
    "max_pool_3x3": "max_pool({stride})",
    "avg_pool_3x3": "avg_pool({stride})",
    "sep_conv_3x3": "SeparableConv(c, 3, {stride})",
    "sep_conv_5x5": "SeparableConv(c, 5, {stride})",
    "sep_conv_7x7": "SeparableConv(c, 7, {stride})",
    "dil_conv_3x3": "DilatedConv(c, 3, {stride})",
    "dil_conv_5x5": "DilatedConv(c, 5, {stride})",
    "conv_7x1_1x7": "FactorizedConv(c, {stride})",
    "nor_conv_1x1": "ReluConvNorm(c, c, 1, {stride})",
    "nor_conv_3x3": "ReluConvNorm(c, c, 3, {stride})",
}


def cell_class(cell: Cell) -> list[str]:
    """Lines of a class of cells."""
    made = [*_made_inputs(cell), *_made_edges(cell), *_made_output(cell)]
    if any(re.search(r"\bc\b", line) for line in made):
        made.insert(0, "c = channels")
    given = ["in_0", "in_1"] if cell.count == 2 else []
    given.append("channels")
    given += ["after_reduction=False"] * (cell.halves is None)
    given += ["squeeze_by=0"] * any(cell.squeeze)
    inputs = "s0, s1" if cell.count == 2 else "x0"
    return [
        f"class {cell.name}(nn.Module):",
        *indented([f'"""{cell.description}"""', ""]),
        *indented([f"def __init__(self, {', '.join(given)}):"]),
        *indented(["super().__init__()", *made], 2),
        "",
        *indented([f"def forward(self, {inputs}):"]),
        *indented([*_inputs(cell), *_nodes(cell), *_output(cell)], 2),
    ]


def network_class(layout: Layout) -> list[str]:
    """Lines of the class `Network`."""
    made, run = [], []
    for step in layout.steps:
        before, inputs = layout.flow(step)
        given = [*map(str, step.widths), *layout.arguments(step)]
        made += listed(f"self.{step.name} = {step.kind}(", given, ")")
        run.append(f"{before}self.{step.name}({', '.join(inputs)})")
    made.append(f"self.classifier = nn.Linear({layout.features}, len(CLASSES))")
    run.append(f"return self.classifier({layout.output}.mean((2, 3)))")
    return [
        "class Network(nn.Module):",
        *indented(['"""Normalized images [B, C, H, W] -> logits [B, classes]."""', ""]),
        *indented(["def __init__(self):", *indented(["super().__init__()", *made])]),
        "",
        *indented(["def forward(self, x):", *indented(run)]),
    ]


def _made_inputs(cell):
    if cell.count == 1:
        return []
    lines = []
    if 0 in cell.inputs:
        halved = ["self.preprocess0 = FactorizedReduce(in_0, c)"]
        kept = ["self.preprocess0 = ReluConvNorm(in_0, c)"]
        either = ["if after_reduction:", *indented(halved), "else:", *indented(kept)]
        lines += {True: halved, False: kept, None: either}[cell.halves]
    if 1 in cell.inputs:
        lines.append("self.preprocess1 = ReluConvNorm(in_1, c)")
    return lines


def _made_edges(cell):
    lines = []
    for edge in (edge for edges in cell.nodes.values() for edge in edges):
        if not _identity(edge):
            stride = "" if edge.stride == 1 else f"stride={edge.stride}"
            operation = OPERATIONS[edge.op].format(stride=stride).replace(", )", ")")
            lines.append(f"self.{edge.name} = {operation}")
    return lines


def _made_output(cell):
    width = f"{len(cell.concat)} * c" if len(cell.concat) > 1 else "c"
    lines = []
    if cell.convolved:
        lines.append(f"self.output = ReluConvNorm({width}, c)")
        width = "c"
    gate = f"SqueezeExcite({width}, squeeze_by)"
    if cell.gated is None:
        gate = f"{gate} if squeeze_by else nn.Identity()"
    return [*lines, *[f"self.squeeze = {gate}"] * any(cell.squeeze)]


def _inputs(cell):
    if cell.count == 1:
        return []
    return [f"x{number} = self.preprocess{number}(s{number})" for number in cell.inputs]


def _nodes(cell):
    lines = []
    for number, edges in cell.nodes.items():
        terms = [_term(edge) for edge in edges]
        halved = "torch.zeros_like(x0[:, :, ::2, ::2])"
        zeros = halved if cell.reduction else "torch.zeros_like(x0)"
        lines += summed(f"x{number}", terms or [zeros])
    return lines


def _term(edge: Edge) -> str:
    x = f"x{edge.source}"
    return x if _identity(edge) else f"self.{edge.name}({x})"


def _identity(edge: Edge) -> bool:
    return edge.op == "skip_connect" and edge.stride == 1


def _output(cell):
    before, value = joined([f"x{number}" for number in cell.concat], "torch.cat({}, dim=1)")
    if not (cell.convolved or any(cell.squeeze)):
        return [*before, f"return {value}"]
    lines = [*before, f"x = {value}"]
    if cell.convolved:
        lines.append("x = self.output(x)")
    if any(cell.squeeze):
        lines.append("x = self.squeeze(x)")
    return [*lines, "return x"]
