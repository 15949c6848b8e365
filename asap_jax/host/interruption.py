"""Defers SIGTERM, Ctrl-C and similar signals until a loop can stop between two steps."""

import signal
import threading

from asap_jax.host import processes


class Interrupted(KeyboardInterrupt):
    """Raised when a run stops at a signal, with its state saved.

    signum: the signal.
    where: how far the run got, in words.
    """

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum, self.where = signum, where


NOBODY_READS = 13  # SIGPIPE, which not every platform defines


class Interruption:
    """Context manager that records the first signal; a second one acts as usual.

    It handles SIGTERM, SIGINT (Ctrl-C), and SIGHUP (terminal closed) unless that is ignored, as
    under nohup. Loss of the output's reader is reported to `ask`, not taken from SIGPIPE, which any
    pipe or socket of the process may raise.

    Outside the main thread, where Python cannot handle signals, none are recorded. Of several
    processes of one run any may get one; all stop.
    """

    SIGNALS = tuple(
        getattr(signal, name)
        for name in ("SIGTERM", "SIGINT", "SIGHUP")
        if hasattr(signal, name)  # Windows has only two of them
    )

    def __init__(self):
        self._signum: int | None = None
        self._before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            taken = [s for s in self.SIGNALS if not is_ignored_hangup(s)]
            self._before = {s: signal.signal(s, self._note) for s in taken}
        return self

    def __exit__(self, *exception):
        self._restore()

    def check(self, where: str) -> None:
        """Raises Interrupted if a signal arrived; `where` tells the user what is saved.

        All processes of a run have to call this at the same place.
        """
        if signum := processes.largest(self._signum or 0):
            raise Interrupted(signum, where)

    def ask(self, signum: int) -> None:
        """Requests a stop as if this signal had arrived."""
        if self._signum is None:
            self._signum = signum

    @property
    def wanted(self) -> bool:
        return self._signum is not None

    def _note(self, signum, frame):
        self._signum = signum
        ignored = [s for s, handler in self._before.items() if handler is signal.SIG_IGN]
        self._restore()
        for s in ignored:  # the second one ends the process, even in a script's background job
            signal.signal(s, signal.SIG_DFL)

    def _restore(self):
        for s, handler in self._before.items():
            signal.signal(s, signal.SIG_DFL if handler is None else handler)
        self._before = {}


def is_ignored_hangup(signum) -> bool:
    """Whether this is SIGHUP and the process was started with it ignored (nohup)."""
    hangup = getattr(signal, "SIGHUP", None)
    return signum == hangup and signal.getsignal(signum) is signal.SIG_IGN
