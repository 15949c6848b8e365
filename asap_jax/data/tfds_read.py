"""Prepared tensorflow_datasets data sets as a source; `tfds_prepare` prepares them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from asap_jax.data import kept, tfds_prepare
from asap_jax.data.opened import VALIDATION, Description, Source, Split
from asap_jax.host import processes
from asap_jax.host.errors import UserError

# Published mean and standard deviation of the training images per channel, in [0, 1].
STATISTICS = {
    "cifar10": (
        (0.49139968, 0.48215827, 0.44653124),
        (0.24703233, 0.24348505, 0.26158768),
    ),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.13066,), (0.30811,)),
    "fashion_mnist": ((0.28604,), (0.35302,)),
}

# Images per split, for sets that are not prepared; tfds itself does not provide them.
COUNTS = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
}


def open_tfds(place: str, data_dir: str | None, prepare: bool) -> Source:
    """Opens a data set in array_record format by "NAME", or "NAME+SPLIT" to also train on SPLIT.

    Raises:
      UserError: the set is missing, incomplete, or not image classification.
    """
    import tensorflow_datasets as tfds  # reads array_record without TensorFlow
    from tensorflow_datasets.proto import tf_example_pb2

    name, extra = _parts(place)
    _check_format(name, data_dir)
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
    if builder is None or (prepare and not ready):
        if not processes.alone():
            raise UserError(
                f"the tfds data set {name!r} is to be prepared, which one process has to do alone: "
                "run the command once without --distributed, with --dry_run"
            )
        tfds_prepare.run(name, data_dir)
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    elif not ready:
        raise UserError(
            f"the tfds data set {name!r} is not prepared at {builder.data_path}. "
            f"{tfds_prepare.HINT}"
        )
    _check_splits(builder, ("train", *extra))
    features = builder.info.features
    pixels, target = (builder.info.supervised_keys or ("image", "label"))[:2]
    known = {key: type(feature) for key, feature in features.items()}
    wanted = (tfds.features.Image, tfds.features.ClassLabel)
    if (known.get(pixels), known.get(target)) != wanted:
        raise UserError(
            f"tfds data set {name!r} has the features {sorted(features)}: image classification "
            "needs an image and a class label"
        )

    def parsed(record):
        return tf_example_pb2.Example.FromString(record).features.feature

    def split(part):
        # Only two features of each record are needed; tfds' own decoding of all features takes
        # longer than decoding a small image.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split=part, deserialize_method=raw)

        def read(index):
            record = parsed(records[index])
            (image,) = record[pixels].bytes_list.value
            return Image.open(io.BytesIO(image)), label(record)

        def label(record):
            (value,) = record[target].int64_list.value
            return value

        def read_labels():
            return np.array([label(parsed(record)) for record in records], np.int32)

        size = builder.info.splits[part].num_bytes
        height, width, channels = features[pixels].shape
        shape = None if None in (height, width, channels) else (height, width, channels == 1)
        return Split(
            len(records),
            read,
            read_labels,
            lambda i: f"{part}[{i}] of {name}",
            f"{builder.info.full_name} {part}: {len(records)} records, {size} bytes",
            shape,
            lambda: kept.stamp(builder.info.splits[part].filepaths),
        )

    wanted = ("train", "test", *VALIDATION, *extra)
    splits = {part: split(part) for part in builder.info.splits if part in wanted}
    notes = []
    if "test" in splits and splits["test"].read(0)[1] < 0:  # ImageNet: unlabelled, for its contest
        del splits["test"]
        notes.append("the test images have no labels")
    if others := sorted(set(builder.info.splits) - set(splits)):
        notes.append(f"not used: the splits {', '.join(others)}")
    return Source(
        splits,
        tuple(features[target].names),
        STATISTICS.get(name.partition("/")[0].partition(":")[0]),
        tuple(notes),
        extra=tuple(extra),
    )


def describe_tfds(place: str, data_dir: str | None) -> Description | None:
    """What tfds knows about a set that need not be prepared; None if the name is unknown."""
    import tensorflow_datasets as tfds

    name, extra = _parts(place)
    try:
        info = tfds.builder(name, data_dir=data_dir, file_format="array_record").info
        pixels, target = (info.supervised_keys or ("image", "label"))[:2]
        height, width, channels = info.features[pixels].shape
        class_names = tuple(info.features[target].names)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError, KeyError, AttributeError):
        return None  # opening it reports the error
    base = name.partition("/")[0].partition(":")[0]
    counts = {part: split.num_examples for part, split in info.splits.items()} or COUNTS.get(base)
    used = ("train", "test", *VALIDATION, *extra)
    count = sum(counts.get(part, 0) for part in used) if counts else None
    shape = None if None in (height, width) else (height, width, channels == 1)
    return Description(shape, class_names, count)


def _check_format(name: str, data_dir: str | None) -> None:
    """Raises UserError for a set prepared in a format that only TensorFlow can read."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        prepared, form = Path(builder.data_path).exists(), builder.info.file_format
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError):
        return  # opening it in the right format reports the error
    if prepared and form is not None and form.value != "array_record":
        other = f"{builder.data_path.parent.parent}_array_record"
        raise UserError(
            f"the tfds data set {name!r} at {builder.data_path} is prepared as {form.value}, which "
            "only TensorFlow reads; here it has to be array_record. Where TensorFlow is installed, "
            f"either convert it (tfds convert_format --dataset_version_dir={builder.data_path} "
            f"--out_file_format=array_record --out_dir={other}/{builder.info.version}) and let "
            "--config.data.dir point at a folder in which it lies as NAME/VERSION, or prepare it "
            "anew with --config.data.prepare=True and another --config.data.dir"
        )


def _parts(place: str) -> tuple[str, list[str]]:
    """(name, extra training splits) of "NAME+SPLIT"."""
    name, *extra = place.split("+")
    refused = [part for part in extra if part in ("train", "test", *VALIDATION)]
    if refused or len(set(extra)) < len(extra):
        raise UserError(
            f"tfds:{place}: what stands after + trains beside train, so it has to be another "
            f"split, and once; got {', '.join(refused or extra)} (a validation split trains "
            "by itself where there is a test split)"
        )
    return name, extra


def _check_splits(builder, needed) -> None:
    """Raises UserError if a split or one of its files is missing."""
    splits = builder.info.splits
    missing = [part for part in needed if part not in splits]
    if missing:
        raise UserError(
            f"the tfds data set at {builder.data_path} has no split {' and no '.join(missing)}: it "
            f"has {', '.join(splits) or 'none'}. Name one of those, or prepare the set anew "
            "(--config.data.prepare=True into another --config.data.dir)"
        )
    files = [Path(file) for split in splits.values() for file in split.filepaths]
    gone = [file.name for file in files if not file.exists()]
    if gone:
        raise UserError(
            f"the tfds data set at {builder.data_path} is not whole: {len(gone)} of {len(files)} "
            f"files are missing ({', '.join(gone[:3])}). Copy them there, or remove the folder and "
            "prepare the set anew with --config.data.prepare=True"
        )
