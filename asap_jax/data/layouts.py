"""Detects the layout of image folders: which folders are splits, classes, or neither."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from asap_jax.data.opened import VALIDATION, Choices
from asap_jax.host.errors import UserError

# Extensions registered by Pillow that are not images, or that Pillow cannot decode by itself.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_JUNK = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
_ROLES = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "trainingset": "train",
    "test": "test",
    "testing": "test",
    "testset": "test",
    "testingset": "test",
    "val": "val",
    "valset": "val",
    "dev": "val",
    "devset": "val",
    "valid": "valid",
    "validset": "valid",
    "validation": "validation",
    "validationset": "validation",
}
_FILLERS = {"set", "split", "data", "dataset", "images", "image", "imgs", "img", "folder"}
_UNLABELLED = {"unknown", "unlabelled", "unlabeled", "images", "imgs", "all", "test1"}
SETTLED = (
    "--config.data.train=FOLDER, and --config.data.test=FOLDER if there is one, settle it: each "
    "holds a folder per class (. is the data's own folder)"
)


class Layout(NamedTuple):
    """Folders that hold one folder per class, by split, and notes for the user.

    apart: folders that are not classes although they lie next to class folders.
    """

    splits: dict[str, Path]
    notes: tuple[str, ...] = ()
    apart: tuple[Path, ...] = ()


def endings() -> set[str]:
    """The extensions of image files, in lower case."""
    known = Image.registered_extensions().items()
    return {e for e, kind in known if kind in Image.OPEN and kind not in _NO_PICTURES}


def role(name: str) -> str | None:
    """The split a name refers to: train, test, val, valid or validation; None for other names."""
    found = _role(name)
    return found[0] if found and not found[1] else None


def find(path: Path, choices: Choices = Choices()) -> Layout:
    """Finds the layout of a folder.

    Args:
      path: the folder.
      choices: `train` and `test` name folders inside or outside of it and take precedence.

    Raises:
      UserError: the layout is ambiguous; the message says how to resolve it.
    """
    if choices.train or choices.test:
        return _explicit(path, choices)
    root, notes = _unwrapped(path)
    folders, left = subfolders(root)
    notes = [*notes, *left, *(subfolders(path)[1] if root != path else ())]
    named, others = _named(root, folders)
    if "train" not in named:
        if named and not others and not any(map(_is_flat, named.values())):
            return Layout({name: _unwrapped(f)[0] for name, f in named.items()}, tuple(notes))
        _check_classes(root, named, others)
        return Layout({"train": root}, tuple(notes))
    inner, _ = subfolders(_unwrapped(named["train"])[0])
    filled = [folder for folder in others if _holds_image(folder)]
    if (
        not inner
        and filled
        and all(_is_flat(folder) and _images_in(folder) for folder in named.values())
    ):
        names = ", ".join(folder.name for folder in named.values())
        notes.append(f"taken as classes, for they hold images and no class folders: {names}")
        return Layout({"train": root}, tuple(notes))
    if filled:
        raise UserError(
            f"{root} holds the folder {named['train'].name} beside "
            f"{', '.join(folder.name for folder in filled[:3])}: either class folders, or train, "
            f"val and test folders, not both. {SETTLED}"
        )
    if not inner:
        raise UserError(
            f"{named['train']} holds no folder, so that the images in it have no classes: put each "
            "class's images in a folder of its name, or list images and classes in a CSV file "
            f"(csv:PATH). If {', '.join(folder.name for folder in named.values())} are the "
            "classes, say so with --config.data.train=."
        )
    if others:
        notes.append(f"left out, without images: {', '.join(folder.name for folder in others)}")
    splits = {}
    for name, folder in named.items():
        splits[name], more = _unwrapped(folder)
        notes += more
    classes = {folder.name for folder in subfolders(splits["train"])[0]}
    for name in [name for name in splits if name != "train"]:
        if _is_unlabelled(splits[name], classes):
            notes.append(
                f"{splits[name]} holds images and no class folders: without labels, they are not "
                "used"
            )
            del splits[name]
    return Layout(splits, tuple(notes))


def subfolders(path: Path) -> tuple[list[Path], list[str]]:
    """(sorted folders in a folder, including links to folders; notes about skipped entries).

    Raises:
      UserError: a link without extension is broken, so its type is unknown.
    """
    found, back, junk = [], [], []
    real = os.path.realpath(path)
    for entry in _entries(path):
        if entry.name.lower() in _JUNK:
            junk.append(entry.name)
        elif not _is_folder(entry):
            if entry.is_symlink() and not os.path.exists(entry.path) and "." not in entry.name:
                raise UserError(
                    f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there: "
                    "fetch what it stands for (git annex get, dvc pull), or remove it"
                )
        elif entry.is_symlink() and leads_back(entry.path, real):
            back.append(entry.name)
        else:
            found.append(Path(path, entry.name))
    notes = []
    if junk:
        notes.append(f"left out, written by other programs: {', '.join(junk)}")
    if back:
        notes.append(f"left out, links that lead back to {path} or above: {', '.join(back)}")
    return sorted(found), notes


def files_below(folder: Path, back: list[str]) -> list[Path]:
    """All non-hidden files below a folder, sorted; links are followed, each folder once.

    Broken links are included. Links to a parent folder are not followed but added to `back`.
    """
    files, seen = [], set()

    def walk(path, real):
        seen.add(real)
        for entry in _entries(path):
            if entry.name.lower() in _JUNK:
                continue
            if not _is_folder(entry):
                if entry.is_symlink() or entry.is_file():
                    files.append(Path(path, entry.name))
                continue
            target = f"{real}/{entry.name}"
            if entry.is_symlink():
                if leads_back(entry.path, real):
                    back.append(entry.path)
                    continue
                target = os.path.realpath(entry.path)
            if target not in seen:
                walk(Path(path, entry.name), target)

    walk(folder, os.path.realpath(folder))
    return sorted(files)


def leads_back(link: str, real: str) -> bool:
    """Whether a link points to its own folder, whose real path is `real`, or to a parent."""
    target = os.path.realpath(link)
    return os.path.commonpath([target, real]) == target


def _explicit(path, choices) -> Layout:
    splits, notes = {}, []
    for name in ("train", "test"):
        configured = getattr(choices, name)
        if not configured and name == "test":
            continue
        place = path / Path(configured or ".").expanduser()
        if not place.is_dir():
            raise UserError(
                f"config.data.{name} is {configured!r}, but there is no folder {place}: name one "
                f"that holds a folder per class, absolute or within {path}"
            )
        splits[name] = place
    apart = ()
    if "test" in splits:
        if splits["test"].resolve() == splits["train"].resolve():
            raise UserError(
                f"config.data.test names the folder that trains, {splits['train']}: the test "
                "images have to be others"
            )
        apart = (splits["test"].resolve(), splits["train"].resolve())
    if not choices.train:
        return Layout(splits, (), apart)
    for name in splits:
        if getattr(choices, name) not in ("", "."):
            splits[name], more = _unwrapped(splits[name])
            notes += more
    return Layout(splits, tuple(notes), apart)


def _named(root, folders) -> tuple[dict[str, Path], list[Path]]:
    """(folders by the split they name, the other folders)."""
    groups: dict = {}
    for folder in folders:
        if (found := _role(folder.name)) is not None:
            groups.setdefault(found[1], []).append((found[0], folder))
    # seg_train and seg_test are splits like train and test; train_station alone is not.
    good = [
        rest
        for rest, pairs in groups.items()
        if not rest or (_trains(pairs) and len({each for each, _ in pairs}) > 1)
    ]
    pairs = [pair for rest in good for pair in groups[rest]]
    named: dict[str, Path] = {}
    for name, folder in pairs:
        if name in named:
            raise UserError(
                f"{root} holds both {named[name].name} and {folder.name}, two folders for the "
                f"same images as it seems. {SETTLED}"
            )
        named[name] = folder
    ordered = {name: named[name] for name in ("train", "test", *VALIDATION) if name in named}
    return ordered, [folder for folder in folders if folder not in named.values()]


def _trains(pairs) -> bool:
    return any(name == "train" for name, _ in pairs)


def _check_classes(root, named, others) -> None:
    """Raises UserError if folders, none of them a training folder, may not be classes."""
    names = {folder.name for folder in others}
    inside = {
        name: {folder.name for folder in subfolders(folder)[0]} for name, folder in named.items()
    }
    if named and not others:
        raise UserError(
            f"{root} holds {' and '.join(f.name for f in named.values())} but no folder of "
            f"training images. {SETTLED}"
        )
    for name, within in inside.items():
        if within & names:
            raise UserError(
                f"{root} holds class folders and {named[name].name}, which holds folders of the "
                f"same names ({', '.join(sorted(within & names)[:3])}): a class, or the images of "
                f"that split? --config.data.test={named[name].name} tests on it; else "
                "--config.data.train=. makes it a class"
            )


def _role(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(the split named by a folder's name, the remaining words of the name), or None."""
    words = re.findall(r"[a-z]+|[^a-z\W_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    found = [word for word in words if word in _ROLES]
    if len(found) != 1:
        return None
    rest = tuple(word for word in words if word not in _ROLES and word not in _FILLERS)
    return _ROLES[found[0]], rest


def _unwrapped(path: Path) -> tuple[Path, list[str]]:
    """(the folder below any single wrapping folders, notes)."""
    inside, below = path, subfolders(path)[0]
    while len(below) == 1 and not _images_in(inside) and role(below[0].name) != "train":
        inside = below[0]
        below = subfolders(inside)[0]
    wraps = len(below) > 1 or (below and role(below[0].name) == "train")
    if inside == path or not wraps:
        return path, []
    return inside, [f"{path} holds one folder: what counts are the folders in {inside}"]


def _is_unlabelled(folder: Path, classes: set[str]) -> bool:
    """Whether a test or validation folder holds images, but none in class folders."""
    inner = subfolders(folder)[0]
    if not inner:
        return bool(_images_in(folder))
    (only, *more) = inner
    strange = only.name not in classes and not more and not _images_in(folder)
    named = only.name.lower() in _UNLABELLED or role(only.name) is not None
    return strange and named and _is_flat(only) and bool(_images_in(only))


def _is_flat(folder: Path) -> bool:
    return not subfolders(folder)[0]


def _images_in(folder: Path) -> list[str]:
    """Names of the images directly in a folder."""
    known = endings()
    return [e.name for e in _entries(folder) if Path(e.name).suffix.lower() in known]


def _holds_image(folder: Path) -> bool:
    known = endings()
    return any(file.suffix.lower() in known for file in files_below(folder, []))


def _entries(folder) -> list[os.DirEntry]:
    """The non-hidden entries of a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be looked into: {error.strerror}; give the right to, or "
            "move it away"
        ) from error
    return sorted(seen, key=lambda entry: entry.name)


def _is_folder(entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link cycle
        return False
