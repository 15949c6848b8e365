"""The code in the project's Markdown: blocks, and code within a line."""

from itertools import pairwise
from typing import NamedTuple

from command import ROOT
from markdown_it import MarkdownIt

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")


class Snippet(NamedTuple):
    """page: path in the repository. line: from 1. language: of the fence, "" without."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    docs = sorted((ROOT / "docs").glob("*.md"))
    return [*PAGES, *(path.relative_to(ROOT).as_posix() for path in docs)]


def _tokens(page):
    return MarkdownIt().enable("table").parse((ROOT / page).read_text())


def blocks() -> list[Snippet]:
    """Fenced and indented blocks."""
    return [
        Snippet(page, token.map[0] + 1, token.info, token.content)
        for page in pages()
        for token in _tokens(page)
        if token.type in ("fence", "code_block")
    ]


def inline() -> list[Snippet]:
    """Code within a line; not the text of a link, see `links`."""
    return [
        Snippet(page, token.map[0] + 1, "", child.content)
        for page in pages()
        for token in _tokens(page)
        for before, child in pairwise([None, *(token.children or ())])
        if child.type == "code_inline" and not (before and before.type == "link_open")
    ]


def links() -> list[tuple[Snippet, str]]:
    """(the link's text, its target)."""
    found = []
    for page in pages():
        for token in _tokens(page):
            children = token.children or []
            for i, child in enumerate(children):
                if child.type == "link_open":
                    text = Snippet(page, token.map[0] + 1, "", children[i + 1].content)
                    found.append((text, child.attrs["href"]))
                elif child.type == "image":
                    found.append((Snippet(page, token.map[0] + 1, "", ""), child.attrs["src"]))
    return found
