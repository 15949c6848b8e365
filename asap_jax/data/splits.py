"""Deterministic stratified splits."""

import itertools

import numpy as np


def stratified(labels, sizes, seed):
    """Splits indices into parts of the given sizes, with each class spread evenly over the parts.

    Each class's examples are shuffled and placed at equal distances over [0, 1); the parts are cut
    from that order, so a part holds its share of each class, up to rounding.

    Args:
      labels: [N] int.
      sizes: sizes of the parts; their sum is at most N.
      seed: seed of the shuffle.

    Returns:
      A list of sorted index arrays, one per part.
    """
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(position, kind="stable")
    ends = np.cumsum([0, *sizes])
    # Any contiguous range of this order is stratified, so cuts may fall anywhere.
    return [np.sort(order[a:b]) for a, b in itertools.pairwise(ends)]


def grouped(labels, groups, sizes, seed):
    """Splits all indices into parts of approximately the given sizes, keeping groups whole.

    Groups are assigned from the largest on (ties ordered by the seed), each to the part that lacks
    its classes most. A class with at least as many groups as parts occurs in every part where
    possible.

    Args:
      labels: [N] int.
      groups: [N] int, the group of each example.
      sizes: of the parts; their sum is N.
      seed: seed of the order.

    Returns:
      A list of sorted index arrays, one per part. A part may be empty if there are too few groups.
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
    """Moves a class's smallest group into each part without one, from a part with several."""
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

    With `groups` [N], each group lies in one half, so the halves' sizes may differ.
    """
    half = len(labels) // 2
    if groups is not None:
        return grouped(labels, groups, [len(labels) - half, half], seed)
    return stratified(labels, [len(labels) - half, half], seed)
