"""Accuracy over a whole set, in batches of one compiled shape."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from asap_jax.data.augment import normalise
from asap_jax.data.batches import evaluation_batches


def make_accuracy(logits: Callable, images, labels, mean, std, batch_size: int) -> Callable:
    """Builds accuracy(*arguments) -> share of `images` that logits(*arguments, batch) gets right.

    Args:
      logits: pure function of its arguments and normalised images [N, H, W, C] -> [N, classes].
      images, labels: [N, H, W, C] uint8 and [N] int32.
      mean, std: [C], the normalisation.
      batch_size: images at a time.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    @jax.jit
    def correct(arguments, images, labels, indices, valid):
        predicted = logits(*arguments, normalise(images[indices], mean, std)).argmax(-1)
        return jnp.sum((predicted == labels[indices]) & valid)

    def accuracy(*arguments) -> float:
        total = sum(
            int(correct(arguments, images, labels, indices, valid))
            for indices, valid in evaluation_batches(len(labels), min(batch_size, len(labels)))
        )
        return total / len(labels)

    return accuracy
