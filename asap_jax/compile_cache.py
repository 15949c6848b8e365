"""How programs are compiled: once a machine, by a persistent cache; and with which options."""

import gc
import os
import warnings
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled programs in the user's cache, or in JAX_COMPILATION_CACHE_DIR if set.

    Also has Python look for cyclic garbage less often, in the whole process: a step's trace is many
    objects that all live, and to walk them again and again takes a third of the time to trace.
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
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if 0 < gc.get_threshold()[0] < 20_000:
        gc.set_threshold(20_000, 10, 10)


def users_cache() -> Path | None:
    """This package's folder in the user's cache; None for a user without a home."""
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "asap_jax"
    try:
        return Path.home() / ".cache" / "asap_jax"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return None


def options() -> dict:
    """`compiler_options` of the steps that run thousands of times.

    On CPUs that have them, vectors of 512 bits make a step of the supernet a tenth faster; XLA's
    own choice is 256. On GPUs a step's convolutions are started with its other kernels as one
    graph, which XLA by itself leaves out of it: starting them one by one takes the host longer than
    they run.
    """
    if jax.default_backend() == "gpu":
        kinds = "FUSION", "CUBLAS", "CUBLASLT", "CUSTOM_CALL", "CUDNN", "CONVOLUTION"
        return {"xla_gpu_enable_command_buffer": ",".join(kinds)}
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}
