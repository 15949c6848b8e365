"""Assigns a source's images to training and test."""

import collections
import functools

import numpy as np

from asap_jax.data import dataset
from asap_jax.data.opened import VALIDATION, Source, Split, joined, picked
from asap_jax.data.splits import stratified
from asap_jax.host.errors import UserError


def train_and_test(
    source: Source,
    train_examples: int = 0,
    test_examples: int = 0,
    test_share: float = 0.2,
    split_seed: int = 0,
    at_most: bool = False,
) -> tuple[Split, Split, list[str]]:
    """(training images, test images, notes for the user).

    The source's extra splits are used for training. A validation split is used for training if
    there is a test split, otherwise as the test split. Without either, a share of the images is
    held out.

    Args:
      source: an opened source.
      train_examples, test_examples: size of a stratified subset; 0 for all.
      test_share: share of the images held out if the source has no test split.
      split_seed: seed of the held-out split.
      at_most: use all images of a part that has fewer than `train_examples` or `test_examples`.
    """
    notes = list(source.notes)
    train, test = _by_name(source, test_share, split_seed, notes)
    _check_groups(train, test)
    if at_most:
        for part, split, count in (("train", train, train_examples), ("test", test, test_examples)):
            if split.count < count:
                notes.append(
                    f"config.data.{part}_examples is {count}, but there are only {split.count}: "
                    "all are taken"
                )
        train_examples = min(train_examples, train.count)
        test_examples = min(test_examples, test.count)
    return _subset(train, train_examples, "train"), _subset(test, test_examples, "test"), notes


def named(source: Source, split: str) -> Split:
    """One split; "all" joins all of them."""
    if split == "all":
        return functools.reduce(joined, source.splits.values())
    if split not in source.splits:
        raise UserError(
            f"the data has no split {split!r}: it has {', '.join(source.splits)} (or all)"
        )
    return source.splits[split]


def check_classes(source: Source) -> None:
    """Raises UserError for fewer than two classes or duplicate class names."""
    counts = collections.Counter(source.class_names)
    repeated = {name for name, count in counts.items() if count > 1}
    if repeated:
        raise UserError(
            f"class names have to differ, but there is more than one {', '.join(sorted(repeated))}"
        )
    if len(source.class_names) < 2:
        raise UserError(
            f"the data has one class only ({', '.join(source.class_names) or 'none'}): "
            "classification needs at least two"
        )


def check_labels(source: Source) -> None:
    """Raises UserError for a label without a class; reads all labels."""
    classes = len(source.class_names)
    for name, split in source.splits.items():
        if split.count and split.labels.max() >= classes:
            raise UserError(
                f"the {name} labels run from {split.labels.min()} to {split.labels.max()}, but "
                f"with {classes} classes they have to lie in 0..{classes - 1}"
            )


def _by_name(source, test_share, seed, notes) -> tuple[Split, Split]:
    splits = source.splits
    if "train" not in splits:
        raise UserError(
            f"the data has the splits {', '.join(splits)}; one has to be called train (test and "
            "val may stand beside it); of folders --config.data.train=FOLDER and "
            "--config.data.test=FOLDER name which train and test"
        )
    train, test = splits["train"], splits.get("test")
    if source.extra:
        notes.append(f"the {' and '.join(source.extra)} images train as well")
        train = functools.reduce(joined, [train, *(splits[name] for name in source.extra)])
    validation = [name for name in VALIDATION if name in splits]
    held_out, names = [splits[name] for name in validation], " and ".join(validation)
    if test is not None and validation:
        notes.append(f"the {names} images train as well; the test images test")
        return functools.reduce(joined, [train, *held_out]), test
    if validation:
        notes.append(f"there is no test split: the {names} images test, and are not trained on")
        return train, functools.reduce(joined, held_out)
    if test is not None:
        return train, test
    rest, share = dataset.hold_out(train.labels, test_share, seed, train.groups)
    lost = set(train.labels[share]) - set(train.labels[rest])
    if lost:
        raise UserError(
            f"the class {source.class_names[min(lost)]} has so few images that the test took "
            "all of them: add some, give the test images of their own, or lower "
            "config.data.test_share"
        )
    groups = ""
    if train.groups is not None:
        held = len(np.unique(train.groups[share]))
        groups = f", {held} of {len(np.unique(train.groups))} groups whole"
    notes.append(
        f"there is no test split: {len(share)} images, class by class{groups}, are held out"
    )
    return picked(train, rest), picked(train, share)


def _check_groups(train, test) -> None:
    """Raises UserError if a group has images in both parts."""
    if train.groups is None or test.groups is None:
        return
    common = np.intersect1d(train.groups, test.groups)
    if len(common):
        first, second = (
            part.name(int(np.flatnonzero(part.groups == common[0])[0])) for part in (train, test)
        )
        raise UserError(
            f"{len(common)} groups (config.data.group) have images in training and in test, as "
            f"{first} and {second}: join the two, so that whole groups are held out, or leave the "
            "groups out if these splits are to be taken as they are"
        )


def _subset(split: Split, count: int, part: str) -> Split:
    """A stratified subset of `count` images; all of them if 0."""
    if count in (0, split.count):
        return split
    if not 0 < count < split.count:
        raise UserError(
            f"config.data.{part}_examples has to lie between 1 and {split.count}, or be 0 for all; "
            f"got {count}"
        )
    return picked(split, stratified(split.labels, [count], seed=0)[0])
