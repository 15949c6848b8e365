"""A run of the tiny config that signals itself after a given step, for test_resume.

python tests/support/cut_run.py WORKDIR PHASE STEP SIGNAL [EVERY_STEPS]     (PHASE "" for no signal)
"""

import os
import signal
import sys

from tiny import tiny

import asap_jax
from asap_jax.host.interruption import Interrupted


def main(workdir, phase, step, name, every_steps="0"):
    config = tiny()
    config.checkpoint.every_steps = int(every_steps)
    steps = {"search": 4, "train": 4}

    def cut(record):
        done = (record["epoch"] - 1) * steps[record["phase"]] + record["step"]
        if (record["phase"], done) == (phase, int(step)):
            os.kill(os.getpid(), getattr(signal, name))

    try:
        asap_jax.run(config, workdir=workdir, on_step=cut, quiet=True)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)


if __name__ == "__main__":
    main(*sys.argv[1:])
