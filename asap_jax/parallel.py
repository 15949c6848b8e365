"""Data parallelism: one step over several devices, the batch split among them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

AXIS = "data"


def data_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over `devices` (all of them by default)."""
    return Mesh(np.asarray(devices or jax.devices()), (AXIS,))


def split_batches(step: Callable, mesh: Mesh) -> Callable:
    """Makes step(state, *batches) run with the state on every device and each batch split.

    `step` has to be built with `axis_name=AXIS`, so that it averages gradients, statistics and
    metrics itself; then the result equals that of one device up to rounding. The batch size has to
    be a multiple of the number of devices.
    """
    whole, split = PartitionSpec(), PartitionSpec(AXIS)

    def run(state, *batches):
        mapped = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(whole, *(split for _ in batches)),
            out_specs=whole,
            check_vma=False,
        )
        return mapped(state, *batches)

    return run
