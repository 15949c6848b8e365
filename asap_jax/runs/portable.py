"""Exports trained networks for use without this package.

    network.export("out")  # or --mode=export --workdir=runs/digits

writes StableHLO with `jax.export`, one file per platform, each including the weights. It takes
uint8 images [B, H, W, C] of the network's size with any batch size B, and returns logits [B, K]:

    import jax.export
    program = jax.export.deserialize(open("out/network.cpu.jaxexport", "rb").read())
    logits = program.call(images)

It also writes network.safetensors with only parameters and statistics, under names like
`params/cell0/edge0/...`, and network-export.json with image size, classes and file names.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from asap_jax.data.augment import normalise
from asap_jax.host import backend, workdir
from asap_jax.host.errors import UserError
from asap_jax.training import train_loop

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}  # jax.export's: JAX's


def export(network, folder: str | Path, platforms: Sequence[str] = ("cpu", "cuda")) -> list[Path]:
    """Writes a `TrainedNetwork` to a folder; returns the files.

    Args:
      network: result of `asap_jax.load`.
      folder: created if missing.
      platforms: platforms to write StableHLO for; their devices need not be present.

    Raises:
      UserError: a platform is unknown, a required package is not installed, or the folder is not
        writable.
    """
    for name in platforms:
        if name not in PLATFORMS:
            raise UserError(f"platforms: {name!r} is none of {', '.join(PLATFORMS)}")
    folder = workdir.locate(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(network, folder, platforms)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to: {error}; in Python asap_jax.load(...).export(FOLDER) "
            "takes another folder"
        ) from error


def _write(network, folder, platforms) -> list[Path]:
    files = []
    for name in platforms:
        path = folder / f"network.{name}.jaxexport"
        path.write_bytes(_serialised(network, name))
        files.append(path)
    files.append(_safetensors(network, folder / "network.safetensors"))
    told = {
        "image": list(network.preparation.shape),
        "mean": list(network.mean),
        "std": list(network.std),
        "class_names": list(network.class_names),
        "genotype": json.loads(network.module.genotype.to_json()),
        "files": [path.name for path in files],
    }
    workdir.write_json(folder / "network-export.json", told)
    return [*files, folder / "network-export.json"]


def _serialised(network, platform) -> bytes:
    height, width, channels = network.preparation.shape
    (batch,) = jax.export.symbolic_shape("batch")

    def logits(images):
        seen = normalise(images, network.mean, network.std)
        return network.module.apply(network.variables, seen, train_loop.in_use())[0]

    with backend.traced_for(PLATFORMS[platform]):
        program = jax.export.export(jax.jit(logits), platforms=[platform])(
            jax.ShapeDtypeStruct((batch, height, width, channels), jnp.uint8)
        )
    try:
        return bytes(program.serialize())
    except ImportError as error:
        raise UserError(f"an export needs the package flatbuffers: {_HOW} ({error})") from error


def _safetensors(network, path) -> Path:
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise UserError(f"an export needs the package safetensors: {_HOW}") from error
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    named = {
        jax.tree_util.keystr(at, simple=True, separator="/"): np.ascontiguousarray(leaf)
        for at, leaf in leaves
    }
    path.write_bytes(save(named))
    return path


_HOW = "pip install 'asap_jax[export]'"
