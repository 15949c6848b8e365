"""TensorBoard's event files, written with the package tensorboard and without TensorFlow.

They are a copy of metrics.jsonl and weights.jsonl for another reader: one folder a stage, named as
its checkpoints are, so that TensorBoard draws several searches or seeds into one chart. A run that
resumes makes them anew from those two files, so that no epoch is in them twice.
"""

import io
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from asap_jax.host.errors import UserError

_PLACE = ("phase", "run", "stage", "epoch", "epochs", "steps", "stages")


def check() -> None:
    """Raises UserError if the package tensorboard is missing."""
    try:
        _library()
    except ImportError as error:
        raise UserError(
            f"config.tensorboard is True, which needs the package tensorboard ({error}): "
            "pip install 'asap_jax[tensorboard]', or set it to False"
        ) from error


class EventFiles:
    """The event files of a run: folder/STAGE/events.out.tfevents.*.

    Args:
      folder: for these files alone.
      records: of the epochs so far, as in `write`. They replace what the folder holds.

    Raises:
      OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, records: Iterable[Mapping]):
        self._folder, self._paths = folder, {}
        for path in folder.glob("*/events.out.tfevents.*"):
            path.unlink()
        stages = {}
        for record in records:
            stages.setdefault(_stage(record), []).append(record)
        for name, group in stages.items():
            self._append(name, b"".join(map(_epoch, group)))

    def write(self, record: Mapping) -> None:
        """Appends an epoch.

        Args:
          record: becomes the scalars that `scalars` names. If it has "weights", {cell type:
            [E][O]}, there is a histogram of them for each cell type, "search/weights_CELL".
        """
        self._append(_stage(record), _epoch(record))

    def _append(self, stage, encoded) -> None:
        if stage not in self._paths:
            # A new name, since a TensorBoard that is open reads each file once, in their order.
            self._paths[stage] = self._folder / stage / f"events.out.tfevents.{time.time_ns()}"
            self._paths[stage].parent.mkdir(parents=True, exist_ok=True)
            encoded = _encoded(file_version="brain.Event:2") + encoded
        with open(self._paths[stage], "ab") as file:
            file.write(encoded)


def scalars(record: Mapping) -> dict[str, float]:
    """{tag: value} of a record's finite numbers: "search/val_accuracy", "train/loss".

    The columns of `config.search.benchmark` are "search/benchmark/COLUMN".
    """
    phase, found = record["phase"], {}
    for key, value in record.items():
        name = f"{phase}/{key.removeprefix(f'{phase}_')}"
        named = {name: value}
        if isinstance(value, Mapping):
            named = {f"{name}/{each}": number for each, number in value.items()}
        if key not in _PLACE:
            found |= {tag: number for tag, number in named.items() if _is_finite(number)}
    return found


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _stage(record) -> str:
    stage = record.get("stage", 0)
    return f"{record['phase']}-{record['run']}" + (f"-{stage}" if stage else "")


def _epoch(record) -> bytes:
    _, event_pb2, histogram_pb = _library()
    summary = event_pb2.Event().summary
    for tag, value in scalars(record).items():
        summary.value.add(tag=tag, simple_value=value)
    for cell, weights in record.get("weights", {}).items():
        summary.MergeFrom(histogram_pb(f"{record['phase']}/weights_{cell}", np.asarray(weights)))
    return _encoded(step=record["epoch"], summary=summary)


def _encoded(**fields) -> bytes:
    """An event, framed as in a file."""
    writer, event_pb2, _ = _library()
    file = io.BytesIO()
    writer(file).write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())
    return file.getvalue()


def _library():
    """(RecordWriter, event_pb2, histogram_pb) of the package; none of them loads TensorFlow."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    return RecordWriter, event_pb2, histogram_pb
