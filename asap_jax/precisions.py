"""The precision of the maps in a network, and which devices compute in it."""

import jax

from asap_jax.errors import UserError

PRECISIONS = ("float32", "bfloat16")


def native_bfloat16(device=None) -> bool:
    """Whether a device computes in bfloat16: TPUs, and NVIDIA's GPUs from Ampere (8.0) on."""
    device = device or jax.devices()[0]
    if device.platform == "tpu":
        return True
    capability = getattr(device, "compute_capability", None)  # "9.0"
    return device.platform == "gpu" and capability is not None and float(capability) >= 8


def check(precision: str, key: str) -> None:
    """Raises UserError if the device would only emulate the precision."""
    if precision == "bfloat16" and not native_bfloat16():
        raise UserError(
            f"config.{key}.precision is bfloat16, which {jax.devices()[0].device_kind} does not "
            "compute in (it would convert to and fro, and be slower): leave it at float32 here"
        )


def map_dtype(precision: str) -> str | None:
    """`Context.dtype` of a precision."""
    return None if precision == "float32" else precision
