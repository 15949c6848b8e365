"""Selects the images of each batch."""

import numpy as np


def epoch_order(indices, batch_size, seed, epoch):
    """Batches of one epoch: [steps, batch_size] shuffled indices; an incomplete batch is dropped.

    The order depends only on `seed` (a sequence of integers) and the epoch, so a resumed epoch
    continues with the same batches.
    """
    order = np.random.default_rng([*seed, epoch]).permutation(indices)
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def endless_order(indices, batch_size: int, seed, epoch: int, step: int):
    """Yields the batches of an epoch of any length, from a step on: one shuffle after another.

    The order depends only on `seed` (a sequence of integers), the epoch and the step.
    """
    steps = len(indices) // batch_size
    turn, step = divmod(step, steps)
    while True:
        order = np.random.default_rng([*seed, epoch, turn]).permutation(indices)
        yield from order[: steps * batch_size].reshape(steps, batch_size)[step:]
        turn, step = turn + 1, 0


def onwards(order, epochs, epoch, step):
    """Yields the batches of all epochs, starting at a given step.

    Args:
      order: epoch -> its batches, a sequence.
      epochs: number of epochs.
      epoch, step: where to start.
    """
    for each in range(epoch, epochs):
        yield from order(each)[step:]
        step = 0


def evaluation_batches(count, batch_size):
    """Yields (indices [batch_size], valid [batch_size] bool) over `count` images, in order.

    The last batch wraps around to the first images, which are marked as not valid.
    """
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size)
        yield indices % count, indices < count
