"""A network's cells as Flax modules, of the pieces in network_flax.py."""

import re

from asap_jax.runs.written_out.code import fits, indented, joined, summed
from asap_jax.runs.written_out.layout import Cell, Edge, Layout

OPERATIONS = {
    "none": "",
    "skip_connect": 'FactorizedReduce(c, name="{name}")({x}, train)',  # that of stride 2
    "max_pool_3x3": "max_pool({x}{stride})",
    "avg_pool_3x3": "avg_pool({x}{stride})",
    "sep_conv_3x3": 'SeparableConv(c, 3{stride}, name="{name}")({x}, train)',
    "sep_conv_5x5": 'SeparableConv(c, 5{stride}, name="{name}")({x}, train)',
    "sep_conv_7x7": 'SeparableConv(c, 7{stride}, name="{name}")({x}, train)',
    "dil_conv_3x3": 'DilatedConv(c, 3{stride}, name="{name}")({x}, train)',
    "dil_conv_5x5": 'DilatedConv(c, 5{stride}, name="{name}")({x}, train)',
    "conv_7x1_1x7": 'FactorizedConv(c{stride}, name="{name}")({x}, train)',
    "nor_conv_1x1": 'ReluConvNorm(c{stride}, name="{name}")({x}, train)',
    "nor_conv_3x3": 'ReluConvNorm(c, 3{stride}, name="{name}")({x}, train)',
}


def cell_class(cell: Cell) -> list[str]:
    """Lines of a class of cells."""
    body = [*_inputs(cell), *_nodes(cell), *_output(cell)]
    if any(re.search(r"\bc\b", line) for line in body):
        body.insert(0, "c = self.channels")
    fields = ["channels: int"]
    if cell.halves is None:
        fields.append("after_reduction: bool = False")
    if any(cell.squeeze):
        fields.append("squeeze_by: int = 0")
    inputs = "s0, s1" if cell.count == 2 else "x0"
    return [
        f"class {cell.name}(nn.Module):",
        *indented([f'"""{cell.description}"""', "", *fields, "", "@nn.compact"]),
        *indented([f"def __call__(self, {inputs}, train):", *indented(body)]),
    ]


def network_class(layout: Layout) -> list[str]:
    """Lines of the class `Network`."""
    body = []
    for step in layout.steps:
        before, inputs = layout.flow(step)
        given = ", ".join([*layout.arguments(step), f'name="{step.name}"'])
        made, run = f"{step.kind}({given})", f"({', '.join(inputs)}, train)"
        if fits(f"{before}{made}{run}"):
            body.append(f"{before}{made}{run}")
        else:
            body += [f"cell = {made}", f"{before}cell{run}"]
    features = f"{layout.output}.mean((1, 2))"
    body.append(f'return nn.Dense(len(CLASSES), name="classifier")({features})')
    return [
        "class Network(nn.Module):",
        *indented(['"""Normalized images [B, H, W, C] -> logits [B, classes]."""', ""]),
        *indented(["@nn.compact", "def __call__(self, x, train=False):", *indented(body)]),
    ]


def _inputs(cell):
    """Brings a cell's inputs to its width, the older one to the size of the newer as well."""
    if cell.count == 1:
        return []
    lines = []
    if 0 in cell.inputs:
        halved = ['x0 = FactorizedReduce(c, name="preprocess0")(s0, train)']
        kept = ['x0 = ReluConvNorm(c, name="preprocess0")(s0, train)']
        either = ["if self.after_reduction:", *indented(halved), "else:", *indented(kept)]
        lines += {True: halved, False: kept, None: either}[cell.halves]
    if 1 in cell.inputs:
        lines.append('x1 = ReluConvNorm(c, name="preprocess1")(s1, train)')
    return lines


def _nodes(cell):
    lines = []
    for number, edges in cell.nodes.items():
        terms = [_term(edge) for edge in edges]
        zeros = "jnp.zeros_like(x0[:, ::2, ::2])" if cell.reduction else "jnp.zeros_like(x0)"
        lines += summed(f"x{number}", terms or [zeros])
    return lines


def _term(edge: Edge) -> str:
    x = f"x{edge.source}"
    if edge.op == "skip_connect" and edge.stride == 1:
        return x
    stride = "" if edge.stride == 1 else f", stride={edge.stride}"
    return OPERATIONS[edge.op].format(name=edge.name, x=x, stride=stride)


def _output(cell):
    before, value = joined([f"x{number}" for number in cell.concat], "jnp.concatenate({}, axis=-1)")
    if not (cell.convolved or any(cell.squeeze)):
        return [*before, f"return {value}"]
    lines = [*before, f"x = {value}"]
    if cell.convolved:
        lines.append('x = ReluConvNorm(c, name="output")(x, train)')
    gate = ['x = SqueezeExcite(self.squeeze_by, name="squeeze")(x)']
    lines += {True: gate, None: ["if self.squeeze_by:", *indented(gate)], False: []}[cell.gated]
    return [*lines, "return x"]
