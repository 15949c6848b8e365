"""Orbax, wrapped once: trees of arrays to a folder and back."""

from pathlib import Path

import orbax.checkpoint as ocp


def save(path: str | Path, tree) -> None:
    """Writes a tree of arrays to the folder `path`, in place of what is there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree, force=True)


def restore(path: str | Path, like=None):
    """Reads a tree of arrays; with `like`, arrays or shapes, in its form and placement."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(path).absolute(), like)
