"""Exports trained networks for use without this package.

    network.export("out")  # or --mode=export --workdir=runs/digits

writes, unless `formats` names fewer:

    stablehlo    network.cpu.jaxexport, network.cuda.jaxexport: programs by `jax.export`, one per
                 platform, each including the weights
    safetensors  network.safetensors: parameters and statistics, under names like
                 `params/cell0/edge0/...`
    flax         network_flax.py: the network as a plain Flax module, with its own cells
    torch        network_torch.py: the same as a plain PyTorch module

A program takes uint8 images [B, H, W, C] of the network's size with any batch size B, and returns
logits [B, K]:

    import jax.export
    program = jax.export.deserialize(open("out/network.cpu.jaxexport", "rb").read())
    logits = program.call(images)

The Python files read network.safetensors, which is written with them; `written_out` makes them. In
each case network-export.json has image size, classes and file names.
"""

import json
import warnings
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from asap_jax.data.augment import normalise
from asap_jax.host import backend, workdir
from asap_jax.host.errors import UserError
from asap_jax.runs.written_out import source
from asap_jax.training import train_loop

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}  # jax.export's: JAX's


# Each format, and the package that writes it.
FORMATS = {
    "stablehlo": "flatbuffers",
    "safetensors": "safetensors",
    "flax": "safetensors",
    "torch": "safetensors",
}


def export(
    network,
    folder: str | Path,
    platforms: Sequence[str] = ("cpu", "cuda"),
    formats: Sequence[str] | None = None,
) -> list[Path]:
    """Writes a `TrainedNetwork` to a folder; returns the files.

    Args:
      network: result of `asap_jax.load`.
      folder: created if missing.
      platforms: platforms to write StableHLO for; their devices need not be present.
      formats: of `FORMATS`. By default all that can be written, with a warning about each other
        one: a package may be missing, and operations of a user's own have no source to write out.

    Raises:
      UserError: a platform or format is unknown, the folder is not writable, or a format that
        `formats` names (without it: any) cannot be written.
    """
    for name in platforms:
        if name not in PLATFORMS:
            raise UserError(f"platforms: {name!r} is none of {', '.join(PLATFORMS)}")
    if isinstance(formats, str):
        formats = (formats,)
    for name in formats or ():
        if name not in FORMATS:
            raise UserError(f"formats: {name!r} is none of {', '.join(FORMATS)}")
    folder = workdir.locate(folder)
    chosen = _chosen(network, formats)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(network, folder, platforms, chosen)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to: {error}; in Python asap_jax.load(...).export(FOLDER) "
            "takes another folder"
        ) from error


def _chosen(network, formats) -> dict[str, str]:
    """{format: source code, if it is one}, of those wanted; without `formats`, of the possible."""
    if formats is not None and not formats:
        raise UserError(f"formats names none: give one or more of {', '.join(FORMATS)}")
    chosen, impossible = {}, {}
    for name in FORMATS if formats is None else formats:
        try:
            chosen[name] = _prepared(network, name)
        except UserError as error:
            if formats is not None:
                raise
            impossible.setdefault(str(error), []).append(name)
    if not chosen:
        raise UserError("; ".join(impossible))
    for why, names in impossible.items():
        warnings.warn(f"the export goes without {', '.join(names)}: {why}", stacklevel=4)
    return chosen


def _prepared(network, name) -> str:
    if util.find_spec(FORMATS[name]) is None:
        raise UserError(f"an export needs the package {FORMATS[name]}: {_HOW}")
    return source.written(network, name) if name in source.FRAMEWORKS else ""


def _write(network, folder, platforms, chosen) -> list[Path]:
    files = []
    if "stablehlo" in chosen:
        for name in platforms:
            files.append(folder / f"network.{name}.jaxexport")
            files[-1].write_bytes(_serialised(network, name))
    if chosen.keys() - {"stablehlo"}:
        files.append(_safetensors(network, folder / "network.safetensors"))
    for name in source.FRAMEWORKS:
        if name in chosen:
            files.append(folder / f"network_{name}.py")
            files[-1].write_text(chosen[name], encoding="utf-8")
    description = {
        "image": list(network.preparation.shape),
        "mean": list(network.mean),
        "std": list(network.std),
        "class_names": list(network.class_names),
        "genotype": json.loads(network.module.genotype.to_json()),
        "files": [path.name for path in files],
    }
    workdir.write_json(folder / "network-export.json", description)
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
    return bytes(program.serialize())


def _safetensors(network, path) -> Path:
    from safetensors.numpy import save

    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    named = {
        jax.tree_util.keystr(at, simple=True, separator="/"): np.ascontiguousarray(leaf)
        for at, leaf in leaves
    }
    path.write_bytes(save(named))
    return path


_HOW = "pip install 'asap_jax[export]'"
