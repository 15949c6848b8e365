"""Lines of source code that `ruff format` leaves as they are, at its default width and wider.

A line that would be too long is broken where a trailing comma keeps it broken.
"""

import json
from collections.abc import Iterable, Sequence

WIDTH = 88
INDENT = "    "


def fits(line: str, indents: int = 2) -> bool:
    """Whether a line, indented that often, is short enough; 2 is the body of a method."""
    return len(line) + len(INDENT) * indents <= WIDTH


def summed(target: str, terms: Sequence[str]) -> list[str]:
    """Statements of a method that assign a sum, several where one line does not hold it."""
    lines, line = [], f"{target} = {terms[0]}"
    for term in terms[1:]:
        longer = f"{line} + {term}"
        if not fits(longer):
            lines.append(line)
            longer = f"{target} = {target} + {term}"
        line = longer
    return [*lines, line]


def listed(before: str, items: Sequence[str], after: str, indents: int = 2) -> list[str]:
    """`before`, the items with commas, `after`; an item a line where one line does not hold it.

    `before` ends with the opening bracket, `after` begins with the closing one.
    """
    comma = "," if len(items) == 1 and before.endswith(" (") else ""  # a tuple of one
    line = f"{before}{', '.join(items)}{comma}{after}"
    if fits(line, indents):
        return [line]
    return [before, *(f"{INDENT}{item}," for item in items), after]


def joined(nodes: Sequence[str], call: str) -> tuple[list[str], str]:
    """(statements before, expression) that join nodes along their channels.

    `call` is the call with {} for the list: "torch.cat({}, dim=1)". A single node is its own
    expression; a list that no line holds is assigned first.
    """
    lines = listed("nodes = [", nodes, "]")
    if len(nodes) == 1:
        return [], nodes[0]
    if len(lines) > 1:
        return lines, call.format("nodes")
    return [], call.format(f"[{', '.join(nodes)}]")


def indented(lines: Iterable[str], indents: int = 1) -> list[str]:
    """Lines moved to the right, but not empty ones."""
    return [INDENT * indents + line if line else line for line in lines]


def string(text: str) -> str:
    """A string literal: in double quotes, unless single ones need fewer escapes."""
    double = json.dumps(text, ensure_ascii=False)
    if text.count('"') <= text.count("'"):
        return double
    return "'" + double[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
