"""The devices that share each batch: data parallelism by sharding; and what is asked of them.

A step is written for one device. Over several, its state is whole on each of them and its batches
are split along their first axis; XLA's partitioner computes the same function from the parts. What
averages over a batch (a norm, a loss, a gradient) then sums over the devices, and random numbers
are those of the whole batch, so the results are those of one device up to rounding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from asap_jax.host import processes
from asap_jax.host.errors import UserError

AXIS = "batch"


class Devices(NamedTuple):
    """Devices of this process; by default one, JAX' default, whose programs know no sharding.

    Where several processes share a run, they are those of all: each process then has the values of
    all arrays, and puts them on its own.

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
        if processes.alone():
            return jax.device_put(tree, self.whole)
        return jax.tree.map(self._put, tree)

    def _put(self, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = self._put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(key, impl=jax.random.key_impl(leaf))
        place = self.whole
        assert place is not None  # several processes have several devices
        if isinstance(leaf, jax.Array) and leaf.sharding == place:
            return leaf
        value = np.asarray(leaf)
        value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
        return jax.make_array_from_callback(value.shape, place, value.__getitem__)

    def place(self, batch_size: int) -> NamedSharding | None:
        """The sharding of a batch: equal shares, or whole where the devices do not divide it."""
        return self.whole if batch_size % self.count else self.split

    def rows(self, batch_size: int) -> range:
        """Those of a batch that this process's devices hold at its `place`."""
        place = self.mesh and self.place(batch_size)
        if not place:
            return range(batch_size)
        own = place.addressable_devices_indices_map((batch_size,)).values()
        held = [rows[0].indices(batch_size) for rows in own if rows is not None]
        return range(min(first for first, _, _ in held), max(last for _, last, _ in held))

    def share(self, tree):
        """Under jit: the tree of batches, each at its `place`."""

        def share(array):
            return jax.lax.with_sharding_constraint(array, self.place(len(array)))

        return tree if self.mesh is None else jax.tree.map(share, tree)

    def any_of(self, *flags: bool) -> jax.Array:
        """For each flag, whether any process of the run has it: [flags], on every device."""
        own = np.tile(np.asarray(flags), (jax.local_device_count(), 1))
        return _any_of(jax.make_array_from_process_local_data(self.split, own), self.whole)

    def home(self, tree):
        """The tree, from arrays that are whole on every device, on JAX' default device."""
        return tree if self.mesh is None else jax.tree.map(jnp.asarray, jax.device_get(tree))


@partial(jax.jit, static_argnums=1)
def _any_of(flags, whole):
    return jax.lax.with_sharding_constraint(flags.any(0), whole)


def alike() -> list[Any]:
    """The devices that may share a batch, of all processes of the run: those of the first's kind.

    A display's card beside one for computing is none of them. Where the program has set JAX'
    default device, there is no other.
    """
    found = jax.devices()
    config: Any = jax.config  # it makes its options attributes at run time
    default = config.jax_default_device  # a device, the name of a platform, or None
    if default is not None:
        return [default] if isinstance(default, jax.Device) else found[:1]
    return [each for each in found if each.device_kind == found[0].device_kind]


def local(wanted: int = 0, deterministic: bool = False) -> Devices:
    """The first `wanted` devices, or all for 0, see `alike`.

    Raises:
      UserError: there are fewer; or several processes share the run, and some would have none.
    """
    found = alike()
    if not processes.alone() and len(found) < jax.device_count():
        kinds = sorted({each.device_kind for each in jax.devices()})
        raise UserError(
            f"the processes of this run have devices of several kinds ({', '.join(kinds)}): give "
            "them the same"
        )
    if wanted and not processes.alone() and wanted != len(found):
        raise UserError(
            f"config.devices is {wanted}, but the {jax.process_count()} processes of this run "
            f"share each batch among all of their {len(found)} devices: leave it 0"
        )
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
        choose = f"choose {' or '.join(map(str, sizes))}"
        if not processes.alone():
            raise UserError(
                f"{key} is {batch_size}, which the {count} devices of this run's "
                f"{jax.process_count()} processes cannot share equally: {choose}"
            )
        raise UserError(
            f"{key} is {batch_size}, which config.devices={count} devices cannot share equally: "
            f"{choose}, or config.devices={devices.among(batch_size).count}"
        )
