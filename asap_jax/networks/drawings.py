"""Draws derived cells with one lane per edge, which stays readable for any number of edges."""

import io

import matplotlib
from matplotlib.figure import Figure

_FAMILIES = (("sep", "#2f6fb3"), ("dil", "#7a4fa3"), ("pool", "#b3622f"), ("skip", "#5a8f3c"))
_OTHER = "#666666"
_TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}


def svg(genotype) -> str:
    """The drawing of `draw_cells` as an SVG element."""
    file = io.StringIO()
    draw_cells(genotype, [file])
    return file.getvalue()[file.getvalue().index("<svg") :]


def draw_cells(genotype, paths) -> None:
    """Draws the cells of a `Genotype` into each of `paths`: files by their ending, .svg or .png.

    An open text file gets SVG. Columns are the nodes in order: outputs of previous cells,
    intermediate nodes, the cell's output. Each lane below is one edge: an arrow from its source's
    column to its target's, labelled with the operation.
    """
    cells = genotype.cells
    lanes = [sum(map(len, nodes)) for nodes, _ in cells.values()]
    columns = max(len(nodes) for nodes, _ in cells.values()) + genotype.inputs + 1
    height = 0.34 * sum(lanes) + 1.7 * len(cells)
    figure = Figure(figsize=(1.7 * columns, height), layout="constrained")
    axes = figure.subplots(
        len(cells), 1, squeeze=False, height_ratios=[count + 3 for count in lanes]
    )
    for axis, (cell, (nodes, concat)) in zip(axes[:, 0], cells.items(), strict=True):
        _draw_cell(axis, _TITLES[cell], nodes, concat, genotype.inputs)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asap_jax"}):
        for path in paths:
            is_svg = hasattr(path, "write") or str(path).endswith(".svg")
            metadata = {"Date": None} if is_svg else None
            figure.savefig(path, format="svg" if is_svg else None, dpi=120, metadata=metadata)


def _draw_cell(axis, title, nodes, concat, inputs):
    output = len(nodes) + inputs
    before = [f"c(k-{inputs - i})" for i in range(inputs)]
    names = [*before, *(f"node {i}" for i in range(len(nodes))), "output"]
    lanes = [
        (source, target, op) for target, node in enumerate(nodes, inputs) for op, source in node
    ]
    bottom = len(lanes) + 1
    for column, name in enumerate(names):
        used = column < inputs or column == output or column in concat
        axis.plot([column, column], [0.4, bottom], color="#dddddd", lw=1, zorder=1)
        axis.text(
            column,
            0,
            name,
            ha="center",
            va="center",
            fontsize=10,
            bbox={
                "boxstyle": "round,pad=0.35",
                "fc": "white" if used else "#eeeeee",
                "ec": "#444444",
            },
        )
    for lane, (source, target, op) in enumerate(lanes, 1):
        color = next((c for family, c in _FAMILIES if family in op), _OTHER)
        _arrow(axis, source, target, lane, color)
        axis.text(
            (source + target) / 2,
            lane,
            op.replace("_", " "),
            ha="center",
            va="center",
            fontsize=9,
            color=color,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
            zorder=3,
        )
    for node in concat:
        _arrow(axis, node, output, bottom, "#bbbbbb")
    if len(concat) > 1:
        axis.text(output, bottom + 0.55, "concatenated", ha="center", fontsize=8, color="#888888")
    axis.set_title(title, loc="left", fontsize=12)
    axis.set_xlim(-0.6, output + 0.6)
    axis.set_ylim(bottom + 0.9, -0.7)
    axis.axis("off")


def _arrow(axis, source, target, lane, color):
    axis.plot(source, lane, "o", color=color, ms=4, zorder=2)
    axis.annotate(
        "",
        (target, lane),
        (source, lane),
        arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0},
        zorder=2,
    )
