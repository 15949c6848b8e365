"""Fast compilation and the compilation cache, set up before JAX starts.

Most of the test time goes into compiling programs that run once, so XLA optimizes less here and
uses its older fusion emitters, which compile twice as fast and give slower programs. (jaxlib after
0.10 has no such emitters and aborts at the unknown flag.) Flags from the environment come after
these and take precedence; this gives a user's settings:

XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" pytest
"""

import os
import signal
from importlib import metadata

os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + "--xla_cpu_use_fusion_emitters=false " * metadata.version("jaxlib").startswith("0.10.")
    + os.environ.get("XLA_FLAGS", "")
)

# Shells start background jobs with SIGINT ignored, nohup starts its own with SIGHUP ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ["ASAP_JAX_DATA_CACHE"] = "off"  # tests must not write to the user's cache

from asap_jax.host import compile_cache

compile_cache.enable()
