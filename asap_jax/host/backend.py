"""The platform that programs are traced for; some have a separate version for CPU."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)
_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


def platform() -> str:
    """The platform currently traced for: "cpu", "gpu", "tpu"; defaults to JAX' default backend."""
    return _PLATFORM.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether the current trace is for a CPU.

    `lax.platform_dependent` would decide at lowering; it traces and differentiates every version,
    which takes twice the time. Each version is correct on every device, and the chosen one is fast;
    functions with their own `jit` take the result as a static argument.
    """
    return platform() == "cpu"


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Traces programs within the context for a platform, whose devices need not be present.

    Affects only functions that are not traced yet: `jit` caches its traces.
    """
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def shared() -> bool:
    """Whether several devices share the batch of the current trace, see `shared_by`."""
    return _SHARED.get()


@contextlib.contextmanager
def shared_by(count: int) -> Iterator[None]:
    """Traces programs within the context for so many devices that share each batch.

    XLA's partitioner would have every device compute a grouped convolution, or its kernel's
    gradient, on the whole batch.
    """
    token = _SHARED.set(count > 1)
    try:
        yield
    finally:
        _SHARED.reset(token)
