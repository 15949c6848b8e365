"""Runs the command in its own process, as a user starts it."""

import json
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


# Imports once what takes seconds, then forks a process for each command. `main` itself must be
# imported in these: it reads the arguments while it is imported.
_EACH = """
import json, os, runpy, sys, tempfile
import asap_jax, asap_jax.runs.comparing, asap_jax.runs.inspection, asap_jax.runs.look
for arguments in json.loads(sys.argv[1]):
    streams = [tempfile.TemporaryFile("w+") for _ in range(2)]
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            for i, stream in enumerate(streams, 1):
                os.dup2(stream.fileno(), i)
            sys.argv = ["asap_jax.main", *arguments]
            runpy.run_module("asap_jax.main", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else bool(ended.code)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    [stream.seek(0) for stream in streams]
    print(json.dumps([code, *(stream.read() for stream in streams)]))
"""


def each_command(cases, cwd=ROOT):
    """[CompletedProcess], of the command with each of the lists of arguments, in a process each."""
    done = subprocess.run(
        [sys.executable, "-c", _EACH, json.dumps([list(case) for case in cases])],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = map(json.loads, done.stdout.splitlines())
    return [
        subprocess.CompletedProcess(list(case), code, out, without_plugin(error))
        for case, (code, out, error) in zip(cases, results, strict=True)
    ]
