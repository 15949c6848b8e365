"""Two CPU devices for the parallel tests, and the compilation cache, before JAX starts."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)

from asap_jax import compile_cache

compile_cache.enable()
