"""How much memory a step will take, before anything is compiled, against what the device has."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from asap_jax.errors import UserError


class Estimate(NamedTuple):
    """Bytes, by what they are for.

    state: weights, statistics, optimizer, all that goes from step to step.
    gradients: as large as the weights.
    activations: what the backward pass keeps of the forward pass.
    data: the images on the device.
    """

    state: int
    gradients: int
    activations: int
    data: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {readable(size)}" for name, size in self._asdict().items())
        return f"{readable(self.total)} ({parts})"


def readable(size: float) -> str:
    """'1.5 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def size_of(tree) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def estimate(loss: Callable, params, state, data_bytes: int) -> Estimate:
    """What a step needs that takes the gradient of `loss`.

    The activations are the residuals of the traced loss, so every layer and every rematerialisation
    is counted as it is. The compiler may do with less, by fusing, or need more for temporaries.

    Args:
      loss: params -> scalar, with a batch of the real size closed over; may be abstract.
      params, state: trees of arrays or shapes; `params` are part of the `state`.
      data_bytes: images on the device.
    """
    residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    kept = max(size_of(residuals) - size_of(params), 0)  # a product's gradient keeps the weights
    return Estimate(size_of(state), size_of(params), kept, data_bytes)


def available() -> int | None:
    """Bytes that the first device has left, or None where nobody can tell."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return host_available() if jax.default_backend() == "cpu" else None


def host_available() -> int | None:
    """Bytes that this machine, or the container, has left; None where nobody can tell."""
    return min([*_proc_meminfo(), *_cgroup()], default=None)


def check(needed: Estimate, what: str, advice: str, limit: int | None = None) -> None:
    """Raises UserError if `needed` is more than the device has.

    Args:
      needed: the estimate.
      what: "search" or "training".
      advice: which keys to turn, in words.
      limit: bytes; by default what is `available`.
    """
    limit = available() if limit is None else limit
    if limit is not None and needed.total > limit:
        raise UserError(
            f"the {what} is estimated to take {needed} of memory, but the device has "
            f"{readable(limit)} left: {advice}; or start it all the same with "
            "--config.check_memory=False"
        )


def _proc_meminfo():
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _cgroup():
    """What a container may still take, by cgroup version 2."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(stats["inactive_file"])
            yield int(limit) - used  # files that were read can be forgotten
    except (OSError, ValueError, KeyError):
        return
