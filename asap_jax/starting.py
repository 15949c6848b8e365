"""What has to be in place before anything large is imported; importing this puts it there."""

import os
import signal
import sys


def _quiet_if_command() -> None:
    """If the command is being started, lets Ctrl-C end it without the traceback of an import."""
    started = sys.argv[:1] == ["-m"] and "asap_jax.main" in sys.orig_argv
    if started and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def over() -> None:
    """Gives Ctrl-C back its meaning: the command's own code takes it from here on."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signum, frame) -> None:
    os.write(2, b"asap_jax: interrupted, before anything was begun\n")
    os._exit(128 + signum)


_quiet_if_command()
