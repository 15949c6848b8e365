"""Two CPU devices, quick compilation and the compilation cache, before JAX starts.

Most of the tests' time goes into compiling programs that run once, so XLA optimises less here;
flags in the environment come after ours and win: XLA_FLAGS=--xla_backend_optimization_level=3 makes
it work as for a user.
"""

import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
)

from asap_jax import compile_cache

compile_cache.enable()
