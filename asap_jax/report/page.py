"""Writes report.html: one self-contained offline page about the run in a workdir.

Everything on the page is read from the workdir, so it can be rebuilt at any time, including while
the run is in progress or without its data. What only the run has access to, sample images and the
network's mistakes, is saved to the folder `report` by `keep_samples` and `keep_mistakes`.
"""

import base64
import html
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from asap_jax.configs import presets
from asap_jax.data.augment import augment
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.host.timing import duration
from asap_jax.networks.spaces import SPACES
from asap_jax.report import charts, pictures
from asap_jax.searching import certainty
from asap_jax.searching.stages import make_space

SAMPLES, MISTAKES = 24, 12
_CELLS = {"normal": "Normal cell", "reduce": "Reduction cell"}
LARGEST_CONFUSION = 30  # maximum number of classes for showing the confusion matrix


def keep_samples(folder: Path, images, labels, augmentation, class_names) -> None:
    """Saves training images to the workdir, as the network sees them after augmentation.

    Args:
      images, labels: [N, H, W, C] uint8 and [N]; each image is augmented once.
      augmentation: `data.augment.Augmentation` used in training.
    """
    seen = augment(jax.numpy.asarray(images), augmentation, jax.random.key(0))
    seen = pictures.uint8_of(seen, augmentation.mean, augmentation.std)
    captions = [{"label": class_names[label]} for label in labels]
    _keep(folder, "samples", seen, captions)


def keep_mistakes(folder: Path, images, labels, probabilities, class_names) -> None:
    """Saves the worst misclassified test images to the workdir.

    Args:
      images, labels: [N, H, W, C] uint8 and [N].
      probabilities: [N, K].
    """
    chosen = pictures.most_wrong(probabilities, labels, MISTAKES)
    captions = [
        {
            "label": class_names[labels[i]],
            "taken_for": class_names[int(np.argmax(probabilities[i]))],
            "probability": round(float(np.max(probabilities[i])), 4),
        }
        for i in chosen
    ]
    _keep(folder, "mistakes", np.asarray(images)[chosen], captions)


def keep_command(folder: Path, arguments: Sequence[str]) -> None:
    """Appends the shell command to those that made the workdir, unless already listed."""
    text, path = shlex.join(["python", "-m", "asap_jax.main", *arguments]), folder / "command.txt"
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    text = text.encode("utf-8", "backslashreplace").decode()  # for file names that are not UTF-8
    if text not in before:
        path.write_text("\n".join([*before, text]) + "\n", encoding="utf-8")


def _keep(folder, name, images, captions):
    entries = [
        {**each, "png": base64.b64encode(pictures.png(image)).decode()}
        for image, each in zip(images, captions, strict=True)
    ]
    workdir.write_json(Path(folder) / "report" / f"{name}.json", {"images": entries})


def write(folder: str | Path) -> Path:
    """Writes FOLDER/report.html atomically and returns its path.

    Raises:
      UserError: the folder is not a run's workdir, or is not writable.
    """
    folder = workdir.locate(folder)
    return save(folder / "report.html", render(folder))


def save(path: Path, text: str) -> Path:
    """Writes a page atomically and returns its path; UserError if that fails."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    return path


def render(folder: Path) -> str:
    """The page's HTML."""
    config = workdir.read_config(folder)
    results, search = _json(folder / "results.json"), _json(folder / "search.json")
    searched = (folder / "genotype.json").exists()
    records = _lines(folder / "metrics.jsonl")
    sections = [
        ("Result", _summary(config, results, search, records, searched)),
        ("Cells", _cells(folder)),
        ("How the edges were decided", _edges(config, _lines(folder / "weights.jsonl"))),
        ("Search", _search(records)),
        ("Training", _training(records)),
        ("Images as the network sees them", _images(folder, "samples")),
        ("Confusion", _confusion(results)),
        ("What it got most wrong", _images(folder, "mistakes")),
        ("Warnings", _warnings(folder)),
        ("Reproduce", _reproduce(folder, config, results)),
    ]
    return assemble(folder.resolve().name, sections)


def assemble(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page's HTML from its (heading, HTML) sections; those without content are left out."""
    sections = [(heading, body) for heading, body in sections if body]
    anchors = {heading: heading.lower().replace(" ", "-") for heading, _ in sections}
    navigation = "".join(f'<a href="#{anchors[h]}">{html.escape(h)}</a>' for h, _ in sections)
    body = "".join(
        f'<section id="{anchors[heading]}"><h2>{html.escape(heading)}</h2>{inside}</section>'
        for heading, inside in sections
    )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return _PAGE.format(title=html.escape(title), style=style, navigation=navigation, body=body)


def _json(path) -> dict:
    return workdir.read_json(path) if path.exists() else {}


def _lines(path) -> list[dict]:
    """The records of a file that may still be written to; an incomplete last line is skipped."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _percent(value) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _summary(config, results, search, records, searched) -> str:
    tiles = [("data", config["data"]["source"])]
    if results:
        part, name = ("test", "test") if "test_accuracy" in results else ("val", "validation")
        accuracy = _percent(results[f"{part}_accuracy"])
        if f"{part}_accuracy_deviation" in results:
            accuracy += f" ± {100 * results[f'{part}_accuracy_deviation']:.2f}"
        tiles += [
            (f"{name} accuracy", accuracy),
            ("parameters", f"{results['parameters']:,}"),
            ("multiply-adds", f"{results['multiply_adds']:,}"),
            *_speed(results.get("latency")),
            ("search", duration(results["search_seconds"])),
            ("training", duration(results["train_seconds"])),
            ("device", results["device"]),
            ("precision", ", ".join(sorted(set(results["precision"].values())))),
        ]
        tiles += certainty.rows(search.get("certainty", {}))
        gap = results.get("gap", {}).get(config["search"]["edges"])
        if gap:
            tiles.append(("gap supernet to derived", f"{100 * gap['gap']:+.2f} points"))
        if "selected" in results:
            chosen = results["selected"]
            which = f"seed {chosen['seed']} of {chosen['searches']}"
            tiles.append(("chosen search", f"{which}, {_percent(chosen['val_accuracy'])}"))
    elif searched and all(record["phase"] == "search" for record in records):
        tiles.append(("the search", "is done; nothing is trained yet"))
        tiles += certainty.rows(search.get("certainty", {}))
    elif records:
        last = records[-1]
        tiles.append(("under way", f"{last['phase']} {last['run']}, epoch {last['epoch']}"))
    else:
        tiles.append(("under way", "no epoch is done yet"))
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
            for name, value in tiles
        )
        + "</dl>"
    )


def _speed(latency) -> list[tuple[str, str]]:
    if not latency:
        return []
    batch = f"batch of {latency['batch']} in {1000 * latency['seconds']:.3g} ms"
    return [("images per second", f"{latency['images_per_second']:,.0f} ({batch})")]


def _cells(folder) -> str:
    path = folder / "cells.svg"
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    drawing = text[text.index("<svg") :]  # without the XML declaration
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return f'<div class="paper wide" tabindex="0">{drawing}</div>'


def _edges(config, records) -> str:
    """One small chart per edge: the weight of each candidate over the epochs."""
    if not records:
        return ""
    whole = presets.get_config()
    presets.update(whole, config)
    if whole.search.space not in SPACES:
        name = html.escape(repr(whole.search.space))
        return f'<p class="note">The space {name} is not known here, nor are its edges.</p>'
    space = make_space(whole.search)
    parts = [charts.legend(space.candidates)]
    for (run, stage), group in _by_run(records).items():
        for cell in group[0]["weights"]:
            history = np.asarray([record["weights"][cell] for record in group])  # [epochs, E, O]
            pruned = _prunings(group, cell, history)
            left = _left(group, history, pruned)
            if history.shape[1:] != space.shape:
                continue
            heading = _CELLS[cell] + _of_run(run, stage, records)
            figures = [
                _edge(space, e, history[:, e], left[:, e], group[0]["epoch"], pruned.get(e, []))
                for e in range(space.shape[0])
            ]
            parts.append(f'<h3>{heading}</h3><div class="edges">{"".join(figures)}</div>')
    note = (
        "Each chart is one edge, from its source to its target; a line is the weight of a "
        "candidate at the end of each epoch. The vertical line marks the epoch after which one "
        "candidate was left. Under each edge unfolds what was pruned from it, first to last."
    )
    return f'<p class="note">{note}</p>' + "".join(parts)


def _prunings(group, cell, history) -> dict[int, list[tuple[int, int | None, int]]]:
    """{edge: [(epoch, step in the epoch, candidate)]} of a cell type, first to last.

    Runs of older versions noted no prunings: there, a candidate is taken as pruned, at no known
    step, when its weight becomes 0.
    """
    found = {}
    if any("pruned" in record for record in group):
        for record in group:
            for step, name, edge, candidate in record.get("pruned", []):
                if name == cell:
                    found.setdefault(edge, []).append((record["epoch"], step, candidate))
        return found
    for i, edge, candidate in np.argwhere((history[:-1] != 0) & (history[1:] == 0)).tolist():
        found.setdefault(edge, []).append((group[i + 1]["epoch"], None, candidate))
    return found


def _left(group, history, pruned) -> np.ndarray:
    """[epochs, E], the candidates left on each edge at the end of each epoch."""
    left = (history != 0).sum(2)
    if not any("pruned" in record for record in group):
        return left
    for edge, each in pruned.items():
        start = {*np.flatnonzero(history[0, edge]), *(candidate for *_, candidate in each)}
        for i, record in enumerate(group):
            left[i, edge] = len(start) - sum(epoch <= record["epoch"] for epoch, *_ in each)
    kept = [edge for edge in range(left.shape[1]) if edge not in pruned]
    left[:, kept] = left[0, kept]  # a weight that was rounded to 0 is no pruning
    return left


def _edge(space, edge, history, left, start, pruned) -> str:
    source, target = (_node(space, node) for node in space.edges[edge])
    best, ranked = int(history[-1].argmax()), np.sort(history[-1])[::-1]
    decided = [start + i for i in range(len(left)) if left[i] == 1][:1]
    series = {
        name: [weight or None for weight in history[:, o].tolist()]
        for o, name in enumerate(space.candidates)
    }
    chart = charts.line_chart(
        f"edge from {source} to {target}: weights of the candidates over the epochs",
        series,
        start=start,
        width=180,
        height=70,
        low=min(0, history.min()),
        high=max(1, history.max()),
        axes=False,
        marks=decided,
    )
    when = f"{left[-1]} left, ahead by {float(np.subtract(*ranked[:2])):.2f}"
    if decided or len(ranked) == 1:
        when = f"decided after epoch {(decided or [start])[0]}"
        if decided and pruned and pruned[-1][1] is not None:
            when = "decided in " + _at(*pruned[-1][:2])
    swatch = f'<span class="swatch" style="background:{charts.colour(best)}"></span>'
    return (
        f"<figure>{chart}<figcaption><b>{source} → {target}</b><br>{swatch}"
        f"{html.escape(space.candidates[best])}<br><small>{when}</small></figcaption>"
        f"{_order_of(space, pruned)}</figure>"
    )


def _order_of(space, pruned) -> str:
    """The prunings of an edge as a list that unfolds."""
    items = "".join(
        f"<li>{html.escape(space.candidates[candidate])}, {_at(epoch, step)}</li>"
        for epoch, step, candidate in pruned
    )
    listing = f"<details><summary>{len(pruned)} pruned</summary><ol>{items}</ol></details>"
    return listing if pruned else ""


def _at(epoch, step) -> str:
    return f"epoch {epoch}" + ("" if step is None else f", step {step}")


def _node(space, node) -> str:
    """The node's name, as in the drawing of the cells."""
    return f"c(k-{space.inputs - node})" if node < space.inputs else f"node {node - space.inputs}"


def _by_run(records) -> dict:
    groups = {}
    for record in records:
        groups.setdefault((record["run"], record.get("stage", 0)), []).append(record)
    return groups


def _of_run(run, stage, records) -> str:
    place = ""
    if len({record["run"] for record in records}) > 1:
        place += f", search {run}"
    if any("stage" in record for record in records):
        place += f", stage {stage + 1}"
    return place


_SEARCH_CHARTS = (
    ("loss", (("train_loss", "omega's half"), ("val_loss", "the alphas' half"))),
    (
        "accuracy on the alphas' half",
        (
            ("val_accuracy", "running statistics"),
            ("supernet_accuracy", "batch statistics"),
            ("derived_accuracy", "derived cells alone"),
        ),
    ),
    ("candidates left", (("candidates_left", "candidates"),)),
    ("entropy of the mixtures", (("entropy_normal", "normal"), ("entropy_reduce", "reduction"))),
    ("temperature", (("temperature", "T"),)),
    ("threshold", (("threshold", "theta"),)),
    (
        "skip connections of the derived cells",
        (("skips_normal", "normal"), ("skips_reduce", "reduction")),
    ),
    ("dominant eigenvalue of the alphas' Hessian", (("eigenvalue", "eigenvalue"),)),
    ("seconds an epoch", (("seconds", "seconds"),)),
)
_TRAIN_CHARTS = (
    ("training loss", (("train_loss", "loss"),)),
    ("training accuracy", (("train_accuracy", "accuracy"),)),
    ("seconds an epoch", (("seconds", "seconds"),)),
)


def _search(records) -> str:
    records = [record for record in records if record["phase"] == "search"]
    return _charts(records, _SEARCH_CHARTS, "search")


def _training(records) -> str:
    records = [record for record in records if record["phase"] == "train"]
    return _charts(records, _TRAIN_CHARTS, "training")


def _charts(records, wanted, what) -> str:
    parts = []
    for (run, stage), group in _by_run(records).items():
        figures = []
        for title, keys in wanted:
            series = {name: [record.get(key) for record in group] for key, name in keys}
            series = {name: v for name, v in series.items() if any(x is not None for x in v)}
            if not series:
                continue
            chart = charts.line_chart(f"{title} over the epochs", series, start=group[0]["epoch"])
            legend = charts.legend(list(series)) if len(series) > 1 else ""
            figures.append(f"<figure>{chart}<figcaption>{title}</figcaption>{legend}</figure>")
        heading = _of_run(run, stage, records).lstrip(", ")
        if what == "training" and len({record["run"] for record in records}) > 1:
            heading = f"seed {run}"
        heading = f"<h3>{heading}</h3>" if heading else ""
        parts.append(f'{heading}<div class="charts">{"".join(figures)}</div>')
    if not parts:
        return ""
    return "".join(parts) + _numbers(records)


def _numbers(records) -> str:
    plain = [(k, v) for record in records for k, v in record.items()]
    keys = list(dict.fromkeys(k for k, v in plain if not isinstance(v, dict | list)))
    head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(record.get(key))}</td>" for key in keys) + "</tr>"
        for record in records
    )
    return (
        "<details><summary>The numbers</summary><div class='wide' tabindex='0'><table><thead><tr>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else html.escape(str(value))


def _images(folder, name) -> str:
    entries = _json(folder / "report" / f"{name}.json").get("images", [])
    figures = []
    for entry in entries:
        label = html.escape(entry["label"])
        caption = label
        if "taken_for" in entry:
            taken = html.escape(entry["taken_for"])
            caption = f"{label}<br><small>as {taken}, {_percent(entry['probability'])}</small>"
        figures.append(
            f'<figure><img alt="{label}" src="data:image/png;base64,{entry["png"]}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="images">{"".join(figures)}</div>' if figures else ""


def _confusion(results) -> str:
    names = list(results.get("class_accuracy", {}))
    if not names:
        return ""
    classes = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{_percent(value)}</td></tr>"
        for name, value in results["class_accuracy"].items()
    )
    each = (
        "<details><summary>Accuracy of each class</summary>"
        f"<table><tbody>{classes}</tbody></table></details>"
    )
    matrix = np.asarray(results.get("confusion", []))
    if not len(matrix) or len(names) > LARGEST_CONFUSION:
        return each
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(
            f'<td class="{"right" if i == j else "wrong"}" style="--share:{shares[i, j]:.3f}">'
            f"{matrix[i, j] or ''}</td>"
            for j in range(len(names))
        )
        + "</tr>"
        for i, name in enumerate(names)
    )
    return (
        "<p class='note'>Rows are the images' own classes, columns what the network takes them for."
        "</p><div class='wide' tabindex='0'><table class='confusion'><thead><tr><th></th>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>{each}"
    )


def _warnings(folder) -> str:
    path = folder / "warnings.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul class='warnings'>{items}</ul>" if items else ""


def _reproduce(folder, config, results) -> str:
    parts = []
    path = folder / "command.txt"
    if path.exists():
        command = path.read_text(encoding="utf-8").strip()
        parts.append(f"<pre class='wide' tabindex='0'>{html.escape(command)}</pre>")
    load = f"network = asap_jax.load({str(folder.resolve())!r})"
    parts.append(f"<pre class='wide' tabindex='0'>import asap_jax\n{html.escape(load)}</pre>")
    if results:
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        parts.append(f"<p class='note'>{html.escape(versions)}</p>")
    text = html.escape(json.dumps(config, indent=2))
    parts.append(
        f"<details><summary>config.json</summary><pre class='wide' tabindex='0'>{text}</pre>"
        "</details>"
    )
    return "".join(parts)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - asap_jax</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><nav aria-label="Sections">{navigation}</nav></header>
<main>{body}</main>
</body>
</html>
"""
