"""Hooks of mkdocs: pages of files outside docs/, links to them, formulas without scripts.

The Markdown files are written for a reader of the repository: they link to its files, whatever
those are. In the site such a link leads to a page that shows the file; if the link's text is
`module.name`, to the line of that name. Formulas become MathML, which browsers draw by themselves.
"""

import ast
import html
import json
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

# Markdown files outside docs/ that are pages of their own: path in the repository -> in the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks/results.md",
    "benchmarks/NOTES.md": "benchmarks/notes.md",
}
LANGUAGES = {".py": "python", ".sh": "bash", ".cff": "yaml", ".yaml": "yaml", ".cfg": "ini"}
LINK = re.compile(r"(?P<before>\[[^\]]*\]\()(?P<target>[^)\s]+)(?P<after>\))")
NAMED = re.compile(r'(<a href="[^"#]*\bsource/([^"#]+\.py)\.html)("><code>[\w.]*?(\w+)</code>)')
FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2`* *$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
ELSEWHERE = re.compile(r'<(?:script|img|iframe)[^>]*\bsrc="?(?:https?:)?//|<link[^>]*//[^>]*style')

_paths: dict[str, str] = {}  # page in the site -> its file in the repository
_pages: dict[str, str] = {}  # the reverse


def on_files(files, config):
    """Adds a page for each file outside docs/ that a page links to, and for each that that does."""
    root = Path(config.config_file_path).parent
    _paths.clear()
    _paths.update({file.src_uri: f"docs/{file.src_uri}" for file in files})
    _paths.update({page: path for path, page in PAGES.items()})
    _pages.clear()
    _pages.update({path: page for page, path in _paths.items()})
    texts = {path: (root / path).read_text() for path in _pages if path.endswith(".md")}
    for path in PAGES:
        files.append(File.generated(config, PAGES[path], content=texts[path]))
    waiting = list(texts)
    while waiting:
        path = waiting.pop()
        for match in LINK.finditer(FENCED.sub("", texts[path])):
            target = _target(path, match["target"])
            if target and target not in _pages and (root / target).exists():
                page = f"source/{target}.md"
                _pages[target], _paths[page] = page, target
                texts[target] = _shown(root, target)
                files.append(File.generated(config, page, content=texts[target]))
                waiting.append(target)
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages."""
    here = page.file.src_uri

    def linked(match):
        target = _target(_paths[here], match["target"])
        if target not in _pages:
            return match[0]
        to = posixpath.relpath(_pages[target], posixpath.dirname(here) or ".")
        return f"{match['before']}{to}{''.join(match['target'].partition('#')[1:])}{match['after']}"

    parts, end = [], 0
    for fence in FENCED.finditer(markdown):
        parts += [LINK.sub(linked, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(linked, markdown[end:])])


def on_page_content(html_text, page, config, files):
    """Turns the formulas into MathML; links of names in modules lead to the line of the name."""
    root = Path(config.config_file_path).parent

    def formula(match):
        display = "block" if match[2] == "[" else "inline"
        drawn = convert(html.unescape(match[3]).strip(), display=display)
        if "\\" in drawn:  # a command that the converter does not know stays as it is
            raise PluginError(f"{page.file.src_uri}: not a formula for MathML: {match[3]}")
        return drawn

    def named(match):
        line = _line(root / match[2], match[4])
        return f"{match[1]}#__codelineno-0-{line}{match[3]}" if line else match[0]

    return NAMED.sub(named, FORMULA.sub(formula, html_text))


def on_post_page(output, page, config):
    """Refuses a page that needs another server."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} needs the network: {found[0]}")
    return output


def _target(path: str, link: str) -> str:
    """The file in the repository that a link in the file `path` names, or "" for no file."""
    name = link.partition("#")[0]
    if not name or re.match(r"[a-z]+:", name):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), name))


def _shown(root: Path, path: str) -> str:
    """The page of a file, or of a folder and what it holds."""
    head = f"---\nsearch: {{exclude: true}}\ntitle: {path}\n---\n\n# {path}\n\n"
    file = root / path
    if file.is_dir():
        return head + "\n\n".join(
            f"## {each.name}\n\n{_fenced(each)}" for each in sorted(file.iterdir())
        )
    if file.suffix == ".ipynb":
        cells = json.loads(file.read_text())["cells"]
        return head + "\n\n".join(map(_cell, cells))
    return head + _fenced(file)


def _cell(cell: dict) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        text = re.sub(r"^\[!\[.*\n", "", text, flags=re.MULTILINE)  # a badge is on another server
        return re.sub(r"^#", "##", text, flags=re.MULTILINE)
    return f"```python\n{text}\n```"


def _fenced(file: Path) -> str:
    text = file.read_text().rstrip()
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
    ticks = max(ticks, "```", key=len)
    return f"{ticks}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{ticks}"


def _line(file: Path, name: str) -> int | None:
    """The line of a module that defines a name, from 1."""
    for node in ast.parse(file.read_text()).body:
        names = [node.name] if hasattr(node, "name") else []
        if isinstance(node, ast.Assign):
            names = [each.id for each in node.targets if isinstance(each, ast.Name)]
        if name in names:
            return node.lineno
    return None
