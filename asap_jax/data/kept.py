"""Caches decoded images as arrays in the user's cache, so that the next start reads one file.

Entries are keyed by everything the result depends on: name, size and times of every file, the
options, this package's code and the versions of the decoding libraries. Any change gives a new key;
old entries are never looked up.
"""

import functools
import hashlib
import importlib.resources
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import features

from asap_jax.host import compile_cache, memory
from asap_jax.host.errors import UserError

LIMIT = 10 * 1000**3  # total bytes; the least recently used entries are evicted
WORTH = 1.0  # seconds; images that read faster are not cached
SETTLED = 2.0  # seconds: a file changed more recently may change again within one clock tick
VARIABLE = "ASAP_JAX_DATA_CACHE"
_OURS = re.compile(r"[0-9a-f]{32}\.(npz|[0-9]+\.part)")


class Stamp(NamedTuple):
    """Identifies the contents of files without reading them.

    digest: of their paths, sizes and times.
    newest: time of the latest change, in seconds as in `time.time`.
    """

    digest: str
    newest: float


def stamp(paths: Iterable[str | Path]) -> Stamp:
    """The stamp of files; raises OSError if one is missing."""
    sha, newest = hashlib.sha256(), 0.0
    for path in paths:
        found, place = os.stat(path), os.path.abspath(path)
        times = (found.st_mtime_ns, found.st_ctime_ns)  # users cannot set the second
        sha.update(f"{place} {found.st_size} {times}\n".encode(errors="surrogateescape"))
        newest = max(newest, *(nanoseconds / 1e9 for nanoseconds in times))
    return Stamp(sha.hexdigest(), newest)


def folder() -> Path | None:
    """The user's cache, or the folder named by ASAP_JAX_DATA_CACHE.

    None if that is "off", or if the user has no home directory.
    """
    place = os.environ.get(VARIABLE, "")
    if place == "off":
        return None
    if place:
        return Path(place).expanduser()
    root = compile_cache.users_cache()
    return root and root / "images"


class Kept:
    """The cache entry for one source and one set of options.

    Args:
      source: an `opened.Source`. Arrays in memory and files changed just now are not cached.
      options: JSON; everything else that the result depends on.
    """

    def __init__(self, source, options: dict):
        self.notes: list[str] = []
        self._begun, self._path = time.monotonic(), None
        place = folder()
        if place is None or source.in_memory:
            return
        stamps = _stamps(source)
        if stamps is None:
            return
        described = source._asdict() | {
            "splits": {
                name: [split.fingerprint, split.count, stamps[name].digest]
                for name, split in source.splits.items()
            }
        }
        key = {"source": described, "options": options, "made_by": _makers()}
        self._key = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(self._key.encode()).hexdigest()[:32]
        self._path = place / f"{name}.npz"

    def read(self, check: Callable[[dict], None]) -> tuple[dict, dict] | None:
        """Cached (arrays by name, record), or None; `check` may reject the record by raising."""
        if self._path is None:
            return None
        try:
            with np.load(self._path) as archive:  # allow_pickle stays False
                header = json.loads(archive["told"].tobytes())
                if header["key"] != self._key:
                    raise ValueError("it belongs to other images")
                check(header["record"])
                arrays = {name: archive[name] for name in header["arrays"]}
            if _described(arrays) != header["arrays"]:  # checksums do not cover array headers
                raise ValueError("its arrays have other shapes than were written")
            os.utime(self._path)  # mark as recently used
        except FileNotFoundError:
            return None
        except UserError:
            raise
        except Exception as error:  # archive readers may raise anything on a broken file
            self.notes.append(
                f"the images kept in {self._path} cannot be used ({error}): they are read anew"
            )
            return None
        return arrays, header["record"]

    def write(self, arrays: dict[str, np.ndarray], record: dict) -> None:
        """Caches arrays and a JSON record, if they took long enough to make."""
        if self._path is None or time.monotonic() - self._begun < WORTH:
            return
        header = {"key": self._key, "record": record, "arrays": _described(arrays)}
        arrays = arrays | {"told": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        partial = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            _make_room(partial.parent, sum(array.nbytes for array in arrays.values()))
            try:
                with open(partial, "wb") as file:
                    # No array has the name of an option of savez.
                    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
                os.replace(partial, self._path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self.notes.append(
                f"the images could not be kept for the next start ({error}); {VARIABLE} names "
                "another folder, or is off"
            )


def _described(arrays) -> dict:
    return {
        name: [array.dtype.str, list(array.shape), array.flags.c_contiguous]
        for name, array in arrays.items()
    }


def _stamps(source) -> dict[str, Stamp] | None:
    """The stamp of each split, or None if one has no reliable stamp."""
    if not all(split.stamp for split in source.splits.values()):
        return None
    try:
        stamps = {name: split.stamp() for name, split in source.splits.items()}
    except OSError:  # reading reports the file
        return None
    newest = max(stamp.newest for stamp in stamps.values())
    return stamps if newest + SETTLED <= time.time() else None


@functools.cache
def _makers() -> dict:
    """Versions of what turns files into arrays: this package and the decoding libraries."""
    sha = hashlib.sha256()
    files = importlib.resources.files("asap_jax.data").iterdir()
    for file in sorted(files, key=lambda file: file.name):
        if file.name.endswith(".py"):
            sha.update(file.read_bytes())
    decoders = {name: features.version(name) for name in features.get_supported()}
    versions = {"pillow": PIL.__version__, "numpy": np.__version__}
    return {"code": sha.hexdigest(), "decoders": decoders, **versions}


def _make_room(place: Path, needed: int) -> None:
    """Evicts the least recently used entries until `needed` bytes fit; raises OSError if not."""
    if needed > LIMIT:
        raise OSError(f"they take {memory.readable(needed)}, of {memory.readable(LIMIT)} in all")
    ours = [file for file in place.iterdir() if _OURS.fullmatch(file.name)]
    seen = sorted(((found := file.stat()).st_mtime, found.st_size, file) for file in ours)
    total = needed + sum(size for _, size, _ in seen)
    for changed, size, file in seen:
        dead = file.suffix == ".part" and changed < time.time() - 3600  # its writer was killed
        if total > LIMIT or dead:
            file.unlink(missing_ok=True)
            total -= size
    free = shutil.disk_usage(place).free
    if 2 * needed > free:
        raise OSError(f"they take {memory.readable(needed)}, of {memory.readable(free)} left there")
