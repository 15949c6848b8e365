"""Binds data to a step: batches are taken out of the images on the device, and augmented there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from asap_jax.data.augment import Augmentation, augment


class Batch(NamedTuple):
    """images [N, H, W, C] float, labels [N] int32."""

    images: jax.Array
    labels: jax.Array


def augmented(run: Callable, augmentation: Augmentation, keys: Callable[[Any], tuple]) -> Callable:
    """run(state, *batches) as a function of (state, *uint8 images and labels, in turn).

    Args:
      keys: the state -> a random key for each batch.
    """

    def fed(state, *arrays):
        pairs = zip(arrays[::2], arrays[1::2], keys(state), strict=True)
        return run(state, *(Batch(augment(x, augmentation, key), y) for x, y, key in pairs))

    return fed


def indexed(run: Callable) -> Callable:
    """run(state, *images and labels, in turn) as one of (state, all images, all labels, *indices).

    The indices [N] of each batch are all that a step is sent; the data set stays on the device.
    """

    def fed(state, images: jax.Array, labels: jax.Array, *indices: jax.Array):
        return run(state, *(array[rows] for rows in indices for array in (images, labels)))

    return fed
