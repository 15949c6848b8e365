"""From a config to arrays: sources, splits, batches; `augment` runs on the device."""

from asap_jax.data.batches import epoch_order, evaluation_batches
from asap_jax.data.sources import Dataset, load
from asap_jax.data.splits import halves, stratified

__all__ = ["Dataset", "epoch_order", "evaluation_batches", "halves", "load", "stratified"]
