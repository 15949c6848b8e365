"""Where images come from. Every source ends as arrays in memory: uint8 images and int32 labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asap_jax.data.splits import stratified

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


@dataclass(frozen=True)
class Dataset:
    """Images in memory.

    Attributes:
      train_images, test_images: [N, H, W, C] uint8.
      train_labels, test_labels: [N] int32.
      class_names: a name per class.
      mean, std: [C] of the training images scaled to [0, 1].
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(source: str, data_dir: str | None = None, train_examples=None, test_examples=None):
    """Loads a data set.

    Args:
      source: "digits", or "tfds:NAME" for an image classification data set of tensorflow_datasets.
      data_dir: folder that holds tfds' prepared data sets (tfds' own default if None).
      train_examples, test_examples: keep that many, the same number of each class as far as
        possible; None for all.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: an unknown source, or more examples asked for than there are.
      FileNotFoundError: the tfds data set is not prepared at `data_dir`.
    """
    if source == "digits":
        read, names = _digits()
    elif source.startswith("tfds:"):
        read, names = _tfds(source.removeprefix("tfds:"), data_dir)
    else:
        raise ValueError(f'unknown data source {source!r}: known are "digits" and "tfds:NAME"')
    train = read("train", train_examples)
    test = read("test", test_examples)
    mean, std = STATISTICS.get(source.removeprefix("tfds:"), (None, None))
    if mean is None:
        pixels = train[0].reshape(-1, train[0].shape[-1]) / 255
        mean, std = (tuple(map(float, s)) for s in (pixels.mean(0), pixels.std(0)))
    return Dataset(*train, *test, names, mean, std)


def _digits():
    """scikit-learn's 1,797 handwritten digits, 8 x 8, of which 360 are held out for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    rest, test = stratified(labels, [len(labels) - DIGITS_TEST, DIGITS_TEST], seed=0)
    parts = {"train": rest, "test": test}

    def read(split, count):
        kept = parts[split][_subset(labels[parts[split]], count, split)]
        return images[kept], labels[kept]

    return read, tuple(map(str, bunch.target_names))


def _tfds(name, data_dir):
    import tensorflow_datasets as tfds  # reads array_record without TensorFlow

    prepare = (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir={data_dir!r}, file_format='array_record').download_and_prepare()\""
    )
    hint = (
        f"Prepare it once, which needs TensorFlow (pip install tensorflow): {prepare}; or let "
        "--config.data.dir point at a folder that holds it prepared, in the array_record format."
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        raise FileNotFoundError(
            f"tfds finds no data set {name!r} at {data_dir or 'its default folder'}. {hint}"
        ) from error
    if not Path(builder.data_path).exists():
        raise FileNotFoundError(
            f"the tfds data set {name!r} is not prepared at {builder.data_path}. {hint}"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(
            f"tfds data set {name!r} has the features {sorted(features)}; image classification "
            "needs 'image' and 'label'"
        )
    missing = {"train", "test"} - set(builder.info.splits)
    if missing:
        raise ValueError(
            f"tfds data set {name!r} lacks the split {sorted(missing)}; it has "
            f"{sorted(builder.info.splits)}"
        )

    def read(split, count):
        undecoded = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        labels = np.array([record["label"] for record in undecoded], np.int32)
        kept = _subset(labels, count, split)
        records = builder.as_data_source(split=split)
        shape = records[int(kept[0])]["image"].shape
        images = np.empty((len(kept), *shape), np.uint8)
        for i, index in enumerate(kept):
            image = records[int(index)]["image"]
            if image.shape != shape:
                raise ValueError(
                    f"tfds data set {name!r} mixes image sizes ({shape} and {image.shape}); images "
                    "of one size are needed"
                )
            images[i] = image
        return images, labels[kept]

    return read, tuple(features["label"].names)


def _subset(labels, count, split):
    """Indices of `count` examples, the classes' shares kept; all of them if `count` is None."""
    if count is None or count == len(labels):
        return np.arange(len(labels))
    if not 0 < count < len(labels):
        raise ValueError(
            f"data.{split}_examples has to lie between 1 and {len(labels)}, got {count}"
        )
    return stratified(labels, [count], seed=0)[0]
