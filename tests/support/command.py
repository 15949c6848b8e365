"""Runs the command in its own process, as a user starts it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Printed by JAX's CUDA plugin on a machine without a driver, when JAX is imported.
PLUGIN = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR\n"
    r"|I\d{4} .*\] Could not find cuda drivers on your machine, GPU will not be used\.\n"
)


def command(*arguments, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-m", "asap_jax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )
    done.stderr = without_plugin(done.stderr)
    return done


def without_plugin(stderr):
    """What the command itself wrote to stderr."""
    return PLUGIN.sub("", stderr)
