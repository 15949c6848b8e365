"""Data parallelism: one step over several devices, with the batch sharded over them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

AXIS = "data"


def data_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over `devices` (all devices by default)."""
    return Mesh(np.asarray(devices or jax.devices()), (AXIS,))


def split_batches(step: Callable, mesh: Mesh) -> Callable:
    """Runs step(state, *batches) with the state replicated and each batch sharded.

    `step` must be built with `axis_name=AXIS`, so that it averages gradients, statistics and
    metrics itself; the result then equals that of one device up to rounding. The batch size must be
    a multiple of the number of devices.
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
