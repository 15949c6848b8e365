"""SIGTERM, Ctrl-C and the like as a wish that the loops honour between two steps."""

import signal
import threading


class Interrupted(KeyboardInterrupt):
    """The run stopped because a signal asked for it, its state saved.

    signum: the signal.
    where: what was reached, in words.
    """

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum, self.where = signum, where


NOBODY_READS = 13  # SIGPIPE, which not every system has


class Interruption:
    """While it is open, the first of its signals is noted; a second one acts as usual.

    They are SIGTERM, SIGINT (Ctrl-C), and SIGHUP (a terminal that is closed) unless it is ignored
    as under nohup. That nobody reads any more what is printed is noted like them, by `ask`; not by
    SIGPIPE, which any pipe or socket of the process may raise.

    Outside the main thread, where Python takes no signals, it stays silent.
    """

    SIGNALS = tuple(
        getattr(signal, name)
        for name in ("SIGTERM", "SIGINT", "SIGHUP")
        if hasattr(signal, name)  # Windows has two of them
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
        """Raises Interrupted if a signal came; `where` tells the user what is safe."""
        if self._signum is not None:
            raise Interrupted(self._signum, where)

    def ask(self, signum: int) -> None:
        """Notes a wish to end as if this signal had come."""
        if self._signum is None:
            self._signum = signum

    @property
    def wanted(self) -> bool:
        return self._signum is not None

    def _note(self, signum, frame):
        self._signum = signum
        self._restore()

    def _restore(self):
        for s, handler in self._before.items():
            signal.signal(s, signal.SIG_DFL if handler is None else handler)
        self._before = {}


def is_ignored_hangup(signum) -> bool:
    """Whether it is SIGHUP, and whoever started this process had it ignore that (nohup)."""
    hangup = getattr(signal, "SIGHUP", None)
    return signum == hangup and signal.getsignal(signum) is signal.SIG_IGN
