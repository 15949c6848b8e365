"""Estimates the memory of a step before compilation, and compares it with the device's."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from asap_jax.host import devices
from asap_jax.host.errors import UserError


class Estimate(NamedTuple):
    """Bytes by purpose.

    state: weights, statistics, optimizer: everything carried from step to step.
    gradients: as large as the weights.
    activations: what the backward pass keeps from the forward pass.
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
    """Formats a size in bytes, such as '1.5 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def size_of(tree) -> int:
    """Total bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def estimate(loss: Callable, params, state, data_bytes: int) -> Estimate:
    """Estimates the memory of a step that takes the gradient of `loss`.

    Activations are the residuals of the traced loss, so every layer and any rematerialization is
    accounted for. The compiler may need less, due to fusion, or more, for temporaries.

    Args:
      loss: params -> scalar, closed over a batch of the real size; may be abstract.
      params, state: trees of arrays or shapes; `params` are part of the `state`.
      data_bytes: images on the device.
    """
    residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    kept = max(size_of(residuals) - size_of(params), 0)  # a product's gradient keeps the weights
    return Estimate(size_of(state), size_of(params), kept, data_bytes)


def available() -> int | None:
    """Free bytes on the fullest of this process's devices that may share a batch, or None."""
    own = [each for each in devices.alike() if each.process_index == jax.process_index()]
    known = [stats for each in own if (stats := each.memory_stats())]
    if known and all("bytes_limit" in stats for stats in known):
        return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in known)
    return host_available() if jax.default_backend() == "cpu" else None


def host_available() -> int | None:
    """Free bytes on this machine or in its container; None if unknown."""
    return min([*_proc_meminfo(), *_cgroup()], default=None)


def check(needed: Estimate, what: str, advice: str, limit: int | None = None) -> None:
    """Raises UserError if `needed` exceeds the device's memory.

    Args:
      needed: the estimate.
      what: "search" or "training".
      advice: which config keys to change, in words.
      limit: bytes; defaults to `available`.
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
    """Bytes the container may still use, from cgroup version 2."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(stats["inactive_file"])
            yield int(limit) - used  # inactive file cache can be reclaimed
    except (OSError, ValueError, KeyError):
        return
