"""XLA's persistent compilation cache, on by default: a program is compiled once a machine."""

import os
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled programs in the user's cache, or in JAX_COMPILATION_CACHE_DIR if set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "asap_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
