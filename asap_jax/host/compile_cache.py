"""The persistent compilation cache, and compiler options."""

import gc
import os
import time
import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from asap_jax.host import processes

LIMIT = 5 * 10**9  # bytes of programs in the user's cache


def enable() -> None:
    """Caches compiled programs in the user's cache, or in JAX_COMPILATION_CACHE_DIR if set.

    The user's cache holds at most `LIMIT` bytes at each start; the folder that the variable names
    is the user's own matter (and that of JAX_COMPILATION_CACHE_MAX_SIZE).

    Also makes Python's garbage collection less frequent in the whole process: a step's trace
    consists of many live objects, and scanning them repeatedly takes a third of the tracing time.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        root = users_cache()
        if root is None:
            warnings.warn(
                "there is no home directory, so compiled programs are not kept: name a folder for "
                "them with JAX_COMPILATION_CACHE_DIR",
                stacklevel=2,
            )
        else:
            jax.config.update("jax_compilation_cache_dir", str(root / "xla"))
            bound(root / "xla", LIMIT)
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if 0 < gc.get_threshold()[0] < 20_000:
        gc.set_threshold(20_000, 10, 10)


def only_if_shared() -> bool:
    """Several processes use the cache only where all see the same one; returns whether they do.

    On GPUs they share the work of choosing kernels, so that one which found its program in a cache
    of its own would leave the others waiting. On CPUs they use none: a program from the cache runs
    its collectives in another order than one that was compiled just now (seen with jax 0.10.2).
    """
    if jax.default_backend() == "cpu":
        _disable()
        return True
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    name = processes.agreed(f"shared-{os.getpid()}-{time.time_ns()}")
    mark = Path(folder) / name if folder else None
    if mark and processes.leads():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    processes.agreed(None)  # it is there by now
    unseen = processes.largest(not (mark and mark.exists()))
    if mark and processes.leads():
        mark.unlink(missing_ok=True)
    if unseen:
        _disable()
    return not unseen


def _disable() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides at the first compilation whether it has one


def bound(folder: Path, limit: int) -> None:
    """Deletes the files of a folder that were used longest ago, until they take `limit` bytes."""
    if not folder.is_dir():
        return
    found = []
    for entry in os.scandir(folder):
        try:
            status = entry.stat()
        except OSError:  # deleted by another process
            continue
        # Many file systems update the time of the last reading once a day only.
        found.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        try:
            os.unlink(path)
        except OSError:  # as above, or a folder
            continue
        total -= size


def users_cache() -> Path | None:
    """This package's folder in the user's cache; None if the user has no home directory."""
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "asap_jax"
    try:
        return Path.home() / ".cache" / "asap_jax"
    except RuntimeError:  # neither HOME nor an entry in the user database
        return None


def options() -> dict:
    """`compiler_options` for steps that run thousands of times.

    On CPUs that support them, 512-bit vectors make a supernet step a tenth faster; XLA defaults to
    256. On GPUs a step's convolutions become part of its CUDA graph, from which XLA excludes them
    by default: launching them one by one takes the host longer than they run.
    """
    if jax.default_backend() == "gpu":
        kinds = "FUSION", "CUBLAS", "CUBLASLT", "CUSTOM_CALL", "CUDNN", "CONVOLUTION"
        return {"xla_gpu_enable_command_buffer": ",".join(kinds)}
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}
