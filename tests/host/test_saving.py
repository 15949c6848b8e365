"""What is saved can be read again, or the run reports at once that it cannot."""

import errno
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_loop import Run, saved
from tiny import tiny

from asap_jax.host import checkpoint, workdir
from asap_jax.host.checkpoint import Checkpoints
from asap_jax.host.errors import UserError
from asap_jax.runs import inputs, inspection, runner, trained

TREE = {"a": {"b": np.arange(5, dtype=np.float32), "c": np.int32(3)}}
UNREADABLE = ("lr=[0.1]", "lr=[0.1]/below", "a\\b", "[")
READABLE = ("lr=(0.1)", "a*b?", "ä € {x} #%", "~x")


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_path_that_could_not_be_read_again_is_refused_at_the_start(name, tmp_path):
    for write in (
        lambda: runner.run(tiny(), tmp_path / name, quiet=True),
        lambda: checkpoint.save(tmp_path / name / "network", TREE),
        lambda: Checkpoints(tmp_path / name / "checkpoints", {}, 2, 0, 0),
        lambda: trained._place_to_save(tmp_path / name),
    ):
        with pytest.raises(UserError, match=r"choose a path without \["):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", READABLE)
def test_other_paths_are_written_to_and_read(name, tmp_path):
    checkpoint.save(tmp_path / name / "network", TREE)
    np.testing.assert_equal(checkpoint.restore(tmp_path / name / "network"), TREE)
    Run(tmp_path / name)()
    assert saved(tmp_path / name) == [8]


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_was_moved_to_such_a_path_is_read_or_told_of_in_one_error(name, tmp_path):
    checkpoint.save(tmp_path / "network", TREE)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / "network").rename(tmp_path / name / "network")
    if "\\" in name:
        with pytest.raises(OSError, match="with a backslash in its path it has to be moved"):
            checkpoint.restore(tmp_path / name / "network")
    else:
        np.testing.assert_equal(checkpoint.restore(tmp_path / name / "network"), TREE)


def damage(folder, how):
    """Damages a checkpoint in `folder`."""
    if how == "manifest gone":
        (folder / "manifest.ocdbt").unlink()
    if how == "manifest empty":
        (folder / "manifest.ocdbt").write_bytes(b"")
    for file in (folder / "d").iterdir():
        if how == "data gone":
            file.unlink()
        if how == "data cut":
            file.write_bytes(file.read_bytes()[:-100])
        if how == "data changed":
            file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


DAMAGES = ("manifest gone", "manifest empty", "data gone", "data cut", "data changed")


def disk(how):
    """Orbax's class on a disk that damages what is written."""

    class Spoiling(ocp.StandardCheckpointer):
        def save(self, path, tree, **options):
            if how == "other numbers":
                tree = {"a": tree["a"] | {"c": tree["a"]["c"] + 1}}
            super().save(path, tree, **options)
            self.wait_until_finished()
            damage(path, how)

    return Spoiling


@pytest.mark.parametrize("how", (*DAMAGES, "other numbers"))
def test_a_network_is_read_again_before_it_counts(how, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "network", {"before": np.arange(3)})
    monkeypatch.setattr(checkpoint.ocp, "StandardCheckpointer", disk(how))
    with pytest.raises(UserError, match=r"network cannot be saved \("):
        checkpoint.save(tmp_path / "network", TREE)
    monkeypatch.undo()
    assert list(checkpoint.restore(tmp_path / "network")) == ["before"]


@pytest.mark.parametrize("how", DAMAGES)
def test_the_last_state_of_a_stage_is_read_again(how, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {}, 2, 0, 0)
    checkpoints.save(4, TREE, {})
    checkpoints._manager.wait_until_finished()
    damage(tmp_path / "4" / "state", how)
    with pytest.raises(UserError, match=r"4 cannot be saved"):
        checkpoints.settle()
    checkpoints.close()


@pytest.mark.parametrize("how", DAMAGES)
def test_what_cannot_be_read_is_one_error_and_orbax_is_not_asked(how, tmp_path, monkeypatch):
    """Otherwise its threads print a traceback per array when Python exits."""
    checkpoint.save(tmp_path / "network", TREE)
    Run(tmp_path)()
    damage(tmp_path / "network", how)
    damage(tmp_path / "train-0" / "8" / "state", how)
    monkeypatch.setattr(checkpoint.ocp, "StandardCheckpointer", None)
    monkeypatch.setattr(checkpoint.ocp.args, "StandardRestore", None)
    with pytest.raises((OSError, ValueError)):
        checkpoint.restore(tmp_path / "network")
    with pytest.raises(UserError, match=r"8 cannot be read .* to start this stage anew"):
        Run(tmp_path)()


def two_states(folder):
    """Checkpoints after steps 4 and 8 that differ; returns their trees."""
    checkpoints, trees = Checkpoints(folder, {"of": "this"}, 2, 0, 0), {}
    for step in (4, 8):
        numbers = np.arange(500, dtype=np.float32) * step
        trees[step] = {"a": {"b": numbers, "c": np.asarray(step, np.int32)}}
        checkpoints.save(step, trees[step], {"epoch": step})
    checkpoints.close()
    return trees


def latest(folder, like):
    """((step, tree), sentences about what was passed over)."""
    checkpoints = Checkpoints(folder, {"of": "this"}, 2, 0, 0)
    try:
        tree, progress = checkpoints.latest(like)
        return (progress["epoch"], jax.tree.map(np.asarray, tree)), checkpoints.passed_over
    finally:
        checkpoints.close()


@pytest.mark.parametrize("how", DAMAGES)
def test_the_newest_undamaged_state_is_used(how, tmp_path):
    """What was damaged is told of and moved aside, and the run can save its own in its place."""
    trees = two_states(tmp_path)
    damage(tmp_path / "8" / "state", how)
    (step, tree), told = latest(tmp_path, trees[8])
    assert step == 4
    np.testing.assert_equal(tree, trees[4])
    (sentence,) = told
    assert f"{tmp_path}/8 cannot be read (" in sentence
    assert "going on from 4, and keeping it as damaged-8" in sentence
    again = Checkpoints(tmp_path, {"of": "this"}, 2, 0, 0)
    again.save(8, trees[8], {"epoch": 8})
    again.close()
    (step, tree), told = latest(tmp_path, trees[8])
    assert (step, told) == (8, [])
    np.testing.assert_equal(tree, trees[8])


def test_without_an_undamaged_state_the_files_are_left_as_they_are(tmp_path):
    trees = two_states(tmp_path)
    for step, how in ((4, "data changed"), (8, "data cut")):
        damage(tmp_path / str(step) / "state", how)
    with pytest.raises(UserError, match=r"8 cannot be read \(.*\), nor the 1 before it; nothing"):
        latest(tmp_path, trees[8])
    assert {path.name for path in tmp_path.iterdir()} == {"4", "8"}


def flip(path, rng):
    """Flips a random bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 300), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_flipped_bit_never_gives_other_numbers(seeds, tmp_path):
    """In any file of the newest state: it is found, or harmless."""
    trees = two_states(tmp_path / "whole")
    found = 0
    for seed in seeds:
        rng, folder = np.random.default_rng(seed), tmp_path / str(seed)
        shutil.copytree(tmp_path / "whole", folder)
        files = sorted(p for p in (folder / "8").rglob("*") if p.is_file() and p.stat().st_size)
        flip(files[rng.integers(len(files))], rng)
        (step, tree), told = latest(folder, trees[8])
        np.testing.assert_equal(tree, trees[step])
        assert len(told) == (step == 4)
        found += step == 4
    assert found > len(seeds) / 10


def test_a_flipped_bit_of_a_networks_weights_is_found(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=400).astype(np.float32)}
    for i in range(4):
        checkpoint.save(tmp_path / str(i), weights)
        (data,) = (tmp_path / str(i) / "d").iterdir()
        content = bytearray(data.read_bytes())
        content[len(content) // 2 + i] ^= 4
        data.write_bytes(bytes(content))
        with pytest.raises((OSError, ValueError)):
            checkpoint.restore(tmp_path / str(i))


@pytest.mark.parametrize("what", ["checkpoint", "network", "record"])
def test_a_full_disk_is_one_paragraph_and_the_run_goes_on_when_there_is_room(
    what, tmp_path, monkeypatch
):
    config = tiny()
    config.train.epochs = 1
    config.genotype = "ASAP"
    full, write_json = OSError(errno.ENOSPC, "No space left on device"), workdir.write_json

    def room(folder):
        return 0 if (what == "checkpoint") == ("checkpoints" in folder.parts) else 10**9

    def no_room_to_write(path, record):
        if path.name == "results.json":
            raise full
        write_json(path, record)

    if what == "record":
        monkeypatch.setattr(workdir, "write_json", no_room_to_write)
    else:
        monkeypatch.setattr(checkpoint, "_room", room)
    dataset = inputs.load_data(config)
    with pytest.raises(UserError, match="the same command then goes on from what was saved before"):
        runner.run(config, tmp_path, mode="train", dataset=dataset, quiet=True)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    runner.run(config, tmp_path, mode="train", dataset=dataset, quiet=True)
    assert json.loads((tmp_path / "results.json").read_text())["epochs"]["train"] == 1
    assert trained.load(tmp_path).results


@pytest.mark.parametrize("use", ["run", "load", "evaluate", "describe", "genotype", "save_to"])
@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run"])
def test_an_address_is_no_folder(use, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    look_at(use, address, "is an address, and runs are written to")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", ["run", "load", "evaluate", "describe", "genotype", "save_to"])
def test_a_home_that_nobody_has_is_told_of(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    look_at(use, "~nobody-of-that-name/run", "cannot be found .*name it without the ~")
    assert list(tmp_path.iterdir()) == []


def look_at(use, folder, message):
    """Uses a folder in one of several ways, each of which must be refused."""
    config = tiny()
    uses = {
        "run": lambda: runner.run(config, folder, quiet=True),
        "load": lambda: trained.load(folder),
        "evaluate": lambda: inspection.evaluate(folder),
        "describe": lambda: inspection.describe(config, folder),
        "genotype": lambda: inputs.find_genotype(config, None),
        "save_to": lambda: trained._place_to_save(folder),
    }
    config.genotype = folder if use == "genotype" else "ASAP" if use == "describe" else ""
    with pytest.raises(UserError, match=message):
        uses[use]()


def test_a_leading_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.locate("~/runs/a") == tmp_path / "runs" / "a"
    assert trained._place_to_save("~/tuned") == tmp_path / "tuned"
