"""The kind of device that programs are traced for: some of them are written one way for CPUs."""

import jax


def on_cpu() -> bool:
    """Whether what is traced now is for a CPU: whether that is JAX' default backend.

    `lax.platform_dependent` would ask when a program is lowered; it traces, and differentiates,
    every way of writing it, which takes twice the time. Each way is right on each device, and the
    fast one there; functions in a `jit` of their own take the answer as a static argument.
    """
    return jax.default_backend() == "cpu"
