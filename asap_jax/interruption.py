"""SIGTERM and Ctrl-C as a wish that the loops honour between two steps."""

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


class Interruption:
    """While it is open, the first SIGTERM or SIGINT is noted; a second one acts as usual.

    Outside the main thread, where Python takes no signals, it stays silent.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._signum: int | None = None
        self._before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *exception):
        self._restore()

    def check(self, where: str) -> None:
        """Raises Interrupted if a signal came; `where` tells the user what is safe."""
        if self._signum is not None:
            raise Interrupted(self._signum, where)

    @property
    def wanted(self) -> bool:
        return self._signum is not None

    def _note(self, signum, frame):
        self._signum = signum
        self._restore()

    def _restore(self):
        for s, handler in self._before.items():
            signal.signal(s, handler)
        self._before = {}
