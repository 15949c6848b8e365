"""Class folders as a source, and data sets published as folders."""

import collections
from pathlib import Path
from typing import NamedTuple

from asap_jax.data import layouts, tables
from asap_jax.data.opened import Choices, Description, Grouping, Source, Split, files_split, within
from asap_jax.host.errors import UserError

CINIC10 = (
    (0.47889522, 0.47227842, 0.43047404),
    (0.24205776, 0.23828046, 0.25874835),
)  # mean and standard deviation per channel, as published


def folder(path: Path, choices: Choices = Choices()) -> Source:
    """Class folders: PATH/CLASS/..., or PATH/train/CLASS/... next to val and test.

    See `layouts.find` for how folders are interpreted.
    """
    if not path.is_dir():
        raise UserError(
            f"there is no folder {path}: folder:PATH names one that holds a folder per class, or "
            "train and test folders that do"
        )
    listed = path / Path(choices.test).expanduser()  # a CSV file may list the test images
    listed = listed if choices.test and listed.is_file() else None
    layout = layouts.find(path, choices._replace(test="") if listed else choices)
    if listed:
        layout.splits.pop("test", None)
    # Without training images (evaluation only), the classes come from all splits.
    naming = ["train"] if "train" in layout.splits else list(layout.splits)
    class_names = sorted({folder.name for name in naming for folder in _classes(layout, name)})
    if not class_names:
        place = layout.splits[naming[0]]
        raise UserError(f"{place} holds no folder: put each class's images in a folder of its name")
    seen, grouping = _Seen(collections.Counter(), []), Grouping()
    opened = {
        name: _class_folders(layout, name, class_names, seen, choices, grouping)
        for name in layout.splits
    }
    notes = [*layout.notes, *seen.notes()]
    if listed:
        opened["test"], more = tables.test(listed, choices, class_names, grouping)
        notes += more
    return Source(opened, tuple(class_names), notes=tuple(notes))


CINIC10_DESCRIBED = Description(
    (32, 32, False),
    tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    270_000,
)
FREIBURG_DESCRIBED = Description(None, tuple(f"class {i}" for i in range(25)), 4_947)


def cinic10(path: Path, choices: Choices = Choices()) -> Source:
    """CINIC-10 as unpacked: train, valid and test with ten classes; trains on train and valid."""
    parts = ("train", "valid", "test")
    missing = [name for name in parts if not (path / name).is_dir()]
    if missing:
        raise UserError(
            f"CINIC-10 was looked for in {path}, but the folder {' and the folder '.join(missing)} "
            "is missing there: unpack its archive into that folder, or name the one that holds "
            "train, valid and test"
        )
    return folder(path)._replace(statistics=CINIC10)


def freiburg(path: Path, choices: Choices = Choices()) -> Source:
    """The Freiburg Groceries as unpacked, with the first of their five official splits.

    Reads images/CLASS/*.png, and splits/train0.txt and test0.txt (lines: "CLASS/FILE.png NUMBER").
    """
    lists = {part: path / "splits" / f"{part}0.txt" for part in ("train", "test")}
    missing = [str(place) for place in lists.values() if not place.is_file()]
    if not (path / "images").is_dir():
        missing.append(str(path / "images"))
    if missing:
        raise UserError(
            f"the Freiburg Groceries were looked for in {path}, but {' and '.join(missing)} is "
            "missing: name the folder that holds images (a folder per class, from the data set's "
            "archive) and splits (train0.txt and test0.txt, from its repository)"
        )
    listed = {part: _listed(place) for part, place in lists.items()}
    kinds = {(n, name.partition("/")[0]) for pairs in listed.values() for name, n in pairs}
    class_names = tuple(name for _, name in sorted(kinds))
    if [number for number, _ in sorted(kinds)] != list(range(len(set(class_names)))):
        raise UserError(
            f"the lists {' and '.join(map(str, lists.values()))} do not number the classes from 0, "
            "each by one number: take them as they were published"
        )
    splits = {}
    for part, pairs in listed.items():
        files = [path / "images" / name for name, _ in pairs]
        gone = [file for file in files if not file.is_file()]
        if gone:
            raise UserError(
                f"{len(gone)} of the {len(files)} images in {lists[part]} are missing, first "
                f"{gone[0]}: unpack the data set's archive into {path} again"
            )
        splits[part] = files_split(path, files, [number for _, number in pairs])
    return Source(splits, class_names)


def _listed(place: Path) -> list[tuple[str, int]]:
    """(CLASS/FILE, number) for each line."""
    pairs = []
    for line in place.read_text().splitlines():
        name, _, number = line.rpartition(" ")
        if "/" not in name or not number.isdecimal():
            raise UserError(f"{place} has the line {line!r}, expected CLASS/FILE.png NUMBER")
        pairs.append((name, int(number)))
    return pairs


class _Seen(NamedTuple):
    """Entries that are not images: files counted by extension, and links to a parent folder."""

    others: collections.Counter
    back: list[str]

    def notes(self) -> list[str]:
        notes = []
        if self.others:
            most = sorted(self.others.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
            listing = ", ".join(f"{ending or 'no ending'} ({count})" for ending, count in most)
            notes.append(f"left out, by their endings no images: {listing}")
        if self.back:
            listing = ", ".join(self.back[:3])
            notes.append(f"left out, links that lead back to where they lie, or above: {listing}")
        return notes


def _classes(layout, split) -> list[Path]:
    """The class folders of a split."""
    found, _ = layouts.subfolders(layout.splits[split])
    return [folder for folder in found if folder.resolve() not in layout.apart]


def _class_folders(layout, split, class_names, seen, choices, grouping) -> Split:
    """The images in the class folders of a split."""
    path, readable = layout.splits[split], layouts.endings()
    numbers = {name: number for number, name in enumerate(class_names)}
    files, labels = [], []
    for folder in _classes(layout, split):
        if folder.name not in numbers:
            raise UserError(
                f"{folder} is no class of the training images, which are "
                f"{', '.join(class_names[:10])}: give the folders the same names"
            )
        found = []
        for file in layouts.files_below(folder, seen.back):
            ending = file.suffix.lower()
            # The type of a broken link without extension is unknown; reading it reports the error.
            if ending in readable or (not ending and not file.exists()):
                found.append(file)
            else:
                seen.others[ending] += 1
        if not found:
            raise UserError(
                f"the class folder {folder} holds no image: fill it, or remove it if the class "
                "is not wanted"
            )
        files += found
        labels += [numbers[folder.name]] * len(found)
    if not files:
        raise UserError(f"{path} holds no class folder: put each class's images in one")
    groups = None
    if choices.group:
        groups = grouping.of_paths(choices.group, [within(file, path) for file in files])
    return files_split(path, files, labels, groups, choices.max_pixels)
