"""Long runs: memory stays what it is, and a long record is no burden."""

import json
import resource
import time
from pathlib import Path

import pytest
from tiny import tiny

import asap_jax
from asap_jax.host.run_log import RunLog


def resident():
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
def test_the_memory_of_a_thousand_steps_does_not_grow(tmp_path):
    """A search of 1,000 steps with its checkpoints, from the hundredth step on."""
    config, seen = tiny(), []
    config.search.epochs, config.search.alpha.learning_rate = 250, 1e-5  # four steps an epoch
    config.checkpoint.every_steps = 50

    def on_step(record):
        seen.append(resident())

    asap_jax.search(config, workdir=tmp_path / "run", on_step=on_step, quiet=True)
    assert len(seen) == 1000
    grown = max(seen[900:]) - max(seen[100:200])
    print(f"{seen[100] / 1e6:.0f} MB after 100 steps, {seen[-1] / 1e6:.0f} after 1,000")
    assert grown < 20e6
    states = list((tmp_path / "run" / "checkpoints" / "search-0").iterdir())
    assert len([each for each in states if each.name.isdigit()]) == config.checkpoint.keep


def test_a_record_of_a_million_lines_is_cut_at_once(tmp_path):
    path, count = tmp_path / "metrics.jsonl", 10**6
    with open(path, "w") as file:
        for epoch in range(1, count + 1):
            file.write(f'{{"phase": "search", "run": 0, "epoch": {epoch}, "val_loss": 1.25}}\n')
            if epoch == count - 5:
                kept = file.tell()
        file.write('{"phase": "search", "run": 0, "ep')  # by a process that was killed
    log, begin = RunLog(tmp_path, quiet=True), time.monotonic()
    log.rewind({"phase": "search", "run": 0}, count - 5)
    assert time.monotonic() - begin < 0.5
    with open(path, "rb") as file:
        file.seek(-200, 2)
        last = file.read().splitlines()[-1]
    assert json.loads(last)["epoch"] == count - 5
    assert path.stat().st_size == kept


TRAINING = {"phase": "train", "run": 0}


@pytest.mark.parametrize("ends", ["", '{"epoch": 3', '{"epoch": 3}', "\xff\n", "[1]\n"])
@pytest.mark.parametrize("others", [0, 2])
def test_a_record_goes_back_to_an_epoch(ends, others, tmp_path):
    """A long line spans several reads; one without its end was left by a killed process."""
    path = tmp_path / "metrics.jsonl"
    records = [TRAINING | {"epoch": epoch, "long": "x" * 100_000} for epoch in (1, 2, 3)]
    later = [TRAINING | {"run": 1, "epoch": epoch} for epoch in range(1, others + 1)]
    lines = [json.dumps(record) for record in (*records, *later)]
    path.write_text("".join(f"{line}\n" for line in lines) + ends, encoding="latin-1")
    log = RunLog(tmp_path, quiet=True)
    for epoch in (3, 2, 1, 0):
        log.rewind(TRAINING, epoch)
        assert path.read_text().splitlines() == lines[:epoch] + lines[3:]
        assert path.read_text().endswith("\n") or not epoch + others
