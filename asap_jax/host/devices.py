"""The devices that share each batch: data parallelism by sharding; and what is asked of them.

A step is written for one device. Over several, its state is whole on each of them and its batches
are split along their first axis; XLA's partitioner computes the same function from the parts. What
averages over a batch (a norm, a loss, a gradient) then sums over the devices, and random numbers
are those of the whole batch, so the results are those of one device up to rounding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from asap_jax.host.errors import UserError

AXIS = "batch"


class Devices(NamedTuple):
    """Devices of this process; by default one, JAX' default, whose programs know no sharding.

    mesh: a `jax.sharding.Mesh` of one axis, over two or more devices; None for one.
    deterministic: whether their programs give the same bits at each run, see `options`.
    """

    mesh: Any = None
    deterministic: bool = False

    @classmethod
    def of(cls, devices: Sequence[Any], deterministic: bool = False) -> "Devices":
        if len(devices) < 2:
            return cls(None, deterministic)
        mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        return cls(mesh, deterministic)

    @property
    def options(self) -> dict:
        """`compiler_options` for every program whose numbers count.

        On a GPU XLA chooses kernels by timing them, anew at each compilation, and some of them add
        in whatever order threads arrive. Deterministic ones are fewer, and chosen without a look at
        the clock.
        """
        gpu = jax.default_backend() == "gpu"
        return {"xla_gpu_deterministic_ops": True} if self.deterministic and gpu else {}

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def whole(self) -> NamedSharding | None:
        """The sharding of arrays that each device holds whole."""
        return self.mesh and NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding | None:
        """The sharding of a batch, along its first axis."""
        return self.mesh and NamedSharding(self.mesh, PartitionSpec(AXIS))

    def among(self, batch_size: int) -> "Devices":
        """The most of these devices, from the first on, that take equal shares of such a batch."""
        if self.mesh is None:
            return self
        count = max(n for n in range(1, self.count + 1) if batch_size % n == 0)
        if count == self.count:
            return self
        return Devices.of(self.mesh.devices.tolist()[:count], self.deterministic)

    def put(self, tree):
        """The tree's arrays, also NumPy's, whole on every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return jax.device_put(tree, self.whole)

    def place(self, batch_size: int) -> NamedSharding | None:
        """The sharding of a batch: equal shares, or whole where the devices do not divide it."""
        return self.whole if batch_size % self.count else self.split

    def share(self, tree):
        """Under jit: the tree of batches, each at its `place`."""

        def share(array):
            return jax.lax.with_sharding_constraint(array, self.place(len(array)))

        return tree if self.mesh is None else jax.tree.map(share, tree)

    def home(self, tree):
        """The tree, from arrays that are whole on every device, on JAX' default device."""
        return tree if self.mesh is None else jax.tree.map(jnp.asarray, jax.device_get(tree))


def alike() -> list[Any]:
    """The devices of this process that may share a batch: those of the first one's kind.

    A display's card beside one for computing is none of them. Where the program has set JAX'
    default device, there is no other.
    """
    found = jax.local_devices()
    config: Any = jax.config  # it makes its options attributes at run time
    default = config.jax_default_device  # a device, the name of a platform, or None
    if default is not None:
        return [default] if isinstance(default, jax.Device) else found[:1]
    return [each for each in found if each.device_kind == found[0].device_kind]


def local(wanted: int = 0, deterministic: bool = False) -> Devices:
    """The first `wanted` devices of this process, or all for 0, see `alike`.

    Raises:
      UserError: there are fewer.
    """
    found = alike()
    if wanted > len(found):
        raise UserError(
            f"config.devices is {wanted}, but this process has {len(found)} to share a batch "
            f"({found[0].device_kind}): choose at most that, or 0 for all"
        )
    return Devices.of(found[: wanted or None], deterministic)


def check_share(devices: Devices, key: str, batch_size: int) -> None:
    """Raises UserError if the devices cannot take equal shares of a batch.

    Args:
      devices: those that have to share it.
      key: of the config, for the message.
      batch_size: images that are computed together.
    """
    count, over = devices.count, batch_size % devices.count
    if over:
        sizes = sorted({max(batch_size - over, count), batch_size - over + count})
        raise UserError(
            f"{key} is {batch_size}, which config.devices={count} devices cannot share equally: "
            f"choose {' or '.join(map(str, sizes))}, or config.devices="
            f"{devices.among(batch_size).count}"
        )
