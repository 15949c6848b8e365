"""A run's folder: which config it belongs to, and atomic writes of its records."""

import contextlib
import errno
import fnmatch
import json
import os
import re
from pathlib import Path

from asap_jax.host.errors import UserError

VERSION = 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://?[^/]")  # Path turns gs:// into gs:/

# Keys that may change when a run is restarted in the same workdir; every other key must stay. The
# data (including the path of a source) may have moved; every stage checks that it is the same.
MAY_CHANGE = (
    "mode",
    "devices",
    "on_nan",
    "data.dir",
    "data.prepare",
    "data.streaming",
    "data.workers",
    "data.at_most",
    "data.max_pixels",
    "checkpoint.*",
    "check_memory",
    "tensorboard",
    "search.watch.images",
    "search.watch.eigenvalue",
    "search.benchmark",
    "search.benchmark_cells",
    "train.epochs",
)


def locate(path: str | Path) -> Path:
    """The folder named by a user, with a leading ~ expanded.

    Raises:
      UserError: it is a URL, such as a bucket's, or there is no home directory to expand ~ to.
    """
    if _ADDRESS.match(str(path)):
        raise UserError(
            f"{path} is an address, and runs are written to and read from folders of a file "
            "system: mount it, and name the folder where it is mounted"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the user database
        raise UserError(f"{path} cannot be found ({error}): name it without the ~") from error


def claim(path: str | Path, config: dict) -> Path:
    """Creates the workdir for this config, or accepts an existing one with the same config.

    Args:
      path: the folder; created if missing.
      config: plain JSON; written to config.json.

    Raises:
      UserError: the folder holds another config or a newer version's run, or is not writable.
    """
    path, before = Path(path), check(path, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if before != config:
            write_json(path / "config.json", {"workdir_version": VERSION, **config})
    except OSError as error:
        raise UserError(f"--workdir={path} cannot be written to: {error}") from error
    return path


def check(path: str | Path, config: dict) -> dict | None:
    """The workdir's existing config, if any; raises UserError if `claim` would reject it."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--workdir={path} is a file: name a folder, new or of the same config")
    if not (path / "config.json").exists() and (path / "network.json").exists():
        raise UserError(
            f"--workdir={path} holds a saved network and no run: choose another --workdir"
        )
    if (path / "comparison.json").exists():
        raise UserError(f"--workdir={path} holds a comparison of runs: choose another --workdir")
    before = read_config(path) if (path / "config.json").exists() else None
    if before is not None:
        changed = [
            f"{key}: {old!r} there, {new!r} here"
            for key, old, new in differences(before, config)
            if not _may_change(key, old, new) and not (old is None and _means_nothing(key, new))
        ]
        if changed:
            raise UserError(
                f"the workdir {path} holds a run of another config ({'; '.join(changed)}): choose "
                "another --workdir, or remove that one"
            )
    return before


def read_config(path: str | Path) -> dict:
    """The config of the workdir's run; raises UserError if it cannot be read."""
    record = read_json(Path(path) / "config.json")
    version = record.pop("workdir_version", None)
    if version != VERSION:
        raise UserError(
            f"the workdir {path} has version {version}, this asap_jax reads version {VERSION}: use "
            "the asap_jax that wrote it, or a newer one"
        )
    return record


@contextlib.contextmanager
def room_for(path: Path | None):
    """Turns an error from a full or read-only disk into a UserError.

    Args:
      path: the workdir being written to; None if there is none.
    """
    try:
        yield
    except OSError as error:
        if path is None or error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"the workdir {path} cannot be written to ({error}): make room there; the same command "
            "then goes on from what was saved before"
        ) from error


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


def _means_nothing(key: str, value) -> bool:
    """Whether a key that the version before did not have changes nothing, as it is unset."""
    new = key.count(".") == 1 and key.startswith(("data.", "search."))
    return (new or key == "deterministic") and not value


def write_json(path: Path, record) -> None:
    """Writes a record atomically."""
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> dict:
    """Reads a record; raises UserError if it is missing or broken."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): is {path.parent} the workdir of a run?"
        ) from error
    except ValueError as error:  # not JSON, or not text
        raise UserError(f"{path} is no JSON ({error}): was it edited?") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds no JSON object: was it edited?")
    return record
