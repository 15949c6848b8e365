"""Where images come from: scikit-learn's digits, tfds, folders, npz files.

A source opens as splits, each a sequence of labels and a function that reads one image; what
follows is the same for all of them: which splits train and test, a subset, colour, size, arrays.
"""

import collections
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from asap_jax import memory
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
    """splits by name; a name per class; published (mean, std) or None; notes for the user."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    statistics: tuple | None = None
    notes: tuple[str, ...] = ()


def load(source: str, data_dir: str | None = None, *, prepare: bool = False, **options) -> Dataset:
    """Loads a data set.

    Args:
      source: "digits", "tfds:NAME" for an image classification data set of tensorflow_datasets,
        "folder:PATH" for class folders (with or without train, val and test folders above them),
        "npz:PATH" for a NumPy archive (see `_npz`).
      data_dir: folder that holds tfds' prepared data sets (tfds' own default if None).
      prepare: let tfds download and prepare a set that is not there (needs TensorFlow).
      options: see `assemble`.

    Raises:
      UserError: what was wrong with the source, and what to do.
    """
    return assemble(open_source(source, data_dir, prepare), **options)


def open_source(source: str, data_dir: str | None = None, prepare: bool = False) -> Source:
    """The splits of a named source, no image read yet; see `load`."""
    kind, _, place = source.partition(":")
    if source == "digits":
        return _digits()
    if kind == "tfds" and place:
        return _tfds(place, data_dir, prepare)
    if kind == "folder" and place:
        return _folder(Path(place).expanduser())
    if kind == "npz" and place:
        return _npz(Path(place).expanduser())
    raise UserError(f"unknown data source {source!r}: known are {SOURCES}")


def from_arrays(
    images, labels, test_images=None, test_labels=None, *, class_names=None, **options
) -> Dataset:
    """A data set from arrays.

    Args:
      images: [N, H, W] or [N, H, W, C], C 1 or 3; uint8, other integers in 0..255, or floats in
        [0, 1], which are rounded to 255 steps.
      labels: [N] or [N, 1] integers from 0.
      test_images, test_labels: the same for the test; without them a share of `images` is held out.
      class_names: a name per class; else the labels' numbers.
      options: see `assemble`.

    Raises:
      UserError: shapes, types or values that no training could use.
    """
    if (test_images is None) != (test_labels is None):
        raise UserError("test_images and test_labels go together: one of them is missing")
    splits = {"train": _of_arrays("images", images, "labels", labels)}
    if test_images is not None:
        splits["test"] = _of_arrays("test_images", test_images, "test_labels", test_labels)
    if class_names is None:
        top = max(int(split.labels.max()) for split in splits.values())
        class_names = range(top + 1)
    return assemble(Source(splits, tuple(map(str, class_names))), **options)


def assemble(
    source: Source,
    *,
    train_examples: int = 0,
    test_examples: int = 0,
    image_size: int = 0,
    color: str = "",
    resize: str = "stretch",
    test_share: float = 0.2,
    split_seed: int = 0,
    skip_unreadable: bool = False,
    preparation: images.Preparation | None = None,
) -> Dataset:
    """Reads a source's images and makes training and test of its splits.

    A validation split joins the training images where there is a test split too, and is the test
    where there is none. Without either, a share of the images is held out.

    Args:
      source: what `open_source` gave.
      train_examples, test_examples: keep that many, the same share of each class; 0 for all.
      image_size: side that all images are resized to; 0 is their own size, or 64 where they differ.
      color: "rgb" or "grey"; "" is the images' own: grey if none has colour.
      resize: "stretch" or "crop", see `images.Preparation`.
      test_share: share of the images that is held out where the source has no test split.
      split_seed: of that split.
      skip_unreadable: leave out images that cannot be read, and say how many; else they are errors.
      preparation: that of a trained network, in place of `image_size`, `color` and `resize`.
    """
    if resize not in images.RESIZE:
        raise UserError(f"data.resize is {resize!r}, but has to be one of {images.RESIZE}")
    if color and color not in images.CHANNELS:
        raise UserError(f'data.color is {color!r}, but has to be "rgb", "grey" or "" for their own')
    _check_classes(source)
    reader = _Reader(skip_unreadable)
    notes = list(source.notes)
    train, test = _train_and_test(source, test_share, split_seed, notes)
    train = _subset(train, train_examples, "train")
    test = _subset(test, test_examples, "test")
    train, train_shapes = reader.survey(train)
    test, test_shapes = reader.survey(test)
    own = _preparation(train_shapes, test_shapes, 0, "", resize, [])
    if preparation is None:
        preparation = _preparation(train_shapes, test_shapes, image_size, color, resize, notes)
    _check_fits(len(train.labels) + len(test.labels), preparation)
    train_images, train_labels = reader.read(train, preparation)
    test_images, test_labels = reader.read(test, preparation)
    return dataset.finish(
        train_images,
        train_labels,
        test_images,
        test_labels,
        source.class_names,
        preparation,
        source.statistics if own == preparation else None,
        [*notes, *reader.notes()],
    )


def read_split(
    source: Source, split: str, preparation: images.Preparation, skip_unreadable: bool = False
):
    """(images [N, H, W, C], labels [N], notes) of one split; "all" joins those there are."""
    parts = list(source.splits.values()) if split == "all" else [source.splits.get(split)]
    if None in parts:
        raise UserError(
            f"the data has no split {split!r}: it has {', '.join(source.splits)} (or all)"
        )
    joined = parts[0]
    for part in parts[1:]:
        joined = _joined(joined, part)
    reader = _Reader(skip_unreadable)
    _check_fits(len(joined.labels), preparation)
    return *reader.read(joined, preparation), [*source.notes, *reader.notes()]


def _check_classes(source: Source) -> None:
    classes = len(source.class_names)
    if classes < 2:
        raise UserError(
            f"the data has one class only ({', '.join(source.class_names) or 'none'}): "
            "classification needs at least two"
        )
    for name, split in source.splits.items():
        if len(split.labels) and split.labels.max() >= classes:
            raise UserError(
                f"the {name} labels run from {split.labels.min()} to {split.labels.max()}, but "
                f"with {classes} classes they have to lie in 0..{classes - 1}"
            )


def _check_fits(count: int, preparation) -> None:
    needed = count * int(np.prod(preparation.shape))
    left = memory.host_available()
    if left is not None and needed > left:
        raise UserError(
            f"{count} images of {preparation.height}x{preparation.width} take "
            f"{memory.readable(needed)}, but this machine has {memory.readable(left)} of memory "
            "left: lower config.data.image_size, or take fewer images with "
            "config.data.train_examples and config.data.test_examples"
        )


def _train_and_test(source, test_share, seed, notes) -> tuple[Split, Split]:
    splits = source.splits
    if "train" not in splits:
        raise UserError(
            f"the data has the splits {', '.join(splits)}; one has to be called train (test and "
            "val may stand beside it)"
        )
    held_out = next((name for name in VALIDATION if name in splits), None)
    train, test = splits["train"], splits.get("test")
    if test is not None and held_out:
        notes.append(f"the {held_out} images train as well; the test images test")
        return _joined(train, splits[held_out]), test
    if test is None and held_out:
        notes.append(f"there is no test split: the {held_out} images test, and are not trained on")
        return train, splits[held_out]
    if test is None:
        rest, share = dataset.hold_out(train.labels, test_share, seed)
        lost = set(train.labels[share]) - set(train.labels[rest])
        if lost:
            raise UserError(
                f"the class {source.class_names[min(lost)]} has so few images that the test took "
                "all of them: add some, give the test images of their own, or lower "
                "config.data.test_share"
            )
        notes.append(f"there is no test split: {len(share)} images, class by class, are held out")
        return _picked(train, rest), _picked(train, share)
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


class _Reader:
    """Reads images in a few threads. One that cannot be read is an error that names it, or is left
    out and counted."""

    def __init__(self, skip: bool):
        self._skip, self._broken = skip, []

    def survey(self, split: Split) -> tuple[Split, list]:
        """What can be opened of a split, and each image's (height, width, is grey)."""
        if split.shape is not None:
            return split, [split.shape]
        shapes, kept = self._each(lambda i: (*images.size(i), images.is_grey(i)), split)
        return (split if len(kept) == len(split.labels) else _picked(split, kept)), shapes

    def read(self, split: Split, preparation) -> tuple[np.ndarray, np.ndarray]:
        """(images [N, H, W, C], labels [N])."""
        pixels, kept = self._each(lambda i: images.prepare(i, preparation), split)
        if not pixels:
            return np.empty((0, *preparation.shape), np.uint8), split.labels[:0]
        return np.stack(pixels), split.labels[kept]

    def notes(self) -> list[str]:
        if not self._broken:
            return []
        names = ", ".join(each.name for each in self._broken[:3])
        return [f"{len(self._broken)} images could not be read and are left out: {names}"]

    def _each(self, function, split: Split):
        """([function(image)], their indices) over what can be read of a split."""

        def attempt(index):
            try:
                image = split.open(index)
                result = function(image)
                if isinstance(image, Image.Image):
                    image.close()
                return result
            except Exception as error:  # Pillow's decoders raise whatever a broken file makes them
                return _Unreadable(split.name(index), error)

        def attempt_some(start):  # many images a task: small ones take less than a task's start
            return [attempt(i) for i in range(start, min(start + _CHUNK, len(split.labels)))]

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            chunks = pool.map(attempt_some, range(0, len(split.labels), _CHUNK))
            results = [result for chunk in chunks for result in chunk]
        broken = [result for result in results if isinstance(result, _Unreadable)]
        if broken and not self._skip:
            reason = broken[0].error
            if isinstance(reason, UnidentifiedImageError):
                reason = "it is no image of a format that Pillow knows"
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise UserError(
                f"cannot read the image {broken[0].name}{more}: {reason}. Repair or remove it, or "
                "leave such images out with --config.data.skip_unreadable=True"
            )
        self._broken += broken
        kept = [i for i, result in enumerate(results) if not isinstance(result, _Unreadable)]
        return [results[i] for i in kept], np.array(kept, int)


class _Unreadable(NamedTuple):
    name: str
    error: Exception


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


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, of which 360 are held out for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    rest, test = stratified(labels, [len(labels) - DIGITS_TEST, DIGITS_TEST], seed=0)
    whole = _of_arrays("digits", pixels, "digits", labels)
    splits = {"train": _picked(whole, rest), "test": _picked(whole, test)}
    return Source(splits, tuple(map(str, bunch.target_names)))


def _of_arrays(name, pixels, labels_name, labels) -> Split:
    pixels = dataset.check_images(name, pixels)
    labels = dataset.check_labels(labels_name, labels, len(pixels))
    shape = (*pixels.shape[1:3], pixels.shape[-1] == 1)
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
        with zipfile.ZipFile(path), np.load(path) as archive:  # allow_pickle stays False
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
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
                split_of = _of_arrays(
                    f"{path}: {pixels}", arrays[pixels], f"{path}: {labels}", arrays[labels]
                )
                splits[split] = split_of
                top = max(top, int(split_of.labels.max()) + 1)
    if "train" not in splits:
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected train_images and "
            "train_labels (or images and labels, or x_train and y_train), and test_images and "
            "test_labels if there is a test split"
        )
    names = np.ravel(arrays.get("class_names", range(top))).tolist()
    return Source(splits, tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names))


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
                f"tfds has no data set {name!r} to read at {where} "
                f"({str(error).strip().splitlines()[0]}). {tfds_prepare.HINT}"
            ) from error
        builder, ready = None, False
    if not ready and prepare:
        tfds_prepare.run(name, data_dir)
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    elif not ready:
        raise UserError(
            f"the tfds data set {name!r} is not prepared at {builder.data_path}. "
            f"{tfds_prepare.HINT}"
        )
    features = builder.info.features
    pixels, target = (builder.info.supervised_keys or ("image", "label"))[:2]
    known = {key: type(feature) for key, feature in features.items()}
    wanted = (tfds.features.Image, tfds.features.ClassLabel)
    if (known.get(pixels), known.get(target)) != wanted:
        raise UserError(
            f"tfds data set {name!r} has the features {sorted(features)}: image classification "
            "needs an image and a class label"
        )

    def split(part):
        records = builder.as_data_source(split=part, decoders={pixels: tfds.decode.SkipDecoding()})
        labels = np.array([record[target] for record in records], np.int32)

        def read(index):
            image = records[index][pixels]
            return Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image

        height, width, channels = features[pixels].shape
        shape = None if None in (height, width, channels) else (height, width, channels == 1)
        return Split(labels, read, lambda i: f"{part}[{i}] of {name}", shape)

    used = [part for part in builder.info.splits if part in ("train", "test", *VALIDATION)]
    others = sorted(set(builder.info.splits) - set(used))
    return Source(
        {part: split(part) for part in used},
        tuple(features[target].names),
        STATISTICS.get(name.partition("/")[0].partition(":")[0]),
        (f"not used: the splits {', '.join(others)}",) if others else (),
    )
