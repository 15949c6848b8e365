"""A run's folder: whose it is, and records that are never half written."""

import fnmatch
import json
import os
from pathlib import Path

from asap_jax.errors import UserError

VERSION = 1

# What another start in the same workdir may ask for anew; every other key has to stay. The data may
# have moved (so may the path of a source): that it is the same, every stage checks.
MAY_CHANGE = (
    "mode",
    "data.dir",
    "data.prepare",
    "data.streaming",
    "data.workers",
    "checkpoint.*",
    "check_memory",
    "search.watch.images",
    "search.watch.eigenvalue",
    "search.benchmark",
    "train.epochs",
)


def claim(path: str | Path, config: dict) -> Path:
    """Makes the workdir this config's, or refuses one that is another's.

    Args:
      path: the folder; made if need be.
      config: plain JSON; written to config.json.

    Raises:
      UserError: the folder holds another config, a newer version's run, or cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--workdir={path} is a file: name a folder, new or of the same config")
    if not (path / "config.json").exists() and (path / "network.json").exists():
        raise UserError(
            f"--workdir={path} holds a saved network and no run: choose another --workdir"
        )
    before = read_config(path) if (path / "config.json").exists() else None
    if before is not None:
        changed = [
            f"{key}: {old!r} there, {new!r} here"
            for key, old, new in differences(before, config)
            if not _may_change(key, old, new)
        ]
        if changed:
            raise UserError(
                f"the workdir {path} holds a run of another config ({'; '.join(changed)}): choose "
                "another --workdir, or remove that one"
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
        if before != config:
            write_json(path / "config.json", {"workdir_version": VERSION, **config})
    except OSError as error:
        raise UserError(f"--workdir={path} cannot be written to: {error}") from error
    return path


def read_config(path: str | Path) -> dict:
    """The config that the workdir's run was made with; UserError if there is none to read."""
    record = read_json(Path(path) / "config.json")
    version = record.pop("workdir_version", None)
    if version != VERSION:
        raise UserError(
            f"the workdir {path} has version {version}, this asap_jax reads version {VERSION}: use "
            "the asap_jax that wrote it, or a newer one"
        )
    return record


def differences(old, new, prefix="") -> list[tuple]:
    """(key, old value, new value) of each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            triple
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
            for triple in differences(
                old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key
            )
        ]
    return [(prefix, old, new)]


def _may_change(key: str, old, new) -> bool:
    if key == "data.source":  # a folder or an archive may have moved
        return old.partition(":")[0] == new.partition(":")[0] != "tfds"
    return any(fnmatch.fnmatch(key, pattern) for pattern in MAY_CHANGE)


def write_json(path: Path, record) -> None:
    """Writes a record whole or not at all."""
    beside = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(beside, path)


def read_json(path: Path) -> dict:
    """A record; UserError if it is not there or broken."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): is {path.parent} the workdir of a run?"
        ) from error
    except ValueError as error:  # no JSON, or no text
        raise UserError(f"{path} is no JSON ({error}): was it edited?") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds no JSON object: was it edited?")
    return record
