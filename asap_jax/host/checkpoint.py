"""Orbax wrapper: saves and restores trees of arrays, and the last few states of a loop."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.sharding import NamedSharding

from asap_jax.host import processes
from asap_jax.host.devices import Devices
from asap_jax.host.errors import UserError

ROOM = 8 * 1024**2  # bytes that a checkpoint may take in addition to its arrays
DIGESTS = "digests.json"  # of the arrays of a saved tree
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError)


def save(path: str | Path, tree) -> None:
    """Writes a tree of arrays to the folder `path`; an existing one is replaced at the end.

    The new files are verified by reading them before they replace the old ones.

    Raises:
      UserError: writing fails, or what was written does not match when read.
    """
    path, tree = Path(path).absolute(), _host_copy(tree)
    check_place(path)
    partial = path.with_name(path.name + ".part")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path.parent, tree)
        with _checkpointer() as checkpointer:
            checkpointer.save(partial, tree, force=True)
        _check_written(partial, tree)
        (partial / DIGESTS).write_text(json.dumps(digests(tree), indent=1) + "\n")
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)


def restore(path: str | Path, like=None):
    """Reads a tree of arrays; with `like` (arrays or shapes), in its structure and placement.

    Raises:
      OSError, ValueError: the checkpoint is missing, incomplete or damaged.
    """
    path = Path(path).absolute()
    _read_through(path)
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path, like)
    if (path / DIGESTS).is_file():  # versions before had none
        _check_digests(tree, json.loads((path / DIGESTS).read_text()))
    return tree


def _this_process() -> ocp.options.MultiprocessingOptions:
    """Options by which orbax waits for no other process of the run, for none of them takes part."""
    index = processes.index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=_this_process())


def digests(tree) -> dict[str, str]:
    """{name: type, shape and a digest of the bytes} of each array of a tree."""

    def digest(leaf):
        leaf = np.asarray(leaf)
        hashed = hashlib.blake2b(leaf.tobytes(), digest_size=16).hexdigest()
        return f"{leaf.dtype} {list(leaf.shape)} {hashed}"

    return {_name(path): digest(leaf) for path, leaf in _leaves(tree)}


def _digest_of_json(record) -> str:
    """The same for what is written and for what is read again."""
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check_digests(tree, expected: dict[str, str]) -> None:
    """Raises ValueError if an array is not what was written, or not there."""
    found = digests(tree)
    names = sorted(found.keys() | expected.keys())

    def is_wrong(name):
        got, want = found.get(name), expected.get(name)
        if got is None or want is None:
            return True
        return got != want and got.split()[0] == want.split()[0]  # it may be read as another type

    wrong = [name for name in names if is_wrong(name)]
    if wrong:
        raise ValueError(
            f"{wrong[0]} is not what was written ({len(wrong)} of {len(names)} arrays)"
        )


def check_place(path: str | Path) -> None:
    """Raises UserError for a path whose checkpoints could not be read again.

    Orbax treats a `[` in a path as a pattern when it merges its files, and TensorStore treats a
    backslash as a separator.
    """
    spoilt = [sign for sign in "[\\" if sign in str(path) and sign != os.sep]
    if spoilt:
        raise UserError(
            f"{path} has a {spoilt[0]} in its name or in that of a folder above it, and what is "
            "saved there could not be read again: choose a path without [ and backslashes"
        )


def _read_through(path: Path) -> None:
    """Reads each key of a checkpoint in turn; raises OSError or ValueError if one is broken.

    Orbax reads all of them concurrently, and if one fails, each of the others prints a traceback
    that cannot be caught.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there")
    if not (path / "manifest.ocdbt").is_file():
        raise FileNotFoundError(f"{path} holds no manifest.ocdbt: it was not written whole")
    base = {"driver": "file", "path": f"{path}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    if not keys:
        raise FileNotFoundError(
            f"{path} holds no arrays; with a backslash in its path it has to be moved to be read"
        )
    for key in keys:
        store.read(key).result()


def _check_written(path: Path, tree) -> None:
    """Raises ValueError if the checkpoint at `path` does not match `tree`."""
    got = {_name(p): np.asarray(leaf) for p, leaf in _leaves(restore(path, tree))}
    for p, leaf in _leaves(tree):
        found = got[_name(p)]
        if (found.dtype, found.shape) != (leaf.dtype, leaf.shape) or (
            found.tobytes() != leaf.tobytes()
        ):
            raise ValueError(f"{_name(p)} does not read as it was written")


def _check_room(folder: Path, tree) -> None:
    """Raises OSError before orbax starts if a tree of NumPy arrays would not fit on the disk."""
    needed, left = ROOM + sum(leaf.nbytes for leaf in jax.tree.leaves(tree)), _room(folder)
    if left < needed:
        raise OSError(
            f"about {needed / 1e6:.0f} MB are needed, and {left / 1e6:.0f} MB are left on the disk"
        )


def _room(folder: Path) -> int:
    """Free bytes on the disk of `folder`; unlimited if unknown."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else sys.maxsize


@contextlib.contextmanager
def _writing(where: Path):
    """Turns errors while writing into a single UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # orbax' threads may raise any of these
        raise UserError(
            f"{where} cannot be saved ({' '.join(str(error).split())[:300]}): see that there is "
            "room and that the folder can be written to; the same command then goes on from what "
            "was saved before"
        ) from error


class Checkpoints:
    """The last few states of one stage of a run, written in the background.

    Each is a folder named by its step, with two items: `state`, a tree of arrays, and `progress`,
    JSON, which holds a digest of each array and one of itself. Folders appear atomically, so a
    process that dies while writing loses only that state.

    Args:
      folder: folder of this stage.
      identity: what the state belongs to (cells, shapes, data), plain JSON. Restoring a state with
        another identity raises an error that names the differences.
      keep: number of states to keep.
      every_steps, every_seconds: save intervals; 0 disables either one.
    """

    def __init__(
        self, folder: Path, identity: dict, keep: int, every_steps: int, every_seconds: float
    ):
        self._folder, self._identity = folder, identity
        self._every_steps, self._every_seconds = every_steps, every_seconds
        self._written, self._last = time.monotonic(), None
        self.passed_over: list[str] = []  # by `latest`: damaged states, each as a sentence
        check_place(folder.absolute())
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=False,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                    multiprocessing_options=_this_process(),
                ),
            )

    def due(self, step: int) -> bool:
        """Whether to save now, after `step` steps of the stage."""
        by_steps = self._every_steps and step % self._every_steps == 0
        waited = time.monotonic() - self._written
        return bool(by_steps or (self._every_seconds and waited >= self._every_seconds))

    def save(self, step: int, state, progress: dict) -> None:
        """Copies the state and writes it in the background.

        Raises:
          UserError: this state, or the previous one, cannot be written.
        """
        with _writing(self._folder / str(step)):
            if step not in self._manager.all_steps():
                copied = _host_copy(state)
                _check_room(self._folder, copied)
                record = {**progress, "identity": self._identity, "digests": digests(copied)}
                record["digest"] = _digest_of_json(record)
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(copied), progress=ocp.args.JsonSave(record)
                    ),
                    force=True,
                )
                self._last = step
        self._written = time.monotonic()

    def settle(self) -> None:
        """Waits for all writes; raises UserError if the last saved state cannot be read again."""
        if self._last is None:
            return
        where = self._folder / str(self._last)
        with _writing(where):
            self._manager.wait_until_finished()
            _read_through(where.absolute() / "state")
        self._last = None

    def latest(self, like) -> tuple[Any, dict] | None:
        """The latest (state, progress) that is undamaged, or None if there is none at all.

        Damaged states after it are moved aside, to `damaged-STEP`, so that the run can save its own
        there; `passed_over` then tells of them.

        Raises:
          UserError: the state has another identity or other shapes, or all states are damaged;
            their files are left as they are.
        """
        damaged: list[tuple[Path, str]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            where = self._folder / str(step)
            try:
                state, progress = self._read(step, like)
            except UserError:
                raise
            except _DAMAGE as error:
                damaged.append((where, " ".join(str(error).split())[:300]))
                continue
            check_shapes(f"the checkpoint {where}", state, _plain_shapes(like))
            self._set_aside(damaged, where)
            return _placed(state, like), progress
        if damaged:
            where, why = damaged[0]
            others = f", nor the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
            raise UserError(
                f"the checkpoint {where} cannot be read ({why}){others}; nothing was changed "
                f"there: restore {self._folder} from a copy, or remove it to start this stage anew"
            )
        return None

    def _read(self, step: int, like) -> tuple[Any, dict]:
        """The (state, progress) of a step; raises one of `_DAMAGE` if it is damaged."""
        where = self._folder / str(step)
        item = ocp.args.Composite(progress=ocp.args.JsonRestore())
        progress = self._manager.restore(step, args=item)["progress"]
        expected, own = progress.get("digests"), progress.pop("digest", None)
        if (expected, own) != (None, None) and own != _digest_of_json(progress):
            raise ValueError("its progress is not what was written")  # versions before had neither
        progress.pop("digests", None)
        check_identity(where, progress.pop("identity", {}), self._identity)
        _read_through(where.absolute() / "state")
        item = ocp.args.Composite(state=ocp.args.StandardRestore(_plain_shapes(like)))
        state = self._manager.restore(step, args=item)["state"]
        if expected is not None:
            _check_digests(state, expected)
        return state, progress

    def _set_aside(self, damaged: list[tuple[Path, str]], used: Path) -> None:
        for where, why in damaged:
            aside = where.with_name(f"damaged-{where.name}")
            with _writing(where):
                shutil.rmtree(aside, ignore_errors=True)
                where.rename(aside)
            self.passed_over.append(
                f"the checkpoint {where} cannot be read ({why}): going on from {used.name}, and "
                f"keeping it as {aside.name}"
            )
        if damaged:
            self._manager.reload()

    def close(self) -> None:
        """Waits for all writes and closes; raises UserError if a write failed."""
        with _writing(self._folder):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()


def shared(found: tuple[Any, dict] | None, like) -> tuple[Any, dict] | None:
    """What `Checkpoints.latest` found in the first process, in all processes of the run."""
    if processes.alone():
        return found
    progress = processes.agreed(found and found[1])
    if progress is None:
        return None
    state = _host_copy(found[0]) if found else _plain_shapes(like)
    return _placed(processes.shared(state), like), progress


def check_identity(where: Path, identity: dict, expected: dict) -> None:
    """Raises UserError if the identity of the state at `where` is not the expected one."""
    changed = [
        f"{key}: {identity.get(key)} there, {expected.get(key)} here"
        for key in {**identity, **expected}
        if identity.get(key) != expected.get(key)
    ]
    if changed:
        raise UserError(
            f"{where} belongs to another run ({'; '.join(changed)}): choose another --workdir, or "
            "remove that one"
        )


def check_shapes(what: str, tree, expected) -> None:
    """Raises UserError if names or shapes of `tree` differ from `expected`; `what` names it."""
    got, want = ({_name(p): leaf.shape for p, leaf in _leaves(t)} for t in (tree, expected))
    wrong = [
        f"{name} is {got.get(name, 'missing')}, expected {want.get(name, 'nothing')}"
        for name in sorted(got.keys() | want.keys())
        if got.get(name) != want.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{what} does not fit: {'; '.join(wrong[:3])}{more}. Its genotype, number of classes, "
            "channels or cells are others, or it is of another version of asap_jax"
        )


def _leaves(tree):
    return jax.tree.flatten_with_path(tree)[0]


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host_copy(tree):
    """NumPy copies, since the next step may reuse the arrays' memory during the write."""

    def copy(leaf):
        leaf = jax.random.key_data(leaf) if hasattr(leaf, "dtype") and _is_key(leaf) else leaf
        return np.array(leaf)

    return jax.tree.map(copy, tree)


def _plain_shapes(like):
    def shape(leaf):
        if _is_key(leaf):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return np.empty(leaf.shape, leaf.dtype)

    return jax.tree.map(shape, like)


def _placed(state, like):
    def place(value, leaf):
        value = jnp.asarray(value)
        value = jax.random.wrap_key_data(value) if _is_key(leaf) else value
        place = leaf.sharding if isinstance(leaf, jax.Array) else None
        return Devices(place.mesh).put(value) if isinstance(place, NamedSharding) else value

    return jax.tree.map(place, state, like)
