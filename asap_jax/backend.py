"""The kind of device that programs are traced for: some of them are written one way for CPUs."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """The platform that what is traced now is for: "cpu", "gpu", "tpu"; JAX' default backend."""
    return _PLATFORM.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether what is traced now is for a CPU.

    `lax.platform_dependent` would ask when a program is lowered; it traces, and differentiates,
    every way of writing it, which takes twice the time. Each way is right on each device, and the
    fast one there; functions in a `jit` of their own take the answer as a static argument.
    """
    return platform() == "cpu"


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Has programs that are traced within written for a platform, of which no device need be there.

    Only functions that are not traced yet: a `jit` remembers what it has traced.
    """
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
