"""Data sources: scikit-learn's digits, tfds, folders, CSV files, npz files, arrays.

A source opens as splits, each a function that reads one image and its label. The remaining steps
are shared: assigning splits to training and test, subsets, color, size, arrays.
"""

import dataclasses
from pathlib import Path

import numpy as np

from asap_jax.data import dataset, images, roles
from asap_jax.data.archives import npz
from asap_jax.data.dataset import Dataset
from asap_jax.data.folders import CINIC10_DESCRIBED, FREIBURG_DESCRIBED, cinic10, folder, freiburg
from asap_jax.data.kept import Kept
from asap_jax.data.opened import Choices, Description, Grouping, Source, numbered, of_arrays, picked
from asap_jax.data.reading import Reader
from asap_jax.data.splits import stratified
from asap_jax.data.tables import table
from asap_jax.data.tfds_read import describe_tfds, open_tfds
from asap_jax.host import memory
from asap_jax.host.errors import UserError

DIGITS_TEST = 360
KINDS = {"folder": folder, "csv": table, "cinic10": cinic10, "freiburg": freiburg, "npz": npz}
DESCRIBED = {"cinic10": CINIC10_DESCRIBED, "freiburg": FREIBURG_DESCRIBED}
# The choices that each kind of source supports; other kinds support none.
TAKES = {
    "folder": ("train", "test", "images", "path_column", "label_column", "group", "max_pixels"),
    "csv": ("test", "images", "path_column", "label_column", "split_column", "group", "max_pixels"),
    "npz": ("sparse_labels",),
    "arrays": ("sparse_labels",),
}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "train_groups")
SOURCES = '"digits", "tfds:NAME", ' + ", ".join(f'"{kind}:PATH"' for kind in KINDS)


def load(
    source: str,
    data_dir: str | None = None,
    *,
    prepare: bool = False,
    choices: Choices = Choices(),
    **options,
) -> Dataset:
    """Loads a data set.

    Args:
    Args:
      source: "digits"; "tfds:NAME" for an image classification data set of tensorflow_datasets
        ("tfds:NAME+SPLIT" to also train on another of its splits); "folder:PATH" for class folders
        (with or without train, val and test folders above them); "csv:PATH" for a list of images
        and labels; "cinic10:PATH" and "freiburg:PATH" for those data sets as unpacked; "npz:PATH"
        for a NumPy archive (see `npz`).
      data_dir: folder with tfds' prepared data sets (tfds' default if None).
      prepare: let tfds download and prepare a missing set (requires TensorFlow).
      choices: how to open the source; docs/data.md lists the choices each source supports.
      options: see `assemble`; may also include fields of `choices`.

    Raises:
      UserError: the source is invalid; the message says how to fix it.
    """
    for key in [key for key in options if key in Choices._fields]:
        choices = choices._replace(**{key: options.pop(key)})
    return assemble(open_source(source, data_dir, prepare, choices), **options)


def open_source(
    source: str,
    data_dir: str | None = None,
    prepare: bool = False,
    choices: Choices = Choices(),
) -> Source:
    """Opens the splits of a named source without reading images; see `load`."""
    kind, _, place = source.partition(":")
    check_choices(kind, choices)
    if source == "digits":
        return _digits()
    if kind == "tfds" and place:
        return open_tfds(place, data_dir, prepare)
    if kind in KINDS and place:
        return KINDS[kind](Path(place).expanduser(), choices)
    raise UserError(f"unknown data source {source!r}: known are {SOURCES}")


def describe_source(source: str, data_dir: str | None = None) -> Description | None:
    """What is known about a published data set even if it is not on disk; None for others."""
    kind, _, place = source.partition(":")
    if kind == "tfds" and place:
        return describe_tfds(place, data_dir)
    return DESCRIBED.get(kind)


def check_choices(kind: str, choices: Choices) -> None:
    """Raises UserError for a choice that this kind of source, or "arrays", does not support."""
    if kind == "arrays" and choices.group:
        raise UserError(
            f"config.data.group is {choices.group!r}, but arrays have no paths: make a Dataset "
            "with data.from_arrays(images, labels, groups=...), a group for each image"
        )
    for key, value in choices._asdict().items():
        if value and key not in TAKES.get(kind, ()):
            having = [f"{name}:PATH" for name in TAKES if name != "arrays" and key in TAKES[name]]
            raise UserError(
                f"config.data.{key} is {value!r}, which the source {kind!r} knows nothing of: it "
                f"belongs to {' and '.join(having)}; leave it out"
            )


def from_arrays(
    images,
    labels,
    test_images=None,
    test_labels=None,
    *,
    class_names=None,
    sparse_labels: bool = False,
    groups=None,
    **options,
) -> Dataset:
    """Creates a data set from arrays.

    Args:
      images: [N, H, W] or [N, H, W, C], C 1 or 3; uint8, other integers in 0..255, or floats in
        [0, 1], which are rounded to 255 steps.
      labels: [N] or [N, 1] integers from 0.
      test_images, test_labels: the same for testing; if None, a share of `images` is held out.
      class_names: one name per class; defaults to the labels' numbers.
      sparse_labels: labels may be arbitrary 64-bit ids; the ids that occur are the classes, in
        order, named after the ids (or by class_names).
      groups: [N] numbers or names, for data with several images of one object: images of a group
        stay together in a held-out test split and in the halves of a search.
      options: see `assemble`.

    Raises:
      UserError: shapes, dtypes or values are invalid.
    """
    if (test_images is None) != (test_labels is None):
        raise UserError("test_images and test_labels go together: one of them is missing")
    splits = {"train": of_arrays("images", images, "labels", labels, sparse_labels)}
    if test_images is not None:
        splits["test"] = of_arrays(
            "test_images", test_images, "test_labels", test_labels, sparse_labels
        )
    splits, class_names = numbered(splits, class_names, sparse_labels)
    if groups is not None:
        names = np.asarray(groups).astype(str).tolist()
        if np.shape(groups) != (splits["train"].count,):
            raise UserError(
                f"groups has the shape {np.shape(groups)}, expected [{splits['train'].count}], one "
                "for each training image"
            )
        numbers = Grouping().of_names(names)
        splits["train"] = dataclasses.replace(splits["train"], groups=numbers)
    return assemble(Source(splits, class_names, in_memory=True), **options)


def assemble(
    source: Source,
    *,
    train_examples: int = 0,
    test_examples: int = 0,
    image_size: int = 0,
    color: str = "",
    resize: str = "stretch",
    bits: int = 0,
    test_share: float = 0.2,
    split_seed: int = 0,
    at_most: bool = False,
    skip_unreadable: bool = False,
    preparation: images.Preparation | None = None,
) -> Dataset:
    """Reads a source's images and builds the training and test sets from its splits.

    Args:
      source: result of `open_source`.
      train_examples, test_examples, test_share, split_seed, at_most: see `roles.train_and_test`.
      image_size: side to resize all images to; 0 keeps their size, or uses 64 if sizes differ.
      color: "rgb" or "grey"; "" keeps the images' own: grey if none has color.
      resize: "stretch" or "crop", see `images.Preparation`.
      bits: depth of deep images, see `images.Preparation`; 0 infers it from the largest value.
      skip_unreadable: skip and count unreadable images instead of raising an error.
      preparation: that of a trained network; overrides `image_size`, `color`, `resize`, `bits`.

    Results that are slow to read are cached, see `kept`.
    """
    asked = {key: value for key, value in locals().items() if key != "source"}
    images.check_options(color, resize, bits)
    if resize == "random_crop":
        raise UserError(
            'config.data.resize is "random_crop", another part of the image each time, which '
            "images in memory cannot give: stream them (--mode=train with "
            "--config.data.streaming=on), or choose stretch or crop"
        )
    roles.check_classes(source)
    kept = Kept(source, asked)
    if (found := kept.read(_check_fits_again)) is not None:
        return _as_it_was(*found, source.class_names)
    roles.check_labels(source)
    reader = Reader(skip_unreadable)
    train, test, notes = roles.train_and_test(
        source, train_examples, test_examples, test_share, split_seed, at_most
    )
    train, train_shapes = reader.survey(train)
    test, test_shapes = reader.survey(test)
    own = _preparation(train_shapes, test_shapes, 0, "", resize, bits, [])
    if preparation is None:
        preparation = _preparation(
            train_shapes, test_shapes, image_size, color, resize, bits, notes
        )
    _check_fits(train.count + test.count, preparation)
    train_images, read = reader.read_images(train, preparation)
    train_labels = train.labels[read]
    test_images, test_labels = reader.read(test, preparation)
    made = dataset.finish(
        train_images,
        train_labels,
        test_images,
        test_labels,
        source.class_names,
        preparation,
        source.statistics if own == preparation else None,
        [*notes, *reader.notes()],
        None if train.groups is None else np.unique(train.groups[read], return_inverse=True)[1],
    )
    if not reader.notes():  # do not cache if images were skipped: they may be readable next time
        record = {key: getattr(made, key) for key in ("mean", "std", "preparation", "notes")}
        arrays = {key: getattr(made, key) for key in ARRAYS}
        kept.write(
            {key: array for key, array in arrays.items() if array is not None},
            record | {"count": made.train_count + made.test_count},
        )
    return dataclasses.replace(made, notes=(*made.notes, *kept.notes))


def read_split(
    source: Source, split: str, preparation: images.Preparation, skip_unreadable: bool = False
):
    """(images [N, H, W, C], labels [N], notes) of one split; "all" joins all splits."""
    whole = roles.named(source, split)
    asked = {"split": split, "preparation": preparation, "skip_unreadable": skip_unreadable}
    kept = Kept(source, asked)
    if (found := kept.read(_check_fits_again)) is not None:
        arrays = found[0]
        return arrays["images"], arrays["labels"], list(source.notes)
    reader = Reader(skip_unreadable)
    _check_fits(whole.count, preparation)
    pixels, labels = reader.read(whole, preparation)
    if not reader.notes():
        record = {"count": whole.count, "preparation": preparation}
        kept.write({"images": pixels, "labels": labels}, record)
    return pixels, labels, [*source.notes, *reader.notes(), *kept.notes]


def _as_it_was(arrays, record, class_names) -> Dataset:
    """Restores a cached data set."""
    return Dataset(
        **arrays,
        class_names=tuple(class_names),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        preparation=images.Preparation(*record["preparation"]),
        notes=tuple(record["notes"]),
    )


def _check_fits_again(record) -> None:
    """Raises UserError if a cached data set does not fit into memory."""
    _check_fits(record["count"], images.Preparation(*record["preparation"]))


def _check_fits(count: int, preparation) -> None:
    needed = count * int(np.prod(preparation.shape))
    left = memory.host_available()
    if left is not None and needed > left:
        raise UserError(
            f"{count} images of {preparation.height}x{preparation.width} take "
            f"{memory.readable(needed)}, but this machine has {memory.readable(left)} of memory "
            "left: lower config.data.image_size, or take fewer images with "
            "config.data.train_examples and config.data.test_examples (--mode=train can stream "
            "them: config.data.streaming)"
        )


def _preparation(train_shapes, test_shapes, image_size, color, resize, bits, notes):
    shapes = {*train_shapes, *test_shapes}
    if not color:
        color = "grey" if all(grey for _, _, grey, _ in shapes) else "rgb"
    sizes = {(height, width) for height, width, _, _ in shapes}
    if image_size:
        sizes = {(image_size, image_size)}
    elif len(sizes) > 1:
        smallest, largest = min(map(min, sizes)), max(map(max, sizes))
        notes.append(
            f"the images have sides of {smallest} to {largest} pixels: all are resized to "
            f"{dataset.MIXED_SIZE}x{dataset.MIXED_SIZE} (--config.data.image_size changes it)"
        )
        sizes = {(dataset.MIXED_SIZE, dataset.MIXED_SIZE)}
    if not sizes:
        raise UserError("the data holds no image that can be read")
    deep = [top for _, _, _, top in shapes if top is not None]
    if deep:
        bits = bits or images.depth(max(deep))
        notes.append(
            f"there are images of more than eight bits, with values up to {max(deep)}: "
            f"{(1 << bits) - 1} is white in all of them (--config.data.bits changes it)"
        )
    return images.Preparation(*sizes.pop(), color, resize, bits)


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, with 360 held out for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    rest, test = stratified(labels, [len(labels) - DIGITS_TEST, DIGITS_TEST], seed=0)
    whole = of_arrays("digits", pixels, "digits", labels)
    splits = {"train": picked(whole, rest), "test": picked(whole, test)}
    return Source(splits, tuple(map(str, bunch.target_names)), in_memory=True)
