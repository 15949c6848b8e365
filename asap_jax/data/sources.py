"""Where images come from: scikit-learn's digits, tfds, folders, npz files.

A source opens as splits, each a sequence of labels and a function that reads one image; what
follows is the same for all of them: which splits train and test, a subset, colour, size, arrays.
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from asap_jax.data import dataset, images, tfds_prepare
from asap_jax.data.dataset import Dataset
from asap_jax.data.splits import stratified
from asap_jax.errors import UserError

# Mean and standard deviation of the training images' channels, in [0, 1], as published.
STATISTICS = {
    "cifar10": (
        (0.49139968, 0.48215827, 0.44653124),
        (0.24703233, 0.24348505, 0.26158768),
    ),
    "mnist": ((0.13066,), (0.30811,)),
    "fashion_mnist": ((0.28604,), (0.35302,)),
}

DIGITS_TEST = 360
MIXED_SIZE = 64  # side of images that came in many sizes, where none is asked for
VALIDATION = ("val", "valid", "validation")
_CHUNK = 32
SOURCES = '"digits", "tfds:NAME", "folder:PATH" and "npz:PATH"'


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
    """splits by name; a name per class; published (mean, std) or None."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    statistics: tuple | None = None


def load(
    source: str,
    data_dir: str | None = None,
    *,
    train_examples: int = 0,
    test_examples: int = 0,
    image_size: int = 0,
    color: str = "",
    resize: str = "stretch",
    test_share: float = 0.2,
    split_seed: int = 0,
    skip_unreadable: bool = False,
    prepare: bool = False,
    preparation: images.Preparation | None = None,
) -> Dataset:
    """Loads a data set.

    A validation split joins the training images where there is a test split too, and is the test
    where there is none. Without either, a share of the images is held out.

    Args:
      source: "digits", "tfds:NAME" for an image classification data set of tensorflow_datasets,
        "folder:PATH" for class folders (with or without train, val and test folders above them),
        "npz:PATH" for a NumPy archive (see `_npz`).
      data_dir: folder that holds tfds' prepared data sets (tfds' own default if None).
      train_examples, test_examples: keep that many, the same share of each class; 0 for all.
      image_size: side that all images are resized to; 0 is their own size, or 64 where they differ.
      color: "rgb" or "grey"; "" is the images' own: grey if none has colour.
      resize: "stretch" or "crop", see `images.Preparation`.
      test_share: share of the images that is held out where the source has no test split.
      split_seed: of that split.
      skip_unreadable: leave out images that cannot be read, and say how many; else they are errors.
      prepare: let tfds download and prepare a set that is not there (needs TensorFlow).
      preparation: that of a trained network, in place of `image_size`, `color` and `resize`.

    Raises:
      UserError: what was wrong with the source, and what to do.
    """
    dataset.check_resize(resize)
    if color and color not in images.CHANNELS:
        raise UserError(f'data.color is {color!r}, but has to be "rgb", "grey" or "" for their own')
    if image_size < 0:
        raise UserError(f"data.image_size is {image_size}, but has to be 0 or more pixels")
    kind, _, place = source.partition(":")
    if source == "digits":
        opened = _digits()
    elif kind == "tfds" and place:
        opened = _tfds(place, data_dir, prepare)
    elif kind == "folder" and place:
        opened = _folder(Path(place).expanduser())
    elif kind == "npz" and place:
        opened = _npz(Path(place).expanduser())
    else:
        raise UserError(f"unknown data source {source!r}: known are {SOURCES}")
    notes: list[str] = []
    train, test = _train_and_test(opened.splits, test_share, split_seed, notes)
    train = _subset(train, train_examples, "train")
    test = _subset(test, test_examples, "test")
    train, train_shapes = _survey(train, skip_unreadable, notes)
    test, test_shapes = _survey(test, skip_unreadable, notes)
    if preparation is None:
        preparation = _preparation(train_shapes, test_shapes, image_size, color, resize, notes)
    train_images, train_labels = _read(train, preparation, skip_unreadable, notes)
    test_images, test_labels = _read(test, preparation, skip_unreadable, notes)
    own = preparation == _preparation(train_shapes, test_shapes, 0, "", resize, [])
    return dataset.finish(
        train_images,
        train_labels,
        test_images,
        test_labels,
        opened.class_names,
        preparation,
        opened.statistics if own else None,
        notes,
    )


def _train_and_test(splits, test_share, seed, notes) -> tuple[Split, Split]:
    known = {"train", "test", *VALIDATION}
    if "train" not in splits:
        raise UserError(
            f"the data has the splits {', '.join(splits)}; one has to be called train (test and "
            "val may stand beside it)"
        )
    held_out = next((name for name in VALIDATION if name in splits), None)
    train, test = splits["train"], splits.get("test")
    if test is not None and held_out:
        train = _joined(train, splits[held_out])
        notes.append(f"the {held_out} images train as well; the test images test")
    elif test is None and held_out:
        test = splits[held_out]
        notes.append(f"there is no test split: the {held_out} images test, and are not trained on")
    elif test is None:
        rest, share = dataset.hold_out(train.labels, test_share, seed)
        train, test = _picked(train, rest), _picked(train, share)
        notes.append(f"there is no test split: {len(share)} images, class by class, are held out")
    if set(splits) - known:
        notes.append(f"not used: the splits {', '.join(sorted(set(splits) - known))}")
    return train, test


def _joined(first: Split, second: Split) -> Split:
    count = len(first.labels)

    def either(a, b):
        return lambda i: a(i) if i < count else b(i - count)

    return Split(
        np.concatenate([first.labels, second.labels]),
        either(first.open, second.open),
        either(first.name, second.name),
        first.shape if first.shape == second.shape else None,
    )


def _picked(split: Split, indices) -> Split:
    return Split(
        split.labels[indices],
        lambda i: split.open(int(indices[i])),
        lambda i: split.name(int(indices[i])),
        split.shape,
    )


def _subset(split: Split, count: int, part: str) -> Split:
    """A stratified subset of `count` images; all of them for 0."""
    if count in (0, len(split.labels)):
        return split
    if not 0 < count < len(split.labels):
        raise UserError(
            f"config.data.{part}_examples has to lie between 1 and {len(split.labels)}, or be 0 "
            f"for all; got {count}"
        )
    return _picked(split, stratified(split.labels, [count], seed=0)[0])


def _each(function, split: Split, skip: bool, notes: list[str]):
    """[function(image)] over a split and the indices that could be read.

    An image that cannot be read is an error that names it, or is left out and counted.
    """

    def attempt(index):
        try:
            image = split.open(index)
            result = function(image)
            if isinstance(image, Image.Image):
                image.close()
            return result
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return _Unreadable(split.name(index), error)

    def attempt_some(start):  # many images a task: small ones take less than a task's start
        return [attempt(i) for i in range(start, min(start + _CHUNK, len(split.labels)))]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        chunks = pool.map(attempt_some, range(0, len(split.labels), _CHUNK))
        results = [result for chunk in chunks for result in chunk]
    broken = [result for result in results if isinstance(result, _Unreadable)]
    if broken and not skip:
        reason = broken[0].error
        if isinstance(reason, UnidentifiedImageError):
            reason = "it is no image of a format that Pillow knows"
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"cannot read the image {broken[0].name}{more}: {reason}. Repair or remove it, or "
            "leave such images out with --config.data.skip_unreadable=True"
        )
    if broken:
        names = ", ".join(each.name for each in broken[:3])
        notes.append(f"{len(broken)} images could not be read and are left out: {names}")
    kept = [i for i, result in enumerate(results) if not isinstance(result, _Unreadable)]
    return [results[i] for i in kept], np.array(kept, int)


class _Unreadable(NamedTuple):
    name: str
    error: Exception


def _survey(split: Split, skip, notes) -> tuple[Split, list]:
    """What can be opened of a split, and each image's (height, width, is grey)."""
    if split.shape is not None:
        return split, [split.shape]
    shapes, kept = _each(lambda i: (*images.size(i), images.is_grey(i)), split, skip, notes)
    return (split if len(kept) == len(split.labels) else _picked(split, kept)), shapes


def _preparation(train_shapes, test_shapes, image_size, color, resize, notes):
    shapes = {*train_shapes, *test_shapes}
    if not color:
        color = "grey" if all(grey for _, _, grey in shapes) else "rgb"
    sizes = {(height, width) for height, width, _ in shapes}
    if image_size:
        sizes = {(image_size, image_size)}
    elif len(sizes) > 1:
        smallest, largest = min(map(min, sizes)), max(map(max, sizes))
        notes.append(
            f"the images have sides of {smallest} to {largest} pixels: all are resized to "
            f"{MIXED_SIZE}x{MIXED_SIZE} (--config.data.image_size changes it)"
        )
        sizes = {(MIXED_SIZE, MIXED_SIZE)}
    if not sizes:
        raise UserError("the data holds no image that can be read")
    return images.Preparation(*sizes.pop(), color, resize)


def _read(split: Split, preparation, skip, notes):
    """(images [N, H, W, C], labels [N]), decoded by a few threads."""
    pixels, kept = _each(lambda i: images.prepare(i, preparation), split, skip, notes)
    if not pixels:
        return np.empty((0, *preparation.shape), np.uint8), split.labels[:0]
    return np.stack(pixels), split.labels[kept]


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, of which 360 are held out for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    rest, test = stratified(labels, [len(labels) - DIGITS_TEST, DIGITS_TEST], seed=0)
    whole = _of_arrays("digits", pixels, labels)
    splits = {"train": _picked(whole, rest), "test": _picked(whole, test)}
    return Source(splits, tuple(map(str, bunch.target_names)))


def _of_arrays(name, pixels, labels) -> Split:
    shape = (*pixels.shape[1:3], images.is_grey(pixels[0]))
    return Split(labels, lambda i: pixels[i], lambda i: f"{name}[{i}]", shape)


def _npz(path: Path) -> Source:
    """A NumPy archive: train_images and train_labels, and so for val and test if need be.

    Keras' names (x_train, y_train, ...) and plain `images` and `labels` serve as well, and the
    files of MedMNIST can be read as they are. `class_names` [classes] is optional. What the arrays
    may be: `dataset.from_arrays`.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: npz:PATH names a NumPy archive")
    try:
        with np.load(path) as archive:  # allow_pickle stays False
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no NumPy archive of plain arrays ({error}): write it with numpy.savez"
        ) from error
    splits, top = {}, 0
    for split in ("train", "test", *VALIDATION):
        pairs = [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")]
        if split == "train":
            pairs.append(("images", "labels"))
        for pixels, labels in pairs:
            if pixels in arrays and labels in arrays:
                values = dataset.check_images(f"{path}: {pixels}", arrays[pixels])
                labels = dataset.check_labels(f"{path}: {labels}", arrays[labels], len(values))
                splits[split] = _of_arrays(pixels, values, labels)
                top = max(top, int(labels.max()) + 1)
    if "train" not in splits:
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected train_images and "
            "train_labels (or images and labels, or x_train and y_train), and test_images and "
            "test_labels if there is a test split"
        )
    names = arrays["class_names"] if "class_names" in arrays else range(top)
    return Source(splits, tuple(map(str, names)))


def _folder(path: Path) -> Source:
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
    opened = {name: _class_folders(where, class_names) for name, where in splits.items()}
    return Source(opened, tuple(class_names))


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(path: Path, class_names) -> Split:
    endings = Image.registered_extensions()
    files, labels = [], []
    for folder in _subfolders(path):
        if folder.name not in class_names:
            raise UserError(
                f"{folder} is no class of the training images, which are "
                f"{', '.join(class_names[:10])}: give the folders the same names"
            )
        found = sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in endings and not file.name.startswith(".") and file.is_file()
        )
        if not found:
            raise UserError(
                f"the class folder {folder} holds no image: fill it, or remove it if the class "
                "is not wanted"
            )
        files += found
        labels += [class_names.index(folder.name)] * len(found)
    if not files:
        raise UserError(f"{path} holds no class folder: put each class's images in one")
    return Split(
        np.array(labels, np.int32), lambda i: Image.open(files[i]), lambda i: str(files[i])
    )


def _tfds(name: str, data_dir: str | None, prepare: bool) -> Source:
    import tensorflow_datasets as tfds  # reads array_record without TensorFlow

    where = data_dir or "its default folder"
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        ready = Path(builder.data_path).exists()
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        if not prepare:
            raise UserError(
                f"tfds finds no data set {name!r} at {where}. {tfds_prepare.hint(name, data_dir)}"
            ) from error
        builder, ready = None, False
    if not ready and prepare:
        tfds_prepare.run(name, data_dir)
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    elif not ready:
        raise UserError(
            f"the tfds data set {name!r} is not prepared at {builder.data_path}. "
            f"{tfds_prepare.hint(name, data_dir)}"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise UserError(
            f"tfds data set {name!r} has the features {sorted(features)}; image classification "
            "needs 'image' and 'label'"
        )

    def split(part):
        records = builder.as_data_source(split=part, decoders={"image": tfds.decode.SkipDecoding()})
        labels = np.array([record["label"] for record in records], np.int32)

        def read(index):
            image = records[index]["image"]
            return Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image

        height, width, channels = features["image"].shape
        shape = None if None in (height, width, channels) else (height, width, channels == 1)
        return Split(labels, read, lambda i: f"{part}[{i}] of {name}", shape)

    used = [part for part in builder.info.splits if part in ("train", "test", *VALIDATION)]
    return Source(
        {part: split(part) for part in used},
        tuple(features["label"].names),
        STATISTICS.get(name.partition("/")[0].partition(":")[0]),
    )
