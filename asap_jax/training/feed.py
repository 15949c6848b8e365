"""Feeds data to a step: gathers batches from the images on the device and augments them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from asap_jax.data.augment import Augmentation, augment
from asap_jax.host import backend
from asap_jax.host.devices import Devices


class Batch(NamedTuple):
    """images [N, H, W, C] float, labels [N] int32."""

    images: jax.Array
    labels: jax.Array


def augmented(
    run: Callable,
    augmentation: Augmentation,
    keys: Callable[[Any], tuple],
    devices: Devices = Devices(),
) -> Callable:
    """Turns run(state, *batches) into a function of (state, *uint8 images and labels, alternating).

    Args:
      run: the function to wrap.
      augmentation: applied to the images of each batch.
      keys: state -> one random key per batch.
      devices: share each batch.
    """

    def fed(state, *arrays):
        arrays = devices.share(arrays)
        pairs = zip(arrays[::2], arrays[1::2], keys(state), strict=True)
        with backend.shared_by(devices.count):
            return run(state, *(Batch(augment(x, augmentation, key), y) for x, y, key in pairs))

    return fed


def indexed(run: Callable) -> Callable:
    """Turns run(state, *images and labels) into one of (state, all images, all labels, *indices).

    A step is sent only the indices [N] of each batch; the data set stays on the device.
    """

    def fed(state, images: jax.Array, labels: jax.Array, *indices: jax.Array):
        return run(state, *(array[rows] for rows in indices for array in (images, labels)))

    return fed
