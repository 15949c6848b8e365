"""Which images make a batch."""

import numpy as np


def epoch_order(indices, batch_size, seed, epoch):
    """The batches of one epoch: [steps, batch_size] indices, shuffled; none is incomplete.

    The order depends on `seed` (a sequence of integers) and the epoch alone, so a resumed epoch
    goes on with the same batches.
    """
    order = np.random.default_rng([*seed, epoch]).permutation(indices)
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def onwards(order, epochs, epoch, step):
    """Yields the batches of all epochs from a step of one on.

    Args:
      order: epoch -> its batches, a sequence.
      epochs: how many there are.
      epoch, step: where to begin.
    """
    for each in range(epoch, epochs):
        yield from order(each)[step:]
        step = 0


def evaluation_batches(count, batch_size):
    """Yields (indices [batch_size], valid [batch_size] bool) over `count` images, in order.

    The last batch is filled up from the start again, and marked as not valid there.
    """
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size)
        yield indices % count, indices < count
