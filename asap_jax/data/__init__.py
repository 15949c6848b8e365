"""From config to arrays: sources, splits and batches; `augment` runs on the device."""

from asap_jax.data.batches import endless_order, epoch_order, evaluation_batches, onwards
from asap_jax.data.dataset import Dataset, balanced_weights, hold_out
from asap_jax.data.sources import (
    assemble,
    describe_source,
    from_arrays,
    load,
    open_source,
    read_split,
)
from asap_jax.data.splits import halves, stratified
from asap_jax.data.streams import Stream, outgrows_memory, split_batches, stream
from asap_jax.host.errors import UserError


def as_dataset(given, **options) -> Dataset:
    """Returns a `Dataset` from any supported form of data.

    Args:
      given: a `Dataset`, returned as is; the name of a source (see `load`); or arrays as a tuple
        (images, labels) or (images, labels, test_images, test_labels), see `from_arrays`.
      options: passed to `load` or `from_arrays`.
    """
    if isinstance(given, str):
        return load(given, **options)
    if isinstance(given, Dataset):
        preparation = options.get("preparation") or given.preparation
        if preparation == given.preparation:
            return given
        arrays = (given.train_images, given.train_labels, given.test_images, given.test_labels)
        return from_arrays(
            *arrays,
            class_names=given.class_names,
            groups=given.train_groups,
            preparation=preparation,
        )
    if not isinstance(given, tuple | list) or len(given) not in (2, 4):
        raise UserError(
            "data has to be a source's name, a Dataset, or (images, labels) with or without "
            f"(..., test_images, test_labels); got {type(given).__name__}"
        )
    return from_arrays(*given, **options)


__all__ = [
    "Dataset",
    "Stream",
    "as_dataset",
    "assemble",
    "balanced_weights",
    "describe_source",
    "endless_order",
    "epoch_order",
    "evaluation_batches",
    "from_arrays",
    "halves",
    "hold_out",
    "load",
    "onwards",
    "open_source",
    "outgrows_memory",
    "read_split",
    "split_batches",
    "stratified",
    "stream",
]
