"""How programs are compiled: once a machine, by a persistent cache; and with which options."""

import os
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled programs in the user's cache, or in JAX_COMPILATION_CACHE_DIR if set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "asap_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def options() -> dict:
    """`compiler_options` of the steps that run thousands of times.

    On CPUs that have them, vectors of 512 bits make a step of the supernet a tenth faster; XLA's
    own choice is 256.
    """
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}
