"""From a config to arrays: sources, splits, batches; `augment` runs on the device."""

from asap_jax.data.batches import epoch_order, evaluation_batches
from asap_jax.data.dataset import Dataset, balanced_weights, from_arrays
from asap_jax.data.sources import load
from asap_jax.data.splits import halves, stratified


def as_dataset(given, **options) -> Dataset:
    """A `Dataset` from whatever form the data comes in.

    Args:
      given: a `Dataset`; the name of a source (see `load`); or arrays (images, labels) or (images,
        labels, test_images, test_labels), as a tuple (see `from_arrays`).
      options: of `load` or `from_arrays`.
    """
    if isinstance(given, Dataset):
        preparation = options.get("preparation") or given.preparation
        if preparation == given.preparation:
            return given
        arrays = (given.train_images, given.train_labels, given.test_images, given.test_labels)
        return from_arrays(*arrays, class_names=given.class_names, preparation=preparation)
    if isinstance(given, str):
        return load(given, **options)
    return from_arrays(*given, **options)


__all__ = [
    "Dataset",
    "as_dataset",
    "balanced_weights",
    "epoch_order",
    "evaluation_batches",
    "from_arrays",
    "halves",
    "load",
    "stratified",
]
