"""The line of an epoch is made of its JSON object, which may be of an older version."""

import json
import math

import pytest

from asap_jax.host.lines import epoch_line
from asap_jax.host.run_log import RunLog

SEARCH = {
    "phase": "search",
    "run": 0,
    "epoch": 2,
    "epochs": 20,
    "steps": 11,
    "temperature": 1.0868,
    "threshold": 0.057,
    "candidates_left": 98,
    "entropy": 0.98765,
    "train_loss": 1.5,
    "train_accuracy": 0.5,
    "val_loss": 2.25,
    "val_accuracy": 0.8125,
    "seconds": 12.34,
}
TRAIN = {
    "phase": "train",
    "run": 0,
    "epoch": 7,
    "epochs": 150,
    "train_loss": 0.12345,
    "train_accuracy": 0.9,
    "seconds": 0.26,
}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            SEARCH,
            "search  2/20  T 1.087  candidates  98  entropy 0.988  loss train 1.500 val 2.250  "
            "val accuracy 81.25 %  12.3 s",
        ),
        (
            SEARCH | {"temperature": None, "entropy": math.nan, "val_loss": None},
            "search  2/20  T -  candidates  98  entropy -  loss train 1.500 val -  "
            "val accuracy 81.25 %  12.3 s",
        ),
        (
            SEARCH | {"stages": 3, "benchmark": {"cifar10": 91.234}},
            "search 1:  2/20  T 1.087  candidates  98  entropy 0.988  loss train 1.500 val 2.250  "
            "val accuracy 81.25 %  cifar10 91.23  12.3 s",
        ),
        (TRAIN, "train   7/150  loss 0.123  train accuracy 90.00 %  0.3 s"),
        (TRAIN | {"phase": "select"}, "select   7/150  loss 0.123  train accuracy 90.00 %  0.3 s"),
    ],
)
def test_a_line(record, line):
    assert epoch_line(record) == line


def test_a_later_stage_is_named():
    assert epoch_line(SEARCH | {"stages": 3, "stage": 2}).startswith("search 3:  2/20  T 1.087")


def test_a_record_from_before_its_epochs_were_counted_is_read():
    del (older := dict(TRAIN))["epochs"]
    assert epoch_line(older) == "train 7  loss 0.123  train accuracy 90.00 %  0.3 s"


def test_what_is_printed_is_the_line_of_what_is_written(tmp_path, capsys):
    """Where a NaN is null, and an array's element a number."""
    log = RunLog(tmp_path)
    log.epoch(SEARCH | {"val_loss": math.nan, "weights": {"normal": [[0.5, 0.5]]}})
    (written,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(written)["val_loss"] is None
    assert capsys.readouterr().out == epoch_line(json.loads(written)) + "\n"
