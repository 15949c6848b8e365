"""The common form of every source: arrays in memory."""

import hashlib
from dataclasses import dataclass

import numpy as np

from asap_jax.data.images import Preparation, prepare
from asap_jax.data.splits import grouped, stratified
from asap_jax.host.errors import UserError

SPARSE_LABELS = (
    "config.data.sparse_labels=True (sparse_labels=True in Python) makes the ids that occur the "
    "classes"
)
MIXED_SIZE = 64  # default side for images of mixed sizes


@dataclass(frozen=True)
class Dataset:
    """Images in memory.

    Attributes:
      train_images, test_images: [N, H, W, C] uint8.
      train_labels, test_labels: [N] int32.
      class_names: one name per class.
      mean, std: [C] of the training images scaled to [0, 1].
      preparation: how the images were brought to their size and color.
      notes: messages for the user about how the data set was built, one per line.
      train_groups: [N] int, the group of each training image, or None; a group is kept together
        when the training images are split again.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preparation: Preparation
    notes: tuple[str, ...] = ()
    train_groups: np.ndarray | None = None

    @property
    def train_count(self) -> int:
        return len(self.train_labels)

    @property
    def test_count(self) -> int:
        return len(self.test_labels)

    @property
    def nbytes(self) -> int:
        """Size of the images in bytes."""
        return self.train_images.nbytes + self.test_images.nbytes

    def batches(self, part: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """[(images, labels)] of the part, "train" or "test", as a single batch."""
        return [(getattr(self, f"{part}_images"), getattr(self, f"{part}_labels"))]

    def train_sample(self, rows) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) of the training images with these indices."""
        return self.train_images[rows], self.train_labels[rows]

    def digest(self) -> str:
        """A fingerprint of every pixel and label, so that a run resumes with the same data."""
        sha = hashlib.sha256()
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            sha.update(np.ascontiguousarray(getattr(self, name)).data)
        if self.train_groups is not None:
            sha.update(np.ascontiguousarray(self.train_groups).data)
        return sha.hexdigest()[:16]


def finish(
    train_images,
    train_labels,
    test_images,
    test_labels,
    class_names,
    preparation,
    published=None,
    notes=(),
    train_groups=None,
) -> Dataset:
    """Checks the classes, computes statistics if none are published, reports class imbalance."""
    classes = len(class_names)
    for part, labels in (("training", train_labels), ("test", test_labels)):
        if not len(labels):
            raise UserError(f"there are no {part} images")
    counts = np.bincount(train_labels, minlength=classes)
    if not counts.all():
        empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
        raise UserError(
            f"no training image has the class {', '.join(empty[:5])}: add some, or leave the "
            "class out"
        )
    if counts.max() >= 2 * counts.min():
        notes = (
            *notes,
            f"the classes are uneven: {counts.max()} training images of "
            f"{class_names[counts.argmax()]!r}, {counts.min()} of "
            f"{class_names[counts.argmin()]!r} (--config.data.class_weights=balanced weighs "
            "the loss)",
        )
    mean, std = statistics(train_images) if published is None else published
    return Dataset(
        train_images,
        train_labels,
        test_images,
        test_labels,
        tuple(class_names),
        mean,
        std,
        preparation,
        tuple(notes),
        train_groups,
    )


def balanced_weights(labels, classes: int) -> np.ndarray:
    """[classes] float32: N / (classes * images per class), scikit-learn's "balanced"."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * counts)).astype(np.float32)


def hold_out(
    labels, share: float, seed: int, groups=None, key: str = "data.test_share"
) -> list[np.ndarray]:
    """Holds out a stratified share of the images; returns [rest, held out] as indices.

    With `groups` [N], each group stays whole and the share is matched as closely as possible.
    `key` is the config key that sets the share, for error messages.
    """
    count = round(share * len(labels))
    if not 0 < count < len(labels):
        raise UserError(
            f"config.{key} is {share}: of {len(labels)} images that leaves none to train "
            "on or none to test; choose a share between 0 and 1"
        )
    if groups is None:
        return stratified(labels, [len(labels) - count, count], seed)
    rest, held = grouped(labels, groups, [len(labels) - count, count], seed)
    if not len(rest) or not len(held):
        raise UserError(
            f"config.data.group puts all images into {len(np.unique(groups))} group, which cannot "
            f"be split for config.{key}: name what tells objects apart, or leave it out"
        )
    return [rest, held]


def prepare_all(images, preparation: Preparation) -> np.ndarray:
    """[N, H, W, C] uint8 from an array of images, resized if needed."""
    if images.shape[1:] == preparation.shape:
        return images
    return np.stack([prepare(image, preparation) for image in images])


def check_images(name: str, images) -> np.ndarray:
    """[N, H, W, C] uint8; raises UserError if the images are invalid."""
    try:
        images = as_array(images)
    except ValueError as error:
        raise UserError(
            f"{name} mixes shapes: give one array [N, H, W, C], all images of one size"
        ) from error
    if images.dtype == object:
        raise UserError(f"{name} mixes shapes: give one array [N, H, W, C], all of one size")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        hint = ""
        if images.ndim == 4 and images.shape[1] in (1, 3):
            hint = "; these look like [N, C, H, W]: use images.transpose(0, 2, 3, 1)"
        raise UserError(
            f"{name} has the shape {images.shape}, expected [N, H, W] or [N, H, W, C] with 1 or 3 "
            f"channels{hint}"
        )
    if not images.size:
        raise UserError(
            f"{name} holds no image, or one without pixels: its shape is {images.shape}"
        )
    return as_bytes(name, images)


def as_array(value) -> np.ndarray:
    """Converts any array-like: bfloat16 becomes float32, torch tensors are detached.

    Raises:
      ValueError: the value is a ragged list.
    """
    if hasattr(value, "detach"):  # torch, without importing it
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and 8-bit floats
        array = array.astype(np.float32)
    return array


def as_bytes(name: str, images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, ...] of any dtype as uint8; raises UserError if they are invalid."""
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            broken = np.flatnonzero(~np.isfinite(images).all(tuple(range(1, images.ndim))))
            raise UserError(
                f"{name} holds pixels that are not finite (NaN or infinity), first in image "
                f"{broken[0]} of {len(broken)}: repair or leave those out"
            )
        if images.min() < 0 or images.max() > 1:
            raise UserError(
                f"{name} is {images.dtype} from {images.min():g} to {images.max():g}; floats are "
                "read as [0, 1]. Give pixels in 0..255 as uint8: images.round().astype('uint8')"
            )
        return np.round(images * 255).astype(np.uint8)
    if not np.issubdtype(images.dtype, np.integer):
        raise UserError(f"{name} has the type {images.dtype}, expected uint8 or floats in [0, 1]")
    if images.min() < 0 or images.max() > 255:
        raise UserError(
            f"{name} is {images.dtype} from {images.min()} to {images.max()}: scale the pixels to "
            "0..255"
        )
    return images.astype(np.uint8)


def check_labels(name: str, labels, count: int, sparse: bool = False) -> np.ndarray:
    """[N] int32 ([N] int64 of any sign if sparse); raises UserError if the labels are invalid."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise UserError(
            f"{name} has the shape {labels.shape}, expected [{count}], one for each image"
        )
    if not np.issubdtype(labels.dtype, np.integer) and not np.issubdtype(labels.dtype, np.floating):
        raise UserError(f"{name} has to be integers from 0, got {labels.dtype}")
    whole = np.isfinite(labels) & (labels == np.round(labels))
    bounds = np.iinfo(np.int64 if sparse else np.int32)
    # float(2 ** 63 - 1) is 2 ** 63, so the upper bound itself is excluded.
    lowest, above = (bounds.min, bounds.max + 1) if sparse else (0, bounds.max + 1)
    good = whole & (labels >= lowest) & (labels < above)
    if not good.all():
        wrong = np.flatnonzero(~good)
        expected = "integers of 64 bits" if sparse else "integers from 0, a number a class"
        mend = ""
        if not sparse and (whole & (labels >= bounds.min)).all() and labels.max() >= above:
            mend = f"; {SPARSE_LABELS}"
        raise UserError(
            f"{name} has to be {expected}, got {labels[wrong[0]]} at index {wrong[0]}"
            f"{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}{mend}"
        )
    return labels.astype(bounds.dtype)


def as_classes(labels: list[np.ndarray], class_names, sparse: bool) -> tuple[list, tuple[str, ...]]:
    """(labels [N] int32 of each split, one name per class).

    Args:
      labels: of each split.
      class_names: one name per class, indexed by label (for sparse ids, alternatively one for each
        id that occurs, in order); None names the classes by their numbers.
      sparse: labels are arbitrary ids, and the ids that occur are the classes.

    Raises:
      UserError: labels have gaps and no names declare the missing classes.
    """
    names = None if class_names is None else tuple(map(str, class_names))
    ids = np.unique(np.concatenate(labels))
    if sparse:
        if names is None:
            named = tuple(map(str, ids.tolist()))
        elif ids[0] >= 0 and ids[-1] < len(names):
            named = tuple(names[i] for i in ids)
        elif len(names) == len(ids):
            named = names
        else:
            raise UserError(
                f"there are {len(names)} class names for the {len(ids)} ids from {ids[0]} to "
                f"{ids[-1]}: give one for each id that occurs, in the ids' order"
            )
        return [np.searchsorted(ids, each).astype(np.int32) for each in labels], named
    if names is not None:
        return labels, names
    top = int(ids[-1])
    if len(ids) <= top:
        begin = int(np.flatnonzero(ids != np.arange(len(ids)))[0])
        end = int(ids[begin]) - 1
        gap = f"{begin}" if begin == end else f"{begin} to {end}"
        missing = top + 1 - len(ids)
        raise UserError(
            f"no image has the label {gap}{'' if missing == end - begin + 1 else ', among others'}"
            f": the labels run up to {top}, but {missing} of those {top + 1} numbers are missing. "
            f"Number the classes from 0 without gaps, or name them all with class_names; "
            f"{SPARSE_LABELS}"
        )
    return labels, tuple(map(str, range(top + 1)))


def statistics(images):
    """Mean and standard deviation per channel, in [0, 1], from a histogram of the pixels."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        mean.append(float(share @ levels))
        std.append(float(np.sqrt(share @ (levels - mean[-1]) ** 2)))
    if max(std) == 0:
        raise UserError("the training images are all of one colour: nothing to learn from")
    return tuple(mean), tuple(s or 1.0 for s in std)
