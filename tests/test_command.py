"""The command: a whole tiny run, and bad input reported in one paragraph with exit code 2."""

import configparser
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT, command, each_command
from tiny import tiny

from asap_jax import GENOTYPES, Genotype, data
from asap_jax.configs import command_line, presets, rules
from asap_jax.host import checkpoint, run_log, workdir
from asap_jax.host.errors import UserError
from asap_jax.networks.drawings import draw_cells
from asap_jax.runs import inputs, resolve, runner
from asap_jax.searching import stages

CONFIG = f"--config={ROOT / 'configs' / 'search.py'}"

RESULTS = """
    test_accuracy test_error parameters multiply_adds search_seconds train_seconds total_seconds
    candidates_left epochs seed versions gap balanced_accuracy top_5_accuracy class_accuracy
    confusion
""".split()
EPOCH = """
    temperature threshold candidates_left entropy train_loss val_loss val_accuracy seconds
""".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, results, output)."""
    workdir, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        results = runner.run(tiny(), workdir).results
    return workdir, results, printed.getvalue()


def test_every_edge_ends_with_one_candidate(finished):
    _, results, _ = finished
    assert results["candidates_left"] == 2 * 14
    assert results["gap"]["all"]["gap"] == 0


def test_what_is_printed(finished):
    workdir, results, printed = finished
    line = (
        r"search 1/8  T \d\.\d{3}  candidates +\d+  entropy \d\.\d{3}  loss train \d.* val .*  val "
    )
    assert re.search(line + r"accuracy \d+\.\d\d %  \d+\.\d s\n", printed)
    assert re.search(r"train 2/2  loss \d\.\d{3}  train accuracy .* %", printed)
    for name, key in (("test accuracy", "test_accuracy"), ("top-5 accuracy", "top_5_accuracy")):
        accuracy = re.escape(f"{100 * results[key]:.2f} %")
        assert re.search(rf"^  {name} +{accuracy}$", printed, re.MULTILINE)
    assert re.search(r"most confused +\d as \d \d+, \d as \d", printed)
    assert "gap supernet -> derived" in printed
    assert str(workdir) in printed
    assert printed.count("note: val and gap are of the half of the training images") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self):
        return True


def test_a_bar_tells_the_time_left_where_somebody_watches(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    with run_log.RunLog(None).bar("search", 8, done=2) as bar:
        bar.mininterval = 0
        bar.update()
    shown = sys.stderr.getvalue()
    assert re.search(r"search: +38%.* 3/8 \[\d+:\d+<\d+:\d+, +[\d.]+(step/s|s/step)\]", shown)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with run_log.RunLog(None).bar("search", 8) as bar:
        bar.update()
    assert sys.stderr.getvalue() == ""


class Reached(Exception):
    """Raised when a run reaches its search or training."""


def first_lines(config, mode, monkeypatch, capsys):
    """What a run prints before it computes anything."""

    def stop(*arguments):
        raise Reached

    for stage in ("search", "train"):
        monkeypatch.setattr(runner._Run, stage, stop)
    images = np.arange(2 * 64 * 16 * 16).reshape(128, 16, 16) % 251
    dataset = data.from_arrays(images.astype(np.uint8), np.arange(128) % 2)
    config.check_memory = False
    with pytest.raises(Reached):
        runner.run(config, None, mode=mode, dataset=dataset)
    return capsys.readouterr().out


@pytest.mark.parametrize("searches", [1, 2])
@pytest.mark.parametrize("mode", ["", "search", "train"])
@pytest.mark.parametrize("on", [(True, True), (True, False), (False, True), (False, False)])
def test_flips_are_told_of_with_their_keys(on, mode, searches, monkeypatch, capsys):
    config = presets.get_config("small")
    config.searches, config.train.batch_size = searches, 16
    config.search.augmentation.flip, config.train.augmentation.flip = on
    if mode == "train":
        config.genotype = "ASAP"
    said = first_lines(config, mode, monkeypatch, capsys)
    used = {"search": mode != "train", "train": mode != "search" or searches > 1}
    wanted = [part for part, flip in zip(used, on, strict=True) if flip and used[part]]
    assert ("flipped left to right" in said) == bool(wanted)
    for part in used:
        assert (f"--config.{part}.augmentation.flip=False" in said) == (part in wanted)


def test_the_digits_are_not_flipped(finished):
    assert "flipped" not in finished[2]


def test_results(finished):
    workdir, results, _ = finished
    assert json.loads((workdir / "results.json").read_text()) == results
    for key in RESULTS:
        assert key in results
    assert results["test_error"] == pytest.approx(1 - results["test_accuracy"])
    assert 0 < results["test_accuracy"] <= 1
    assert results["versions"]["jax"]
    assert results["total_seconds"] >= results["search_seconds"] + results["train_seconds"]
    for gap in results["gap"].values():
        assert gap["gap"] == pytest.approx(gap["supernet"] - gap["derived"])


def test_files(finished):
    workdir, results, _ = finished
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    searched = [r for r in records if r["phase"] == "search"]
    assert len(searched) == results["epochs"]["search"]
    assert [r["epoch"] for r in records if r["phase"] == "train"] == [1, 2]
    for key in EPOCH:
        assert key in searched[0]
    left = [r["candidates_left"] for r in searched]
    assert left == sorted(left, reverse=True)
    genotype = Genotype.load(workdir / "genotype.json")
    assert all(len(node) == 2 for node in genotype.normal + genotype.reduce)
    svg = (workdir / "cells.svg").read_text()
    for op, _ in (edge for node in genotype.normal + genotype.reduce for edge in node):
        assert op.replace("_", " ") in svg
    assert (workdir / "cells.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "config.json").read_text())["search"]["batch_size"] == 20
    network = checkpoint.restore(workdir / "network")
    count = sum(np.size(leaf) for leaf in _leaves(network["params"]))
    assert count == results["parameters"]


def _leaves(tree):
    return [x for v in tree.values() for x in (_leaves(v) if isinstance(v, dict) else [v])]


def test_evaluate_and_describe_by_command(finished):
    workdir, results, _ = finished
    done = command("--mode=evaluate", f"--workdir={workdir}", "--split=train")
    assert done.returncode == 0, done.stderr
    assert "of 160 images" in done.stdout
    done = command("--mode=describe", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert f"{results['parameters']:,}\n" in done.stdout
    assert "activations" in done.stdout


def test_another_config_is_refused_and_nothing_is_lost(finished):
    workdir, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    config = tiny()
    config.search.epochs = 5
    with pytest.raises(UserError, match=r"another config .*search.epochs: 8 there, 5 here"):
        runner.run(config, workdir, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in workdir.iterdir()} == before


@pytest.mark.parametrize(
    ("key", "value"), [("group", "x"), ("bits", 12), ("sparse_labels", True), ("test", "x")]
)
def test_a_key_of_the_data_that_a_run_did_not_know_has_to_stay_unset(key, value, tmp_path):
    """A workdir started by an older version: options that it did not know are off there."""
    before = json.loads(tiny().to_json())
    del before["data"][key]
    workdir.claim(tmp_path / "run", before)
    config = tiny()
    workdir.claim(tmp_path / "run", json.loads(config.to_json()))
    (tmp_path / "run" / "config.json").unlink()
    workdir.claim(tmp_path / "run", before)
    config.data[key] = value
    with pytest.raises(UserError, match=f"data.{key}: None there, {value!r} here"):
        workdir.claim(tmp_path / "run", json.loads(config.to_json()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.search.update(batch_size=81), "search.batch_size is 81.*holds only 80"),
        (lambda c: c.train.update(batch_size=161), "train.batch_size is 161.*only 160"),
        (lambda c: c.search.strategy.update(initial_temperature=0.0), "initial_temperature"),
        (lambda c: c.search.strategy.update(initial_temperature=-1.0), "initial_temperature"),
        (lambda c: c.search.update(candidates=("sep_conv_3x3", "conv_9x9")), "'conv_9x9'"),
        (lambda c: c.search.update(edges="top3"), "top2, all"),
        (lambda c: c.search.update(space="drats"), "did you mean 'darts'"),
        (lambda c: c.search.strategy.update(name="darst"), "did you mean 'darts'"),
        (lambda c: c.search.update(epochs=0), "search.epochs is 0"),
        (lambda c: c.search.update(cells=2), "search.cells is 2"),
        (lambda c: c.search.update(candidates=("none", "none")), "two different operations"),
        (lambda c: c.search.strategy.update(grace_temperature=0.0), "grace_temperature"),
        (lambda c: c.update(seed=-1), "config.seed is -1"),
        (lambda c: c.train.update(drop_path=1.0), "train.drop_path"),
        (lambda c: c.data.update(source="tfds:nothing"), "has no data set"),
        (lambda c: c.data.update(test_examples=10**6), "test_examples"),
        (lambda c: c.data.update(split_seed=-1), "data.split_seed is -1"),
        (lambda c: c.data.update(test_share=1.0), "data.test_share is 1.0"),
        (lambda c: c.data.update(color="red"), "data.color is 'red'"),
        (lambda c: c.data.update(resize="squeeze"), "data.resize is 'squeeze'"),
        (lambda c: c.data.update(class_weights="even"), "data.class_weights is 'even'"),
        (lambda c: c.data.update(image_size=10), "nearest good size is 8"),
        (lambda c: c.search.strategy.update(name="darts"), "search:digits,darts"),
        (lambda c: c.train.update(accumulate=3), "a divisor of config.train.batch_size"),
        (lambda c: c.train.update(average=1.0), "train.average is 1.0"),
        (lambda c: c.train.update(final_learning_rate=-0.1), "final_learning_rate is -0.1"),
        (lambda c: c.train.update(schedule="power"), "did you mean 'power_cosine'"),
        (lambda c: c.train.update(schedule="exponential"), "falls to it by a constant factor"),
        (lambda c: c.train.update(cycles=0), "train.cycles is 0"),
        (lambda c: c.train.update(power=0.0), "train.power is 0.0"),
        (lambda c: c.train.update(stem="imagenets"), "did you mean 'imagenet'"),
        (lambda c: c.train.update(output="convolved"), "one of 'concat', 'conv'"),
        (lambda c: c.train.update(squeeze="all"), "one of '', 'early', 'every'"),
        (
            lambda c: (c.train.update(stem="imagenet"), c.data.update(image_size=48)),
            "train.cells=3 and the imagenet stem need a multiple of 32: the nearest .* is 64",
        ),
        (
            lambda c: (c.train.update(stem="imagenet", channels=5), c.data.update(image_size=32)),
            "channels is 5, but the imagenet stem halves it: choose an even number, 4 or 6",
        ),
        (lambda c: c.train.update(start_from="x"), "start_from needs --mode=train"),
        (lambda c: c.update(genotype="ASAP"), "add --mode=train"),
        (lambda c: c.update(searches=0), "config.searches is 0"),
        (
            lambda c: (c.update(searches=2), c.train.update(batch_size=100)),
            "one half of the images",
        ),
    ],
)
def test_impossible_values_are_refused(change, message, tmp_path):
    config = tiny()
    change(config)
    with pytest.raises(UserError, match=message):
        runner.run(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()  # so that the corrected command can use it


BAD_FLAGS = [
    ((f"{CONFIG}:digits", "--config.search.epoch=3"), "epochs"),
    ((f"{CONFIG}:digits", "--config.serach.epochs=3"), "search"),
    (("--config", "search:digist"), "did you mean 'digits'"),
    ((f"{CONFIG}:digits", "--config.search.epochs=many"), "many"),
    ((f"{CONFIG}:digits", "--wrokdir=x"), "did you mean 'workdir'"),
    (("--config=configs/serach.py:digits",), "serach.py"),
    ((), "--config is missing"),
    (("--mode=trian", f"{CONFIG}:digits"), "did you mean 'train'"),
    (("--mode=train", f"{CONFIG}:digits", "--workdir=none"), "there are no cells to train"),
    (("--mode=train", f"{CONFIG}:digits", "--config.genotype=DARTS"), "expected a published"),
    (("--mode=search", "--config=train:asap_small"), "such as --config=search:small"),
    (("--mode=evaluate",), "--mode=evaluate takes --workdir"),
    (("--mode=evaluate", "--workdir=none"), "there is no trained network at none"),
    (("--split=train", f"{CONFIG}:digits"), "--split belongs to --mode=evaluate"),
    (("--dry_run", "--mode=evaluate"), "and --mode=evaluate is neither"),
    (("--dry_run", f"{CONFIG}:digits", "--config.data.image_size=10"), "nearest good size is"),
    (("--mode=compare", f"{CONFIG}:digits"), "takes a config of configs/compare.py"),
    (("--config=compare:tiny",), "add --mode=compare"),
    (("--mode=compare", "--config=compare:tiny", "--config.methods=asap,dart"), "mean 'darts'?"),
    (("--mode=compare", "--config=compare:huge"), "sizes are tiny, digits"),
    (("--mode=compare", "--config=compare:tiny", "--config.run.seed=1"), "config.first_seed"),
    (
        ("--mode=compare", "--config=compare:tiny", "--config.run.search.cost_weight=-1"),
        "asap: config.search.cost_weight is -1",
    ),
]


@pytest.fixture(scope="module")
def refused():
    return each_command([arguments for arguments, _ in BAD_FLAGS])


@pytest.mark.parametrize("number", range(len(BAD_FLAGS)))
def test_bad_flags_are_one_paragraph_and_exit_code_2(number, refused):
    done, (_, message) = refused[number], BAD_FLAGS[number]
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("asap_jax: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("before", [1, 2, 3])
def test_values_may_stand_before_the_config(before, tmp_path):
    """The three arguments in any order."""
    arguments = ["--config.search.batch_size=5000", "--config.seed=1"]
    arguments.insert(before - 1, "--config=search:digits")
    parsed = command_line.ordered(["program", *arguments])
    assert parsed[1] == f"--config={presets.__file__}:digits"
    assert parsed[2:] == ["--config.search.batch_size=5000", "--config.seed=1"]
    if before == 3:
        done = command(*arguments, f"--workdir={tmp_path}/w")
        assert done.returncode == 2
        assert "holds only 718" in done.stderr


@pytest.mark.parametrize("module", ["jax", "orbax", "absl"])
def test_ctrl_c_while_it_is_imported_is_one_line(module, tmp_path):
    """The signal arrives while the command imports this module."""
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    (tmp_path / f"{module}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "asap_jax.main", "--config=search:digits"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    lines = done.stderr.splitlines()
    assert lines[-1] == "asap_jax: interrupted, before anything was begun"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("images", [80, 400, 600])
@pytest.mark.parametrize("parts", [1, 2])
def test_tiny_takes_what_there_is(parts, images, tmp_path):
    """By its own defaults: 360 images for training, 180 for testing."""
    config, x = presets.get_config("tiny"), np.arange(images * 64).reshape(images, 8, 8) % 251
    arrays = {"train_images": x.astype(np.uint8), "train_labels": np.arange(images) % 2}
    if parts == 2:
        arrays |= {"test_images": arrays["train_images"], "test_labels": arrays["train_labels"]}
    np.savez(tmp_path / "x.npz", **arrays)
    config.data.source = f"npz:{tmp_path}/x.npz"
    loaded = inputs.load_data(config)
    held = images if parts == 2 else images // 5
    train = images if parts == 2 else images - held
    assert (loaded.train_count, loaded.test_count) == (min(360, train), min(180, held))
    said = " ".join(loaded.notes)
    assert (f"there are only {train}: all are taken" in said) == (train < 360)
    config.data.at_most = False
    if train < 360:
        with pytest.raises(UserError, match="train_examples has to lie between"):
            inputs.load_data(config)


@pytest.mark.parametrize("images", [8, 30, 59, 400])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("searches", [1, 2])
def test_tiny_makes_batches_that_there_are(searches, accumulate, images):
    config = presets.get_config("tiny")
    config.train.update({"batch_size": 32, "accumulate": accumulate})
    config.searches, config.check_memory = searches, False
    x = (np.arange(images * 64) % 251).astype(np.uint8).reshape(images, 8, 8)
    dataset = data.from_arrays(x, np.arange(images) % 2, x[:4], [0, 1, 0, 1])
    fitting = resolve.resolve(config, None, dataset=dataset).config
    half = images // 2
    most = half if searches > 1 else 2 * half
    assert fitting.search.batch_size == min(30, half)
    assert fitting.train.batch_size == min(32, most - most % accumulate)
    assert (config.search.batch_size, config.train.batch_size) == (30, 32)  # not changed
    config.data.at_most = False
    if images < 60:
        with pytest.raises(UserError, match=r"search.batch_size is 30"):
            resolve.resolve(config, None, dataset=dataset)


def test_a_refused_run_exits_with_2_outside_the_checkout(tmp_path):
    """Without a configs/ folder, the package's own presets are used."""
    done = command(
        "--config=search:digits", "--config.search.batch_size=5000", "--workdir=w", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "holds only 718" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_holds_all_it_needs(tmp_path):
    """Built, unpacked, and run outside the checkout."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "asap_jax", source / "asap_jax")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    code = "import asap_jax as a; print(a.__file__, len(a.GENOTYPES), a.__version__)"
    script = (
        "from importlib.metadata import entry_points\n"
        "entry_points(group='console_scripts')['asap-jax'].load()()"
    )
    wrong = "--config=search:digits,snsa"
    arguments = (("-c", code), ("-m", "asap_jax.main", wrong), ("-c", script, wrong))
    done = [
        subprocess.run(
            [sys.executable, *each],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        for each in arguments
    ]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    assert done[0].stdout.split() == [str(site / "asap_jax" / "__init__.py"), "17", version]
    assert (site / "asap_jax" / "py.typed").exists()
    for command_or_script in done[1:]:
        assert command_or_script.returncode == 2
        assert "did you mean 'snas'" in command_or_script.stderr


def test_presets():
    paper = presets.get_config()
    assert (paper.search.channels, paper.search.cells, paper.search.epochs) == (16, 8, 50)
    assert paper.search.batch_size == 96
    strategy = stages.make_strategy(paper.search, stages.make_space(paper.search), 260)
    readings = jax.device_get(strategy.readings(jnp.int32(49 * 260)))
    assert readings["temperature"] == pytest.approx(1.3 * 0.95**50, rel=1e-5)
    assert readings["threshold"] == pytest.approx(0.4 / 7, rel=1e-6)
    learning = [bool(strategy.learns(jnp.int32(260 * epoch))) for epoch in range(50)]
    assert learning == [False] * 5 + [True] * 45
    assert paper.search.omega.to_dict() == {
        "learning_rate": 0.025,
        "final_learning_rate": 0.001,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 3e-4,
        "clip": 5.0,
    }
    assert paper.search.alpha.to_dict() == {
        "learning_rate": 1e-3,
        "b1": 0.5,
        "b2": 0.999,
        "weight_decay": 1e-3,
    }
    for name in (
        "digits",
        "cifar10_small",
        "darts",
        "random",
        "digits,random",
        "cifar10_small,darts",
    ):
        rules.check(presets.get_config(name))
    with pytest.raises(UserError, match="more than one size"):
        presets.get_config("digits,paper")


def test_cells_with_all_edges_are_drawn(tmp_path):
    every = Genotype(
        tuple(tuple(("dil_conv_5x5", s) for s in range(t)) for t in range(2, 6)),
        (2, 3, 4, 5),
        GENOTYPES["ASAP"].reduce,
        (2, 3, 4, 5),
    )
    draw_cells(every, [tmp_path / "cells.svg"])
    svg = (tmp_path / "cells.svg").read_text()
    assert svg.count("dil conv 5x5") == 14 + 1  # one more in the reduction cell
