"""Programs that are compiled in threads, several at a time, while the host does something else."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import dtypes


class Program(NamedTuple):
    """A compiled function.

    run: called with arrays of the shapes that it was compiled for.
    seconds: what tracing and compiling took.
    """

    run: Callable
    seconds: float


def shapes_of(tree) -> Any:
    """The tree with shapes and types in place of its arrays."""

    def shape(leaf):
        if isinstance(leaf, np.ndarray):  # its 64 bits are as many as JAX takes them for
            return jax.ShapeDtypeStruct(leaf.shape, dtypes.canonicalize_dtype(leaf.dtype))
        return jax.eval_shape(lambda leaf: leaf, leaf)

    return jax.tree.map(shape, tree)


class Compiler:
    """Traces and compiles what it is given, in its order as far as its threads reach.

    Compiling runs outside of Python, so that programs are compiled side by side; they are traced
    one after another, for that is Python's own work, of which it does one thing at a time.
    """

    def __init__(self, threads: int = 3):
        self._threads, self._tracing = ThreadPoolExecutor(threads), threading.Lock()

    def submit(self, jitted, *operands) -> Future:
        """A future `Program` of what `jax.jit` gave.

        Args:
          operands: trees of arrays, or of their shapes.
        """
        device = jax.config.jax_default_device  # a thread has defaults of its own
        wide = jax.config.jax_enable_x64

        def build():
            begin = time.monotonic()
            with jax.enable_x64(wide):
                with self._tracing, jax.default_device(device):
                    lowered = jitted.lower(*operands)
                return Program(lowered.compile(), time.monotonic() - begin)

        return self._threads.submit(build)

    def close(self) -> None:
        """Drops what is not begun; what is being compiled ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Prepared:
    """A jitted function that may be compiled before it is called, by `prepare`."""

    def __init__(self, jitted):
        self._jitted, self._program = jitted, None

    def prepare(self, compiler: Compiler, *operands) -> None:
        """Has it compiled for operands of these shapes; it is then called with no others."""
        self._program = compiler.submit(self._jitted, *shapes_of(operands))

    def __call__(self, *operands):
        run = self._jitted if self._program is None else self._program.result().run
        return run(*operands)
