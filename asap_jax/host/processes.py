"""Several processes of one run, joined by `jax.distributed`: what they have to agree on.

Each process runs the same program over the devices of all of them. What a step computes is the same
in each. What depends on the clock, on files or on signals may differ: there the first process
decides and tells the others, or all learn what any of them noticed. The first one alone writes.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from asap_jax.host.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
PATIENCE = 600  # seconds that processes wait for the first one, which writes, when all is done
GONE = 75  # exit code of a process that lost another one; EX_TEMPFAIL: another try may do
_LOST = "gloo|nccl|connection|peer|heartbeat|coordination|unavailable|deadline|aborted"


def join() -> None:
    """Joins the other processes of this run; to be called before anything uses a device.

    They meet at the first one's address. SLURM, Kubernetes and MPI tell it to JAX; elsewhere the
    environment has JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.

    Raises:
      UserError: neither does, or the processes did not meet within five minutes.
    """
    # Signals are the run's own affair, see `interruption`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        count, index = (
            int(os.environ[key]) if key in os.environ else None for key in (COUNT, INDEX)
        )
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            # What the environment says holds for all that is asked for: each process has the
            # devices that it sees. A cluster gives each the one of its number on the machine.
            cluster_detection_method="deactivate" if None not in (count, index) else None,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=PATIENCE,
        )
        jax.devices()  # all wait for all here, once
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"this process cannot join the others of the run ({' '.join(str(error).split())[:200]})"
            f": outside of SLURM, Kubernetes and MPI set {ADDRESS} (host:port of the first one), "
            f"{COUNT} and {INDEX} (from 0), or leave out --distributed"
        ) from error


def leave() -> None:
    """Leaves the run together with the other processes, when all is done."""
    if not alone():
        jax.distributed.shutdown()


def alone() -> bool:
    """Whether this is the only process of the run; one that has not joined others is."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def index() -> int:
    """This process's number among those of the run."""
    return 0 if alone() else jax.process_index()


def leads() -> bool:
    """Whether this process decides and writes."""
    return index() == 0


@contextlib.contextmanager
def refused_together() -> Iterator[None]:
    """A context in which any process may raise a UserError, and then all do.

    They must not compute anything together within.
    """
    try:
        yield
    except UserError:
        largest(1)
        raise
    if largest(0):
        raise UserError("another process of this run was refused what it asked for, as it says")


def check_same(described: dict[str, Any]) -> None:
    """Raises UserError in all processes if what they are about to run differs.

    Args:
      described: {what: plain JSON}.
    """
    if alone():
        return
    first, own = agreed(described), json.loads(json.dumps(described))
    differing = [what for what in own if largest(own[what] != first.get(what))]
    if differing:
        raise UserError(
            f"the processes of this run differ in {', '.join(differing)}: start all with the same "
            "command, versions and data (where config.data.streaming=auto decides by the memory "
            "left, set it to on or off)"
        )


def lost(error: BaseException) -> bool:
    """Whether an error is of the kind that the loss of another process causes."""
    return re.search(_LOST, str(error), re.IGNORECASE) is not None


def agreed(value: Any) -> Any:
    """The first process's value, plain JSON. All processes have to call this, in the same order."""
    if alone():
        return value
    text = json.dumps(value).encode() if leads() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(max(64, 1 << (size - 1).bit_length()), np.uint8)  # few shapes to compile for
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)[:size]))


def largest(number: int) -> int:
    """The largest of the processes' numbers. All have to call this, in the same order."""
    return number if alone() else int(multihost_utils.process_allgather(np.int32(number)).max())


def shared(tree: Any) -> Any:
    """The first process's tree of NumPy arrays, given ones of these shapes by the others."""
    return tree if alone() else multihost_utils.broadcast_one_to_all(tree)
