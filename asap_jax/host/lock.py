"""One run per workdir: a lock that names its owner and can be taken over from a dead one.

The lock is the kernel's (`flock`) and ends with its process. NFS supports it across machines; some
other network file systems only within each machine, or not at all. The file therefore also names
its owner, who touches it regularly: for an owner on another machine, a run waits to see whether it
is still alive.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from asap_jax.host.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: rely on the file's contents alone
    fcntl = None

NAME = ".lock"
BEAT = 10.0  # seconds between touches of the file
PATIENCE = 3.5 * BEAT  # seconds without a touch after which the owner counts as dead


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, created if missing, for one run.

    Raises:
      UserError: another process or another run of this one holds it, or it is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be written to: {error}") from error
    with file:
        _take(file, folder)
        over = threading.Event()
        beating = threading.Thread(target=_beat, args=(file.fileno(), over), daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join()
            with contextlib.suppress(OSError):  # the folder is gone, or the disk is full
                _write(file, {})


class Observer:
    """Tells who holds a folder, from outside: it only reads, so no run is affected.

    An owner counts as dead as for `held`: as a process here that has ended, or after `PATIENCE`
    seconds of being observed without touching the file.
    """

    def __init__(self, folder: Path):
        self._path, self._touched, self._since = folder / NAME, None, 0.0

    def owner(self) -> str:
        """The run that holds the folder now, in words; "" if none does."""
        try:
            with open(self._path) as file:
                owner, touched = _owner(file), os.fstat(file.fileno()).st_mtime_ns
        except OSError:  # nobody has held it yet, or it is gone
            return ""
        if touched != self._touched:
            self._touched, self._since = touched, time.monotonic()
        if not owner or (_is_here(owner) and not _runs(owner.get("pid"))):
            return ""
        return _in_words(owner) if time.monotonic() - self._since < PATIENCE else ""


def _take(file, folder) -> None:
    """Takes the lock, or raises UserError."""
    known, owner = _flock(file), _owner(file)
    gone = not owner or (known and _is_here(owner))
    taken = known is False or not (gone or _rests(folder / NAME, owner))
    if not taken:
        claim = {"host": socket.gethostname(), "pid": os.getpid()}
        claim["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            _write(file, claim)
        except OSError as error:
            raise UserError(f"--workdir={folder} cannot be written to: {error}") from error
        if known is None:  # of two simultaneous starts, the last writer wins
            time.sleep(BEAT / 10)
            owner = _owner(file)
            taken = owner != claim
    if taken:
        raise UserError(
            f"the workdir {folder} is in use by {_in_words(owner)}: wait until that has ended, or "
            "choose another --workdir"
        )


def _flock(file) -> bool | None:
    """Whether the kernel granted the lock; None if the file system does not support it."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _owner(file) -> dict:
    """The owner named in the file; {} for none."""
    file.seek(0)
    try:
        owner = json.loads(file.read() or "{}")
    except (OSError, ValueError):  # the owner died while writing
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_here(owner) -> bool:
    return owner.get("host") == socket.gethostname()


def _rests(path: Path, owner) -> bool:
    """Whether the owner no longer touches the file, or is a process here that has ended."""
    if _is_here(owner) and not _runs(owner.get("pid")):
        return True
    before = path.stat().st_mtime_ns
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 10)
        with open(path) as again:  # makes a network file system query its server
            if os.fstat(again.fileno()).st_mtime_ns != before:
                return False
    return True


def _runs(pid) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:  # belongs to another user
        return True
    return True


def _in_words(owner) -> str:
    if not owner:
        return "another run"
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"


def _write(file, owner) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(owner) if owner else "")
    file.flush()


def _beat(descriptor: int, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
