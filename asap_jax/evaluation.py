"""Accuracy over a whole set, in batches of one compiled shape."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.data.augment import normalise
from asap_jax.data.batches import evaluation_batches


def make_accuracy(
    logits: Callable, images, labels, mean, std, batch_size: int, rows=None
) -> Callable:
    """Builds accuracy(*arguments, limit=None) -> share that logits(*arguments, batch) gets right.

    `limit` is the number of images to look at, the first of them; None is all.

    Args:
      logits: pure function of its arguments and normalised images [N, H, W, C] -> [N, classes].
      images, labels: [N, H, W, C] uint8 and [N] int32.
      mean, std: [C], the normalisation.
      batch_size: images at a time.
      rows: indices of those to measure on; None for all.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    rows = np.arange(len(labels)) if rows is None else np.asarray(rows)
    batch_size = min(batch_size, len(rows))

    @jax.jit
    def correct(arguments, images, labels, indices, valid):
        predicted = logits(*arguments, normalise(images[indices], mean, std)).argmax(-1)
        return jnp.sum((predicted == labels[indices]) & valid)

    def accuracy(*arguments, limit: int | None = None) -> float:
        count = len(rows) if limit is None else min(limit, len(rows))
        total = sum(
            int(correct(arguments, images, labels, rows[indices], valid))
            for indices, valid in evaluation_batches(count, batch_size)
        )
        return total / count

    return accuracy
