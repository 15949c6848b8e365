"""Class folders as a source."""

import collections
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from asap_jax.data.opened import VALIDATION, Source, Split
from asap_jax.errors import UserError


def folder(path: Path) -> Source:
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
    )
