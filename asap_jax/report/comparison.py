"""Writes one self-contained offline page that compares runs of several cases and seeds."""

import html
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import quote

from asap_jax.host import workdir
from asap_jax.report import charts, page

# Keys that name the run, not what it compares.
_OF_THE_RUN = ("seed", "mode", "data.dir", "data.workers", "check_memory")


class Run(NamedTuple):
    """A finished run.

    seed: its seed.
    value: what is compared.
    folder: its workdir.
    """

    seed: int
    value: float
    folder: Path


def write(
    path: Path,
    title: str,
    measure: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    cases: Mapping[str, Sequence[Run]],
    figures: Mapping[str, tuple[str, charts.Names, str]] = MappingProxyType({}),
) -> Path:
    """Writes the page and returns its path.

    Args:
      path: of the page; links to the runs' own pages are relative to its folder.
      title: of the page.
      measure: what `Run.value` is, with its unit.
      header, rows: the table, as plain text.
      cases: {name: its runs}; the first is the one that the others' configs are compared with.
      figures: {title: (SVG, names of its series and their numbers, caption)}.

    Raises:
      UserError: the page cannot be written, or a run's config.json cannot be read.
    """
    sections = [
        ("Table", f"<div class='wide' tabindex='0'>{html_table(header, rows)}</div>"),
        ("Each seed", _seeds(path.parent, measure, cases)),
        ("Figures", _figures(figures)),
        ("Differences of the configs", _differences(cases)),
    ]
    return page.save(path, page.assemble(title, sections))


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as one HTML element."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in rows
    )
    return f"<table class='compared'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cells(markdown: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a Markdown table, as plain text."""
    header, _, *rows = (
        [cell.replace("`", "").strip() for cell in line.strip("|").split(" | ")]
        for line in markdown.splitlines()
    )
    return header, rows


def _figures(figures) -> str:
    parts = []
    for title, (picture, names, caption) in figures.items():
        legend = charts.legend(names) if names else ""
        parts.append(
            f"<figure>{picture}<figcaption><b>{html.escape(title)}</b><br>{html.escape(caption)}"
            f"</figcaption>{legend}</figure>"
        )
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _seeds(folder, measure, cases) -> str:
    values = [run.value for runs in cases.values() for run in runs]
    low, high = min(values), max(values)
    rows = []
    for name, runs in cases.items():
        each = [run.value for run in runs]
        text = f"{statistics.fmean(each):.2f}"
        if len(each) > 1:
            text += f" ± {statistics.stdev(each):.2f}"
        strip = charts.dot_strip(f"{name}: {text}", each, low, high)
        links = " · ".join(_link(folder, run) for run in runs)
        rows.append(
            f"<div><b>{html.escape(name)}</b>{strip}<span>{text}</span><small>{links}</small></div>"
        )
    note = (
        f"{measure}: a dot is one seed, from {low:.2f} at the left to {high:.2f} at the right; the "
        "line is the mean, the band one sample deviation to each side. The seeds link to the pages "
        "of their runs."
    )
    return f"<p class='note'>{html.escape(note)}</p><div class='seeds'>{''.join(rows)}</div>"


def _link(folder, run) -> str:
    text = f"{run.seed}: {run.value:.2f}"
    if not (run.folder / "report.html").exists():
        return text
    target = Path(os.path.relpath(run.folder, folder), "report.html").as_posix()
    return f'<a href="{quote(target)}">{text}</a>'


def _differences(cases) -> str:
    """What each case's config has other than the first one's, by the runs of their first seeds."""
    configs = {
        name: workdir.read_config(runs[0].folder)
        for name, runs in cases.items()
        if (runs[0].folder / "config.json").exists()
    }
    if len(configs) < 2:
        return ""
    (first, usual), *others = configs.items()
    items = []
    for name, config in others:
        changed = [
            f"<li><code>{html.escape(key)}</code>: {html.escape(f'{new!r} (there {old!r})')}</li>"
            for key, old, new in workdir.differences(usual, config)
            if key not in _OF_THE_RUN
        ]
        what = f"<ul>{''.join(changed)}</ul>" if changed else " none"
        items.append(
            f"<details><summary>{html.escape(name)}: {len(changed)}</summary>{what}</details>"
        )
    note = f"Each case's config beside that of {first}, at the first seed."
    return f"<p class='note'>{html.escape(note)}</p>{''.join(items)}"
