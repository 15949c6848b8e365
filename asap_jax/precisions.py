"""In which precision a network is computed, and which devices compute in it.

A precision names what products and convolutions take in, and what the maps between them are kept
in. Parameters, statistics, optimizers, mixture weights and logits are float32 in each.

    float32    both in float32: a CPU's own; on an NVIDIA GPU, by its general cores
    tf32       maps in float32; NVIDIA's matrix units (from Ampere on) round what enters a product
               to 10 bits of mantissa, and add up in float32
    bfloat16   maps too in bfloat16, of 7 bits
    auto       the fast one that keeps the maps whole: tf32 where there is such a unit, else float32
"""

import contextlib
import functools
from collections.abc import Callable

import jax

from asap_jax.errors import UserError

PRECISIONS = ("auto", "float32", "tf32", "bfloat16")


def ampere(device=None) -> bool:
    """Whether a device is an NVIDIA GPU with units for TF32 and bfloat16 (8.0 and later)."""
    device = device or jax.devices()[0]
    capability = getattr(device, "compute_capability", None)  # "9.0"; AMD's are "gfx90a" and such
    try:
        return device.platform == "gpu" and float(capability or 0) >= 8
    except ValueError:
        return False


def native_bfloat16(device=None) -> bool:
    """Whether a device computes in bfloat16: TPUs, and NVIDIA's GPUs from Ampere on."""
    device = device or jax.devices()[0]
    return device.platform == "tpu" or ampere(device)


def resolve(precision: str, device=None) -> str:
    """What `precision` is on a device: "auto" becomes one of the others."""
    if precision != "auto":
        return precision
    return "tf32" if ampere(device) else "float32"


def in_32_bits(function: Callable) -> Callable:
    """The function, run as if JAX_ENABLE_X64 was not set: networks and searches know no 64 bits."""

    @functools.wraps(function)
    def run(*arguments, **options):
        with jax.enable_x64(False):
            return function(*arguments, **options)

    return run


def check(precision: str, key: str) -> None:
    """Raises UserError if the device would only emulate the precision, or does not have it."""
    kind = jax.devices()[0].device_kind
    if precision == "bfloat16" and not native_bfloat16():
        raise UserError(
            f"config.{key}.precision is bfloat16, which {kind} does not "
            "compute in (it would convert to and fro, and be slower): leave it at auto here"
        )
    if precision == "tf32" and not ampere():
        raise UserError(
            f"config.{key}.precision is tf32, which {kind} does not compute in (NVIDIA's GPUs from "
            "Ampere on do): leave it at auto here, which is float32"
        )


def map_dtype(precision: str) -> str | None:
    """`Context.dtype` of a precision."""
    return precision if precision == "bfloat16" else None


def computed_in(precision: str, function: Callable) -> Callable:
    """The function, its products in the precision when it is traced.

    For what is given to `jax.jit`. Only a GPU has a choice: XLA's default there is TF32.
    """
    products = "highest" if resolve(precision) == "float32" else "default"

    @functools.wraps(function)
    def run(*arguments, **options):
        chosen = contextlib.nullcontext()
        if jax.default_backend() == "gpu":
            chosen = jax.default_matmul_precision(products)
        with chosen:
            return function(*arguments, **options)

    return run
