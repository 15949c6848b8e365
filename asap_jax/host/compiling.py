"""Compiles programs in background threads, several at a time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import dtypes

from asap_jax.host import processes


class Program(NamedTuple):
    """A compiled function.

    run: to be called with arrays of the shapes it was compiled for.
    seconds: time for tracing and compiling.
    """

    run: Callable
    seconds: float


def shapes_of(tree) -> Any:
    """The tree with each array replaced by its shape, dtype and, on several devices, sharding."""

    def shape(leaf):
        if isinstance(leaf, np.ndarray):  # NumPy's 64 bits become JAX' default width
            return jax.ShapeDtypeStruct(leaf.shape, dtypes.canonicalize_dtype(leaf.dtype))
        made = jax.eval_shape(lambda leaf: leaf, leaf)
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            return jax.ShapeDtypeStruct(made.shape, made.dtype, sharding=leaf.sharding)
        return made

    return jax.tree.map(shape, tree)


class Compiler:
    """Traces and compiles programs in the order of submission, in a few threads.

    Compilation releases the GIL, so programs compile in parallel; tracing is Python code and runs
    one program at a time.
    """

    def __init__(self, threads: int = 3):
        self._threads, self._tracing = ThreadPoolExecutor(threads), threading.Lock()

    def submit(self, jitted, *operands) -> Future:
        """A future `Program` for a function returned by `jax.jit`.

        Args:
          operands: trees of arrays, or of their shapes.
        """
        config: Any = jax.config  # it makes its options attributes at run time
        device, wide = config.jax_default_device, config.jax_enable_x64  # thread-local

        def build():
            begin = time.monotonic()
            with jax.enable_x64(wide):
                with self._tracing, jax.default_device(device):
                    lowered = jitted.lower(*operands)
                return Program(lowered.compile(), time.monotonic() - begin)

        return self._threads.submit(build)

    def close(self) -> None:
        """Cancels programs that have not started; those in progress finish by themselves.

        Several processes of a run compile together, and none may leave another waiting.
        """
        self._threads.shutdown(wait=False, cancel_futures=processes.alone())


class Prepared:
    """A jitted function that `prepare` can compile ahead of the first call."""

    def __init__(self, jitted):
        self._jitted, self._program, self._structure = jitted, None, None

    def prepare(self, compiler: Compiler, *operands) -> None:
        """Compiles for trees of this structure and arrays of these shapes.

        Later calls with the same structure must use the same shapes; those with another one (the
        mixture of a method with edge weights, or of cells alone, which have none) compile anew.
        """
        self._structure = jax.tree.structure(operands)
        self._program = compiler.submit(self._jitted, *shapes_of(operands))

    def __call__(self, *operands):
        if self._program is None or jax.tree.structure(operands) != self._structure:
            return self._jitted(*operands)
        return self._program.result().run(*operands)
