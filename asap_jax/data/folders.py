"""Class folders as a source, and data sets that are published as folders."""

import collections
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from asap_jax.data import kept
from asap_jax.data.opened import VALIDATION, Choices, Source, Split
from asap_jax.errors import UserError

CINIC10 = (
    (0.47889522, 0.47227842, 0.43047404),
    (0.24205776, 0.23828046, 0.25874835),
)  # mean and deviation of the channels, as published


def folder(path: Path, choices: Choices = Choices()) -> Source:
    """Class folders: PATH/CLASS/..., or PATH/train/CLASS/... with val and test beside it."""
    if not path.is_dir():
        raise UserError(
            f"there is no folder {path}: folder:PATH names one that holds a folder per class, or "
            "train and test folders that do"
        )
    folders = _subfolders(path)
    named = {folder.name.lower(): folder for folder in folders}
    splits = {name: named[name] for name in ("train", "test", *VALIDATION) if name in named}
    if "train" in splits and len(splits) < len(folders):
        other = sorted(folder.name for folder in folders if folder not in splits.values())
        raise UserError(
            f"{path} holds the folder train beside {', '.join(other[:3])}: either class folders, "
            "or train, val and test folders, not both"
        )
    if "train" not in splits:
        splits = {"train": path}
    class_names = [folder.name for folder in _subfolders(splits["train"])]
    if not class_names:
        raise UserError(
            f"{splits['train']} holds no folder: put each class's images in a folder of its name"
        )
    others: collections.Counter = collections.Counter()
    opened = {name: _class_folders(where, class_names, others) for name, where in splits.items()}
    notes = ()
    if others:
        most = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
        endings = ", ".join(f"{ending or 'no ending'} ({count})" for ending, count in most)
        notes = (f"left out, by their endings no images: {endings}",)
    return Source(opened, tuple(class_names), notes=notes)


def cinic10(path: Path, choices: Choices = Choices()) -> Source:
    """CINIC-10 as it is unpacked: train, valid and test of ten classes; train and valid train."""
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
    """The Freiburg Groceries as they are unpacked, by the first of their five official splits.

    images/CLASS/*.png, and splits/train0.txt and test0.txt with lines "CLASS/FILE.png NUMBER".
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
    """(CLASS/FILE, number) of each line."""
    pairs = []
    for line in place.read_text().splitlines():
        name, _, number = line.rpartition(" ")
        if "/" not in name or not number.isdecimal():
            raise UserError(f"{place} has the line {line!r}, expected CLASS/FILE.png NUMBER")
        pairs.append((name, int(number)))
    return pairs


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(path: Path, class_names, others) -> Split:
    """The images in the class folders below `path`; counts the endings of `others`."""
    readable = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files, labels = [], []
    for folder in _subfolders(path):
        if folder.name not in class_names:
            raise UserError(
                f"{folder} is no class of the training images, which are "
                f"{', '.join(class_names[:10])}: give the folders the same names"
            )
        seen = [
            file
            for file in sorted(folder.rglob("*"))
            if not any(part.startswith(".") for part in file.relative_to(folder).parts)
            and file.is_file()
        ]
        found = [file for file in seen if file.suffix.lower() in readable]
        others.update(f.suffix.lower() for f in seen if f.suffix.lower() not in readable)
        if not found:
            raise UserError(
                f"the class folder {folder} holds no image: fill it, or remove it if the class "
                "is not wanted"
            )
        files += found
        labels += [class_names.index(folder.name)] * len(found)
    if not files:
        raise UserError(f"{path} holds no class folder: put each class's images in one")
    return files_split(path, files, labels)


def files_split(path: Path, files: list[Path], labels: list[int]) -> Split:
    """The split of the image files below `path`; it goes by their names within."""
    # A worker gets a copy of the names: strings below one folder are lighter than paths.
    names, root = [file.relative_to(path).as_posix() for file in files], str(path)
    numbers = np.array(labels, np.int32)

    def place(index):
        return f"{root}/{names[index]}"

    lines = (f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
    return Split(
        len(names),
        lambda i: (Image.open(place(i)), int(numbers[i])),
        lambda: numbers,
        place,
        hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest(),
        stamp=lambda: kept.stamp(map(place, range(len(names)))),
    )
