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


def halves(labels, seed):
    """Two stratified halves of the training set: one for omega, one for alpha."""
    half = len(labels) // 2
    return stratified(labels, [len(labels) - half, half], seed)
