"""Lines of a run's log, made of the records in metrics.jsonl alone."""

import math
import statistics
from collections.abc import Mapping, Sequence

MEASURED_ON = (
    "val and gap are of the half of the training images that guides the search: optimistic, and no "
    "test images"
)
RECENT = 3  # epochs whose median time is the pace: the first one compiles
_STAGE = ("phase", "run", "stage")


def epoch_line(record: Mapping) -> str:
    """The line of an epoch: where it stands, what was measured, seconds.

    Args:
      record: as `RunLog.epoch` writes it; null, NaN and missing values are shown as "-". Versions
        before `epochs` was in it are read too.
    """
    epoch, epochs = record["epoch"], record.get("epochs")
    place = str(epoch) if epochs is None else f"{epoch:>{len(str(epochs))}}/{epochs}"
    name = record["phase"]
    if "stages" in record:
        name += f" {record.get('stage', 0) + 1}:"
    columns = _search(record) if record["phase"] == "search" else _training(record)
    return "  ".join([f"{name} {place}", *columns, f"{_number(record, 'seconds', 1)} s"])


def _search(record) -> list[str]:
    return [
        f"T {_number(record, 'temperature', 3)}",
        f"candidates {_number(record, 'candidates_left', 0):>3}",
        f"entropy {_number(record, 'entropy', 3)}",
        f"loss train {_number(record, 'train_loss', 3)} val {_number(record, 'val_loss', 3)}",
        f"val accuracy {_percent(record, 'val_accuracy')}",
        *(f"{name} {value:.2f}" for name, value in record.get("benchmark", {}).items()),
    ]


def _training(record) -> list[str]:
    return [
        f"loss {_number(record, 'train_loss', 3)}",
        f"train accuracy {_percent(record, 'train_accuracy')}",
    ]


def _number(record, key, digits) -> str:
    value = record.get(key)
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(record, key) -> str:
    value = record.get(key)
    return _number({} if value is None else {key: 100 * value}, key, 2) + " %"


def seconds_left(records: Sequence[Mapping]) -> float | None:
    """How long the stage of the last record takes yet, at the pace of its last few epochs.

    None if nothing tells: no record, or one of a version before `epochs` was in it.
    """
    if not records or "epochs" not in records[-1]:
        return None
    last = records[-1]
    stage = [r for r in records if all(r.get(key) == last.get(key) for key in _STAGE)]
    pace = statistics.median(record["seconds"] for record in stage[-RECENT:])
    return (last["epochs"] - last["epoch"]) * pace
