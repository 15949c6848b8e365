"""What a source opens as: splits of images that are not read yet."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from asap_jax.data import dataset
from asap_jax.data.kept import Stamp

VALIDATION = ("val", "valid", "validation")


class Choices(NamedTuple):
    """What a user says of how a source is opened; "" and False leave it to the source.

    train, test: folders that hold a folder per class, within the source's or absolute.
    sparse_labels: labels of arrays are ids of any size, and those that occur are the classes.
    """

    train: str = ""
    test: str = ""
    sparse_labels: bool = False


@dataclass(frozen=True, eq=False)
class Split:
    """Images that are not read yet.

    Attributes:
      count: how many.
      read: index -> (image, label): a Pillow image (opened, not decoded) or an array; an integer.
      read_labels: () -> [count] int32; may have to read every record.
      name: index -> what a message calls the image.
      fingerprint: what tells this split from another, found without reading its images.
      shape: (height, width, is grey) of all its images, where that is known beforehand.
      stamp: () -> what tells its files' contents from others, see `kept.stamp`; a split of a source
        in memory, or made of others, has none.
    """

    count: int
    read: Callable[[int], tuple[Any, int]]
    read_labels: Callable[[], np.ndarray]
    name: Callable[[int], str]
    fingerprint: str
    shape: tuple[int, int, bool] | None = None
    stamp: Callable[[], Stamp] | None = None

    @cached_property
    def labels(self) -> np.ndarray:
        """[count] int32, read once."""
        return self.read_labels()


class Source(NamedTuple):
    """What a source holds.

    splits: by name.
    class_names: a name per class.
    statistics: published (mean, std), or None.
    notes: for the user.
    in_memory: the images are arrays already; the others can be streamed.
    extra: names of the splits that were asked to train beside "train".
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    statistics: tuple | None = None
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    extra: tuple[str, ...] = ()


def of_arrays(name, pixels, labels_name, labels, sparse: bool = False) -> Split:
    """The split of arrays; sparse labels may be any ids, see `numbered`."""
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


def numbered(
    splits: dict[str, Split], class_names, sparse: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """(splits of arrays, renumbered if sparse; a name per class): see `dataset.as_classes`."""
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

    return Split(
        count + second.count,
        either(first.read, second.read),
        lambda: np.concatenate([first.labels, second.labels]),
        either(first.name, second.name),
        f"{first.fingerprint}+{second.fingerprint}",
        first.shape if first.shape == second.shape else None,
    )


def picked(split: Split, indices) -> Split:
    indices = np.asarray(indices, np.int64)
    read, name = split.read, split.name  # not the split: its labels need not travel to a worker
    chosen = hashlib.sha256(indices.tobytes()).hexdigest()[:16]
    return Split(
        len(indices),
        lambda i: read(int(indices[i])),
        lambda: split.labels[indices],
        lambda i: name(int(indices[i])),
        f"{split.fingerprint}[{chosen}]",
        split.shape,
    )
