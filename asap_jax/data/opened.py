"""Opened sources: splits of images that are not read yet."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asap_jax.data import dataset, images
from asap_jax.data.kept import Stamp, stamp
from asap_jax.host.errors import UserError

VALIDATION = ("val", "valid", "validation")


class Choices(NamedTuple):
    """User options for opening a source; "" and False leave the choice to the source.

    train, test: folders with one folder per class, relative to the source's folder or absolute.
    images: folder that the paths in a CSV file are relative to.
    path_column, label_column, split_column: columns of a CSV file, by name or number from 1.
    group: identifies objects whose images must stay together: a column of a CSV file, or a regular
      expression searched in each image's path; the match (or its groups) is the group.
    max_pixels: pixel limit of an image file; 0 is Pillow's own limit.
    sparse_labels: array labels are arbitrary ids, and the ids that occur are the classes.
    """

    train: str = ""
    test: str = ""
    images: str = ""
    path_column: str = ""
    label_column: str = ""
    split_column: str = ""
    group: str = ""
    max_pixels: int = 0
    sparse_labels: bool = False


@dataclass(frozen=True, eq=False)
class Split:
    """Images that are not read yet.

    Attributes:
      count: number of images.
      read: index -> (image, label): a Pillow image (opened, not decoded) or an array; an integer.
      read_labels: () -> [count] int32; may have to read every record.
      name: index -> name of the image in messages.
      fingerprint: identifies this split, computed without reading its images.
      shape: (height, width, is grey) of all its images, if known in advance.
      stamp: () -> identifies the contents of its files, see `kept.stamp`; None for sources in
        memory and for splits derived from others.
      groups: [count] int64, the group of each image, or None; images of one group stay together.
    """

    count: int
    read: Callable[[int], tuple[Any, int]]
    read_labels: Callable[[], np.ndarray]
    name: Callable[[int], str]
    fingerprint: str
    shape: tuple[int, int, bool] | None = None
    stamp: Callable[[], Stamp] | None = None
    groups: np.ndarray | None = None

    @cached_property
    def labels(self) -> np.ndarray:
        """[count] int32, read once."""
        return self.read_labels()


class Source(NamedTuple):
    """An opened source.

    splits: by name.
    class_names: one name per class.
    statistics: published (mean, std), or None.
    notes: messages for the user.
    in_memory: whether the images are already arrays; other sources can be streamed.
    extra: names of the splits that the user asked to train on in addition to "train".
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    statistics: tuple | None = None
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    extra: tuple[str, ...] = ()


class Description(NamedTuple):
    """What is known about a source's images without reading them, even if they are not on disk.

    shape: (height, width, is grey), None if they differ.
    class_names: one name per class.
    count: number of training and test images, None if unknown.
    """

    shape: tuple[int, int, bool] | None
    class_names: tuple[str, ...]
    count: int | None


def of_arrays(name, pixels, labels_name, labels, sparse: bool = False) -> Split:
    """A split from arrays; sparse labels may be arbitrary ids, see `numbered`."""
    pixels = dataset.check_images(name, pixels)
    labels = dataset.check_labels(labels_name, labels, len(pixels), sparse)
    return Split(
        len(labels),
        lambda i: (pixels[i], int(labels[i])),
        lambda: labels,
        lambda i: f"{name}[{i}]",
        name,
        (*pixels.shape[1:3], pixels.shape[-1] == 1),
    )


class Grouping:
    """Numbers the groups of a source's images consistently across all its splits."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def of_names(self, names) -> np.ndarray:
        """[N] int64 from the groups' names."""
        numbers = (self._numbers.setdefault(name, len(self._numbers)) for name in names)
        return np.fromiter(numbers, np.int64)

    def of_paths(self, pattern: str, paths: list[str]) -> np.ndarray:
        """[N] int64 from a regular expression on image paths; see `Choices.group`."""
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"config.data.group is {pattern!r}, which is no regular expression ({error})"
            ) from error
        found = [compiled.search(path) for path in paths]
        matches = [each for each in found if each is not None]
        if len(matches) < len(paths):
            raise UserError(
                f"config.data.group is {pattern!r}, which is found in {len(matches)} of "
                f"{len(paths)} paths only, not in {paths[found.index(None)]}: an "
                r"expression has to tell the group of every image, as patient(\d+) does in "
                "patient12_3.png"
            )
        return self.of_names("\0".join(map(str, each.groups())) or each.group() for each in matches)


def files_split(
    path: Path,
    files: list[Path],
    labels: list[int],
    groups: np.ndarray | None = None,
    max_pixels: int = 0,
) -> Split:
    """A split of image files, most of them below `path`, identified by their relative names."""
    # Each worker copies the names; strings relative to one folder are lighter than paths.
    names, root = [within(file, path) for file in files], str(path)
    numbers = np.array(labels, np.int32)

    def place(index):
        return os.path.join(root, names[index])

    lines = (f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
    sha = hashlib.sha256("".join(lines).encode(errors="surrogateescape"))
    if groups is not None:
        sha.update(groups.tobytes())
    return Split(
        len(names),
        lambda i: (images.opened(place(i), max_pixels), int(numbers[i])),
        lambda: numbers,
        place,
        sha.hexdigest(),
        stamp=lambda: stamp(map(place, range(len(names)))),
        groups=groups,
    )


def within(file: Path, folder: Path) -> str:
    """The path of a file relative to a folder, or its absolute path if it lies outside."""
    try:
        return file.relative_to(folder).as_posix()
    except ValueError:
        return file.absolute().as_posix()


def numbered(
    splits: dict[str, Split], class_names, sparse: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """(splits of arrays, renumbered if sparse; one name per class): see `dataset.as_classes`."""
    labels, names = dataset.as_classes(
        [split.labels for split in splits.values()], class_names, sparse
    )
    renumbered = {
        name: _labelled(split, numbers)
        for (name, split), numbers in zip(splits.items(), labels, strict=True)
    }
    return renumbered if sparse else splits, names


def _labelled(split: Split, labels) -> Split:
    read = split.read
    return dataclasses.replace(
        split, read=lambda i: (read(i)[0], int(labels[i])), read_labels=lambda: labels
    )


def joined(first: Split, second: Split) -> Split:
    count = first.count

    def either(a, b):
        return lambda i: a(i) if i < count else b(i - count)

    groups = None
    if first.groups is not None:
        assert second.groups is not None  # what is joined has groups in every part, or in none
        groups = np.concatenate([first.groups, second.groups])
    return Split(
        count + second.count,
        either(first.read, second.read),
        lambda: np.concatenate([first.labels, second.labels]),
        either(first.name, second.name),
        f"{first.fingerprint}+{second.fingerprint}",
        first.shape if first.shape == second.shape else None,
        groups=groups,
    )


def picked(split: Split, indices) -> Split:
    indices = np.asarray(indices, np.int64)
    read, name = split.read, split.name  # not the split: workers do not need its labels
    chosen = hashlib.sha256(indices.tobytes()).hexdigest()[:16]
    return Split(
        len(indices),
        lambda i: read(int(indices[i])),
        lambda: split.labels[indices],
        lambda i: name(int(indices[i])),
        f"{split.fingerprint}[{chosen}]",
        split.shape,
        groups=None if split.groups is None else split.groups[indices],
    )
