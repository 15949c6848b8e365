"""Numerical precisions of a network, and which devices support them.

A precision sets the input type of matrix products and convolutions, and the type of feature maps.
Parameters, statistics, optimizers, mixture weights and logits are always float32.

    float32    both in float32: native on CPU; on an NVIDIA GPU, without tensor cores
    tf32       maps in float32; NVIDIA's tensor cores (from Ampere on) round the inputs of products
               to 10 bits of mantissa, and accumulate in float32
    bfloat16   maps in bfloat16 as well, with 7 bits of mantissa
    auto       the fastest with float32 maps: tf32 where supported, else float32
"""

import contextlib
import functools
from collections.abc import Callable

import jax

from asap_jax.host.errors import UserError

PRECISIONS = ("auto", "float32", "tf32", "bfloat16")


def ampere(device=None) -> bool:
    """Whether a device is an NVIDIA GPU that supports TF32 and bfloat16 (8.0 and later)."""
    device = device or jax.devices()[0]
    capability = getattr(device, "compute_capability", None)  # "9.0"; on AMD "gfx90a" or similar
    try:
        return device.platform == "gpu" and float(capability or 0) >= 8
    except ValueError:
        return False


def native_bfloat16(device=None) -> bool:
    """Whether a device supports bfloat16: TPUs, and NVIDIA GPUs from Ampere on."""
    device = device or jax.devices()[0]
    return device.platform == "tpu" or ampere(device)


def resolve(precision: str, device=None) -> str:
    """Resolves "auto" to a precision for the device; returns others unchanged."""
    if precision != "auto":
        return precision
    return "tf32" if ampere(device) else "float32"


def in_32_bits(function: Callable) -> Callable:
    """Runs the function without x64, which networks and searches do not support."""

    @functools.wraps(function)
    def run(*arguments, **options):
        with jax.enable_x64(False):
            return function(*arguments, **options)

    return run


def check(precision: str, key: str) -> None:
    """Raises UserError if the device does not support the precision, or only emulates it."""
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
    """`Context.dtype` for a precision."""
    return precision if precision == "bfloat16" else None


def computed_in(precision: str, function: Callable) -> Callable:
    """Makes the function trace its matrix products in the precision.

    For functions passed to `jax.jit`. Only affects GPUs, where XLA's default is TF32.
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
