"""The command in a process of its own, as a user starts it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "asap_jax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )
