"""A look at a run: as the run resolves it, without starting or claiming anything."""

import json
import re

import numpy as np
import pytest
from command import command
from PIL import Image
from tiny import TEST, TRAIN, flags, tiny

import asap_jax
from asap_jax import data
from asap_jax.configs import presets
from asap_jax.host import timing, workdir
from asap_jax.host.errors import UserError
from asap_jax.runs import look as looking
from asap_jax.searching import search_loop, stages
from asap_jax.training import train_loop


def test_what_is_told_is_what_a_run_does(tmp_path, capsys):
    folder = tmp_path / "run"
    told = asap_jax.look(tiny(), workdir=folder, timed=False)
    dataset = data.load("digits", train_examples=TRAIN, test_examples=TEST)
    config = tiny()
    assert told["train_images"] == TRAIN and told["test_images"] == TEST
    counts = [each["train"] for each in told["classes"].values()]
    assert counts == np.bincount(dataset.train_labels).tolist()
    assert told["halves"] == [TRAIN // 2, TRAIN // 2]
    assert told["steps"]["search"] == {"epochs": 8, "steps_per_epoch": 4, "times": 1}
    assert told["steps"]["train"] == {"epochs": 2, "steps_per_epoch": 4, "times": 1}
    assert told["memory"]["search"] == stages.estimate(config.search, dataset)._asdict()
    assert told["groups"] is None and told["seconds"] == {}
    printed = capsys.readouterr().out
    for words in ("8 epochs of 4 steps, 32 in all", "8x8, grey", "balance", "random cells"):
        assert words in printed
    with Image.open(told["picture"]) as picture:
        assert picture.width > 500
    assert [path.name for path in folder.iterdir()] == ["look"]


def test_the_workdir_stays_free_for_any_run(tmp_path):
    asap_jax.look(tiny(), workdir=tmp_path, timed=False, quiet=True)
    other = tiny()
    other.search.epochs = 5
    workdir.claim(tmp_path, json.loads(other.to_json()))
    with pytest.raises(UserError, match="holds a run of another config"):  # as the run would be
        asap_jax.look(tiny(), workdir=tmp_path, timed=False, quiet=True)


def test_the_command(tmp_path):
    """It looks and stops: of a training, at the workdir it would have by default."""
    node = ((("skip_connect", 0), ("max_pool_3x3", 1)),)  # compiled soon
    asap_jax.Genotype(node, (2,), node, (2,)).save(tmp_path / "cells.json")
    own = flags(genotype=tmp_path / "cells.json")
    done = command("--mode=train", "--config=search:digits", *own, "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was begun; the same command without --dry_run" in done.stdout
    assert re.search(r"a training step +[\d.]+ m?s", done.stdout)
    assert "time, search" not in done.stdout and "random cells" not in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in folder.iterdir()] == ["look"]


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = asap_jax.look(tiny(), timed=False, quiet=True)
    assert told["picture"] is None and not [*tmp_path.iterdir()]


@pytest.mark.slow  # compiles the steps of both parts
def test_the_time_is_that_of_the_runs_own_steps(capsys):
    """Both programs, each with as many steps as the run takes."""
    told = asap_jax.look(tiny())
    printed = capsys.readouterr().out
    assert "compiling a step of each part to time it" in printed
    assert "at most" in printed and "since candidates leave on the way" in printed
    assert 0 < told["seconds"]["train"] < 600
    assert 0 < told["seconds"]["search"] < 6000


def test_a_trial_is_extrapolated_by_the_number_of_steps():
    trial = search_loop.Trial(9.0, {True: (0.5, 10), False: (0.25, 4)}, 2.0, 3)
    assert trial.seconds == 0.5 * 10 + 0.25 * 4 + 3 * 2.0
    assert train_loop.Trial(9.0, 0.5, 10).seconds == 5.0
    assert looking._step_told(trial) == "500 ms when the alphas learn, 250 ms when they rest"


def test_steps_without_learning_alphas_are_timed_apart(monkeypatch):
    """DARTS' warm-up in PC-DARTS: the alphas rest in the first epochs."""
    config = tiny()
    presets.update(
        config.search, {"strategy": {"name": "pc_darts", "partial_channels": 2, "grace": 0.5}}
    )
    dataset = data.load("digits", train_examples=TRAIN, test_examples=TEST)
    stage = stages.build(config.search, dataset)
    learns = np.array([bool(stage.strategy.learns(step)) for step in range(8 * 4)])
    assert 0 < learns.sum() < len(learns)
    from asap_jax.searching.planned_step import PlannedStep

    planned = PlannedStep(
        stage.step(config.search), None, None, None, batch_size=20, epochs=8, steps_per_epoch=4,
        precision="auto", compiler=None, say=print,
    )  # fmt: skip
    assert planned.kinds() == {
        False: (int(np.argmin(learns)), int((~learns).sum())),
        True: (int(np.argmax(learns)), int(learns.sum())),
    }


def test_memory_that_is_missing_is_told_after_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("asap_jax.host.memory.available", lambda: 10)
    with pytest.raises(UserError, match="the search is estimated to take"):
        asap_jax.look(tiny(), workdir=tmp_path)
    assert "memory, search" in capsys.readouterr().out
    told = asap_jax.look(tiny(), check_memory=False, timed=False, quiet=True)
    assert told["memory_available"] == 10


def photographs(folder, counts):
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"p{i // 2}_{i}.png")
    return f"folder:{folder}"


def test_a_stream_is_looked_at_without_reading_all_of_it(tmp_path, monkeypatch, capsys):
    source = photographs(tmp_path / "images", {"few": 10, "many \u732b $x$": 30})
    config = tiny()
    config.genotype, config.train.batch_size = "ASAP", 10
    config.data.update({"train_examples": 0, "test_examples": 0, "source": source})
    config.data.update({"streaming": "on", "image_size": 8, "workers": 0, "group": r"p\d+_"})
    monkeypatch.setattr(looking, "IMAGES", 2)
    read = []
    sample = data.Stream.train_sample
    monkeypatch.setattr(
        data.Stream, "train_sample", lambda self, rows: read.extend(rows) or sample(self, rows)
    )
    told = asap_jax.look(config, mode="train", workdir=tmp_path / "run", timed=False)
    printed = capsys.readouterr().out
    assert len(read) == 2 * 2
    assert told["streamed"] and told["halves"] is None and "search" not in told["steps"]
    assert told["memory"]["train"]["data"] == 0
    assert told["groups"] > 5
    assert sum(each["train"] for each in told["classes"].values()) == told["train_images"]
    assert "uneven" in printed and "class_weights=balanced" in printed
    assert "streamed from disk" in printed


def test_labels_that_would_have_to_be_read_are_left_out():
    config = tiny()
    dataset = data.load("digits", train_examples=TRAIN, test_examples=TEST)
    classes = {name: {"train": None, "test": None} for name in dataset.class_names}
    ((_, told),) = looking._class_rows(classes)
    assert "10; images of each not counted" in told
    rows = looking._rows_to_draw(None, 1000, config.seed)
    assert len(set(rows.tolist())) == looking.UNKNOWN


def test_many_classes_are_not_listed_one_by_one():
    classes = {f"c{i}": {"train": 10 + i, "test": 1} for i in range(50)}
    names = [name.strip() for name, _ in looking._class_rows(classes)]
    assert names == ["classes", "c49", "c48", "c47", "...", "c2", "c1", "c0", "balance"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (3725, "1 h 2 min")],
)
def test_durations(seconds, text):
    assert timing.duration(seconds) == text
