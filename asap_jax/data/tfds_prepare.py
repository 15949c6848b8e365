"""Downloads and prepares a tensorflow_datasets data set in a subprocess.

Preparing a tfds data set requires TensorFlow (the extra `prepare`), reading one does not. The
subprocess keeps TensorFlow, its threads and its memory out of the training process.
"""

import importlib.util
import subprocess
import sys

from asap_jax.host.errors import UserError

HINT = (
    "To download and prepare it once, add --config.data.prepare=True (needs TensorFlow: "
    "pip install 'asap_jax[prepare]'); or let --config.data.dir point at a folder that holds "
    "it prepared, in the array_record format."
)

_CODE = """
import sys
import tensorflow_datasets as tfds
name, data_dir = sys.argv[1:]
builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
builder.download_and_prepare()
"""


def run(name: str, data_dir: str | None) -> None:
    """Prepares data set `name` in `data_dir`; raises UserError with its last message."""
    last, command = "no message", [sys.executable, "-c", _CODE, name, data_dir or ""]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # a pipe
        for line in process.stderr:  # tfds reports its progress there
            sys.stderr.write(line)
            last = line.strip() or last
    if process.returncode == 0:
        return
    if importlib.util.find_spec("tensorflow") is None:
        last += " (TensorFlow, which preparing needs, is not installed: pip install "
        last += "'asap_jax[prepare]')"
    raise UserError(f"tfds could not prepare the data set {name!r}: {last}")
