"""Setup that must happen before any large import; importing this module performs it."""

import os
import signal
import sys


def _quiet_if_command() -> None:
    """If this is the command, makes Ctrl-C during imports end it without a traceback."""
    started = sys.argv[:1] == ["-m"] and "asap_jax.main" in sys.orig_argv
    if started and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def over() -> None:
    """Restores the default Ctrl-C handler; the command's own code takes over."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signum, frame) -> None:
    os.write(2, b"asap_jax: interrupted, before anything was begun\n")
    os._exit(128 + signum)


_quiet_if_command()
