"""What a source opens as: splits of images that are not read yet."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from asap_jax.data import dataset

VALIDATION = ("val", "valid", "validation")


class Split(NamedTuple):
    """Images that are not read yet.

    labels: [N] int32.
    open: index -> a Pillow image (opened, not decoded) or an array.
    name: index -> what a message calls the image.
    shape: (height, width, is grey) of all its images, where that is known beforehand.
    """

    labels: np.ndarray
    open: Callable[[int], Any]
    name: Callable[[int], str]
    shape: tuple[int, int, bool] | None = None


class Source(NamedTuple):
    """splits by name; a name per class; published (mean, std) or None; notes for the user."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    statistics: tuple | None = None
    notes: tuple[str, ...] = ()


def of_arrays(name, pixels, labels_name, labels) -> Split:
    pixels = dataset.check_images(name, pixels)
    labels = dataset.check_labels(labels_name, labels, len(pixels))
    shape = (*pixels.shape[1:3], pixels.shape[-1] == 1)
    return Split(labels, lambda i: pixels[i], lambda i: f"{name}[{i}]", shape)


def joined(first: Split, second: Split) -> Split:
    count = len(first.labels)

    def either(a, b):
        return lambda i: a(i) if i < count else b(i - count)

    return Split(
        np.concatenate([first.labels, second.labels]),
        either(first.open, second.open),
        either(first.name, second.name),
        first.shape if first.shape == second.shape else None,
    )


def picked(split: Split, indices) -> Split:
    return Split(
        split.labels[indices],
        lambda i: split.open(int(indices[i])),
        lambda i: split.name(int(indices[i])),
        split.shape,
    )
