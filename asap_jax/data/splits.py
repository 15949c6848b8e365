"""Deterministic splits that keep the classes' shares."""

import itertools

import numpy as np


def stratified(labels, sizes, seed):
    """Splits indices into parts of the given sizes, every class spread over them evenly.

    Each class's examples are shuffled and laid out at even distances over [0, 1); the parts are cut
    from that order, so a part of size n holds each class n * share times, up to rounding.

    Args:
      labels: [N] int.
      sizes: sizes of the parts; their sum is at most N.
      seed: of the shuffle.

    Returns:
      A list of sorted index arrays, one a part.
    """
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(position, kind="stable")
    ends = np.cumsum([0, *sizes])
    # Any run of this order has the classes' shares, so the cuts may fall anywhere.
    return [np.sort(order[a:b]) for a, b in itertools.pairwise(ends)]


def grouped(labels, groups, sizes, seed):
    """Splits all indices into parts of about the given sizes; a group lies whole in one of them.

    The groups are dealt out from the largest on, in an order from the seed where they are equal,
    each to the part that lacks most of its classes. A class of several groups gets into every part.

    Args:
      labels: [N] int.
      groups: [N] int, the group of each example.
      sizes: of the parts; their sum is N.
      seed: of the order.

    Returns:
      A list of sorted index arrays, one a part. One may be empty where the groups are too few.
    """
    labels, (names, groups) = np.asarray(labels), np.unique(groups, return_inverse=True)
    shares = np.asarray(sizes) / len(labels)
    wanted = shares[:, None] * np.bincount(labels)[None]  # [parts, classes]
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))[:-1]
    held = [np.unique(labels[rows], return_counts=True) for rows in np.split(order, ends)]
    count = np.array([counts.sum() for _, counts in held])
    dealt = np.random.default_rng(seed).permutation(len(names))
    dealt = dealt[np.argsort(-count[dealt], kind="stable")]
    filled, part_of = np.zeros(wanted.shape), np.empty(len(names), int)
    for group in dealt:
        classes, counts = held[group]
        before = filled[:, classes] / wanted[:, classes]
        after = (filled[:, classes] + counts) / wanted[:, classes]
        ranks = np.stack([before @ counts, filled.sum(1) / shares, after @ counts])
        part = part_of[group] = np.lexsort(np.round(ranks, 9))[0]
        filled[part, classes] += counts
    _spread(held, count, part_of, len(sizes))
    return [np.flatnonzero(part_of[groups] == part) for part in range(len(sizes))]


def _spread(held, count, part_of, parts) -> None:
    """Moves the smallest group of a class into each part that has none, from one that has more."""
    of_class: dict = {}
    for group in np.argsort(count, kind="stable"):
        for label in held[group][0]:
            of_class.setdefault(int(label), []).append(int(group))
    moved = set()
    for label in sorted(of_class):
        for part in range(parts):
            groups = of_class[label]
            if any(part_of[group] == part for group in groups):
                continue
            having = np.bincount([part_of[group] for group in groups], minlength=parts)
            free = [g for g in groups if having[part_of[g]] > 1 and g not in moved]
            if free:
                part_of[free[0]] = part
                moved.add(free[0])


def halves(labels, seed, groups=None):
    """Two stratified halves of the training set: one for omega, one for alpha.

    With `groups` [N], each lies whole in one of them, and they differ in size as the groups do.
    """
    half = len(labels) // 2
    if groups is not None:
        return grouped(labels, groups, [len(labels) - half, half], seed)
    return stratified(labels, [len(labels) - half, half], seed)
