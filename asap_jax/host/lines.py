"""Lines of a run's log, made of the records in metrics.jsonl alone."""

import math
from collections.abc import Mapping

MEASURED_ON = (
    "val and gap are of the half of the training images that guides the search: optimistic, and no "
    "test images"
)


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
