"""Puts a network's source file together: the needed pieces of a template, and its own cells."""

import ast
from importlib import resources

from asap_jax.runs.written_out import flax_code, torch_code
from asap_jax.runs.written_out.code import listed, string
from asap_jax.runs.written_out.layout import layout

FRAMEWORKS = {"flax": flax_code, "torch": torch_code}
_WANTED = ("IMAGE", "load", "predict")  # for the user of the file


def written(network, framework: str) -> str:
    """The source of network_flax.py or network_torch.py for a trained network.

    Args:
      network: a `TrainedNetwork`.
      framework: "flax" or "torch".

    Raises:
      UserError: an operation of the network cannot be written out.
    """
    code, shape = FRAMEWORKS[framework], network.preparation.shape
    described = layout(network.module, shape[-1], code.OPERATIONS)
    constants = {
        "IMAGE": [str(size) for size in shape],
        "MEAN": [repr(float(value)) for value in network.mean],
        "STD": [repr(float(value)) for value in network.std],
        "CLASSES": [string(str(name)) for name in network.class_names],
    }
    template = (
        resources.files("asap_jax.runs.written_out").joinpath(f"network_{framework}.py").read_text()
    )
    pieces = _pieces(template)
    for name, items in constants.items():
        comments, _ = pieces[name].split(f"{name} = ")
        pieces[name] = comments + "\n".join(listed(f"{name} = (", items, ")", 0))
    classes = [code.cell_class(cell) for cell in described.cells.values()]
    classes.append(code.network_class(described))
    pieces["Network"] = "\n\n\n".join("\n".join(lines) for lines in classes)
    return _joined(pieces)


def _pieces(template) -> dict[str, str]:
    """{name: source} of the docstring, "", and of what the template defines, with its comments.

    Imports are pieces as well, named by what they bind.
    """
    lines, pieces, end = template.splitlines(), {}, None
    for node in ast.parse(template).body:
        begin = node.lineno if end is None else end + 1
        end = node.end_lineno
        pieces[_name(node)] = "\n".join(lines[begin - 1 : end]).strip("\n")
    return pieces


def _name(node) -> str:
    match node:
        case ast.Expr():
            return ""
        case ast.Import(names=[alias]) | ast.ImportFrom(names=[alias]):
            return alias.asname or alias.name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return node.name


def _joined(pieces) -> str:
    """The docstring and the pieces that its functions need, in order."""
    names = {name: _names(source) for name, source in pieces.items()}
    needed, found = {""}, set(_WANTED)
    while found:
        needed |= found
        found = {each for name in found for each in names[name] & pieces.keys()} - needed
    text, before = "", ""
    for name, source in pieces.items():
        if name in needed:
            kind = _kind(name, source)
            text += _GAPS.get((before, kind), "\n\n\n") * bool(text) + source
            before = kind
    return text + "\n"


def _names(source) -> set[str]:
    """The names that a piece refers to."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _kind(name, source) -> str:
    if not name:
        return "docstring"
    if source.startswith(("import ", "from ")):
        return "import"
    return "constant" if name.isupper() else "definition"


_GAPS = {
    ("docstring", "import"): "\n\n",
    ("import", "import"): "\n",
    ("import", "constant"): "\n\n",
    ("constant", "constant"): "\n",
}
