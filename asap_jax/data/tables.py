"""CSV files as a source: one line per image, with its path, label and optionally its split."""

import csv
import functools
import io
import os
from pathlib import Path
from typing import NamedTuple

from asap_jax.data import layouts
from asap_jax.data.opened import Choices, Grouping, Source, Split, files_split
from asap_jax.host.errors import UserError

_DELIMITERS = (",", ";", "\t", "|")
# Common column names, lower case without punctuation; the first one present is used.
_NAMES = {
    "path": (
        "path paths filepath filepaths imagepath imgpath file files filename filenames imagefile "
        "imagefilename imagename imgname image images img imageid imgid id"
    ).split(),
    "label": (
        "label labels classname labelname class classes category target species classid labelid"
    ).split(),
    "split": "split set subset partition dataset usage".split(),
}


class _Row(NamedTuple):
    """line: in the file, for messages. label, split, group: "" if missing."""

    line: int
    path: str
    label: str
    split: str
    group: str


class _Table(NamedTuple):
    """place: the file. base: root of the paths. columns: names by use. rows: one `_Row` each."""

    place: Path
    base: Path
    columns: dict[str, str]
    rows: list[_Row]

    @property
    def note(self) -> str:
        uses = ", ".join(f"{use} {name!r}" for use, name in self.columns.items())
        return f"{self.place.name} is read by its columns: {uses}"


def table(place: Path, choices: Choices = Choices()) -> Source:
    """Opens a CSV file (or one with semicolons, tabs or bars) of image paths and labels.

    Args:
      place: the file. Its paths are relative to its folder.
      choices: `images`, another folder that paths are relative to; `path_column`, `label_column`,
        `split_column`; `group`, a column or a pattern on the paths; `test`, a second such file.
    """
    if not place.is_file():
        raise UserError(f"there is no file {place}: csv:PATH names a list of images and labels")
    read = _read(place, choices)
    parts: dict[str, list[_Row]] = {}
    for row in read.rows:
        name = "train"
        if "split" in read.columns:
            name = layouts.role(row.split)
            if name is None:
                raise UserError(
                    f"{place}, line {row.line}: the column {read.columns['split']!r} says "
                    f"{row.split!r}, expected train, test or val (or training, validation, ...); "
                    "--config.data.split_column names another column"
                )
        parts.setdefault(name, []).append(row)
    notes = [read.note]
    for name in [name for name in parts if name != "train"]:
        if not any(row.label for row in parts[name]):
            notes.append(f"the {name} images of {place.name} have no labels: they are not used")
            del parts[name]
    class_names = _class_names(parts.get("train") or [row for p in parts.values() for row in p])
    grouping = Grouping()
    seen: dict[str, str] = {}
    splits = {
        name: _split(read, rows, class_names, choices, grouping, seen)
        for name, rows in parts.items()
    }
    if choices.test:
        if "test" in splits:
            raise UserError(
                f"{place} lists test images itself, and config.data.test names others: leave "
                "one out"
            )
        other = place.parent / Path(choices.test).expanduser()
        splits["test"], more = test(other, choices, class_names, grouping, seen)
        notes += more
    return Source(splits, class_names, notes=tuple(notes))


def test(
    place: Path,
    choices: Choices,
    class_names,
    grouping: Grouping,
    seen: dict[str, str] | None = None,
) -> tuple[Split, list[str]]:
    """(the test images listed by a second CSV file, notes).

    `seen`: {path: where it is listed} of the images listed elsewhere.
    """
    if not place.is_file():
        raise UserError(
            f"config.data.test is {choices.test!r}, but there is no file {place}: name a CSV file "
            "of test images"
        )
    read = _read(place, choices._replace(split_column=""))
    seen = {} if seen is None else seen
    return _split(read, read.rows, class_names, choices, grouping, seen), [read.note]


def class_number(label: str, numbers: dict[str, int]) -> int | None:
    """The class number of a label ("7" also matches 00007); None if there is no such class."""
    if label in numbers or not label.isdecimal():
        return numbers.get(label)
    alike = [n for name, n in numbers.items() if name.isdecimal() and int(name) == int(label)]
    return alike[0] if len(alike) == 1 else None


def _read(place, choices) -> _Table:
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place} cannot be read ({error}): save it as text, in UTF-8") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first.count)
    if delimiter not in first:
        raise UserError(
            f"{place} has one column only in its first line ({first[:80]!r}): a list of images has "
            "a path and a label in each line, with a comma, a semicolon or a tab between"
        )
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{place}, line {reader.line_num}: {error}") from error
    header = rows[0][1]
    known = layouts.endings()
    if any(Path(cell).suffix.lower() in known for cell in header):  # an image: there is no header
        header = [str(number) for number in range(1, len(header) + 1)]
    else:
        rows = rows[1:]
    if not rows:
        raise UserError(f"{place} lists no image: below the header there is no line")
    base = place.parent / Path(choices.images).expanduser()
    if not base.is_dir():
        raise UserError(f"config.data.images is {choices.images!r}, but there is no folder {base}")
    columns = _columns(place, _Finder(base), header, rows[0][1], choices)
    if choices.group and choices.group in header:
        columns["group"] = choices.group
    at = {use: header.index(name) for use, name in columns.items()}
    made = []
    for line, cells in rows:
        if len(cells) < len(header):
            raise UserError(
                f"{place}, line {line} has {len(cells)} columns, but the header has {len(header)}: "
                "mend the line, or put what holds the sign between columns into quotes"
            )
        cell = {use: cells[number] for use, number in at.items()}
        made.append(_Row(line, *(cell.get(use, "") for use in ("path", "label", "split", "group"))))
    return _Table(place, base, columns, made)


def _columns(place, finder, header, cells, choices) -> dict[str, str]:
    """The columns' names by use: those requested, else those recognized by name."""
    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in header]
    columns = {}
    for use, names in _NAMES.items():
        asked = getattr(choices, f"{use}_column")
        if asked:
            columns[use] = _asked(place, header, use, asked)
            continue
        found = [header[plain.index(name)] for name in names if name in plain]
        if use == "path":
            there = [name for name in found if finder.find(cells[header.index(name)])]
            found = there or found
        if found:
            columns[use] = found[0]
    if header[0] == "1" and "path" not in columns:  # no header: find the path by its extension
        known = layouts.endings()
        columns["path"] = next(
            n for n, c in zip(header, cells, strict=False) if Path(c).suffix.lower() in known
        )
    if len(header) == 2 and len(columns) == 1 and (columns.keys() & {"path", "label"}):
        (use,) = columns.keys() & {"path", "label"}
        other = {"path": "label", "label": "path"}[use]
        columns[other] = next(name for name in header if name != columns[use])
    for use in ("path", "label"):
        if use not in columns:
            raise UserError(
                f"{place} has the columns {_told(header)}, of which none is called as the "
                f"{use} is ({', '.join(_NAMES[use][:4])}, ...): name it with "
                f"--config.data.{use}_column=COLUMN"
            )
    return columns


def _asked(place, header, use, asked) -> str:
    if asked in header:
        return asked
    if asked.isdecimal() and 1 <= int(asked) <= len(header):
        return header[int(asked) - 1]
    raise UserError(
        f"config.data.{use}_column is {asked!r}, but {place} has the columns {_told(header)}: "
        f"name one of them, or its number, 1 to {len(header)}"
    )


def _told(header) -> str:
    """The first columns' names."""
    more = f", and {len(header) - 12} more" if len(header) > 12 else ""
    return ", ".join(header[:12]) + more


def _class_names(rows) -> tuple[str, ...]:
    """The sorted labels: numerically if all are numbers, else alphabetically."""
    labels = {row.label for row in rows if row.label}
    if labels and all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _split(read, rows, class_names, choices, grouping, seen) -> Split:
    """Builds a split and adds its images to `seen`, {path: where it is listed}."""
    place, base, finder = read.place, read.base, _Finder(read.base)
    numbers = {name: number for number, name in enumerate(class_names)}
    number_of = functools.cache(lambda label: class_number(label, numbers))
    files, labels, gone = [], [], []
    for row in rows:
        if not row.label:
            raise UserError(f"{place}, line {row.line}: {row.path} has no label")
        label = number_of(row.label)
        if label is None:
            raise UserError(
                f"{place}, line {row.line}: {row.label!r} is no class of the training images, "
                f"which are {', '.join(class_names[:10])}: give the classes the same names"
            )
        name = finder.find(row.path)
        if name is None:
            gone.append(row)
            continue
        real = os.path.realpath(base / name)
        if real in seen:
            raise UserError(
                f"{place}, line {row.line}: {row.path} is listed already in {seen[real]}: an image "
                "has one label here and belongs to one split"
            )
        seen[real] = f"line {row.line} of {place.name}"
        files.append(base / name)
        labels.append(label)
    if gone:
        near = [
            folder
            for folder in layouts.subfolders(base)[0]
            if os.path.exists(folder / gone[0].path)
        ]
        hint = (
            f"--config.data.images={near[0].resolve()} is where it lies"
            if near
            else ("--config.data.images=FOLDER names the folder that the paths begin at")
        )
        raise UserError(
            f"{len(gone)} of the {len(rows)} images in {place} are missing, first {gone[0].path} "
            f"(line {gone[0].line}), looked for in {base}: {hint}"
        )
    groups = None
    if "group" in read.columns:
        groups = grouping.of_names(row.group for row in rows)
    elif choices.group:
        groups = grouping.of_paths(choices.group, [row.path for row in rows])
    return files_split(base, files, labels, groups, choices.max_pixels)


class _Finder:
    """Finds listed images in a folder."""

    def __init__(self, base: Path):
        self._base, self._known = base, layouts.endings()
        self._stems = functools.cache(self._by_stem)

    def find(self, path: str) -> str | None:
        """The name of an image within the folder, with a missing extension added, or None.

        A broken link counts as found: reading it reports the error.
        """
        for name in dict.fromkeys((path, path.replace("\\", "/"))):
            place = self._base / name
            if name and os.path.lexists(place) and not place.is_dir():
                return name
            folder, stem = os.path.split(name)
            if stem and Path(stem).suffix.lower() not in self._known:
                ended = self._stems(folder).get(stem, [])
                if len(ended) == 1:
                    return os.path.join(folder, ended[0])
        return None

    def _by_stem(self, folder: str) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        place = self._base / folder
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            stem, ending = os.path.splitext(name)
            if ending.lower() in self._known:
                stems.setdefault(stem, []).append(name)
        return stems
