"""The benchmarks run, at sizes of no interest, and write their results."""

import contextlib
import gzip
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import absl.flags
import jax
import jax.numpy as jnp
import pytest
from command import ROOT
from ml_collections import config_flags
from tiny import flags, tiny

from asap_jax import GENOTYPES, EvalNetwork, Genotype
from asap_jax.configs import command_line, presets
from asap_jax.runs import sweep
from asap_jax.searching import stages

BENCHMARKS = ROOT / "benchmarks"
SMALL = ("--channels=4", "--cells=1", "--size=8", "--batch=4", "--repeats=2")


def run(script, *options):
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # gpu.py and train_step.py measure by the same functions
def test_search_step(tmp_path):
    run("search_step.py", *SMALL, "--masks=one", f"--out={tmp_path}/step.json")
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["environment"]["versions"]["jax"]
    assert record["settings"]["channels"] == 4
    (case,) = record["cases"]
    assert (case["batch"], case["masks"]) == ("4", "one")
    assert case["ours"]["step_seconds"]["count"] == 2
    assert 0 < case["ours"]["step_seconds"]["min"] <= case["ours"]["step_seconds"]["median"]
    assert case["ours"]["temporary_bytes"] > 1000
    assert case["ours"]["peak_bytes"] > 1e8


@pytest.mark.slow
def test_gpu(tmp_path):
    run("gpu.py", *SMALL, "--numbers=1000", "--cases=1", f"--out={tmp_path}/gpu.json")
    first, full = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert first["bandwidth"]["bytes_a_second"] > 0
    assert (full["number"], full["masks"], full["ours"]["plan"]) == (0, "full", "unrolled")
    assert full["ours"]["step_seconds"]["count"] == 2
    assert full["ours"]["profile"]["kernels"] == 0  # a CPU has none


@pytest.mark.slow
def test_gpu_starts_further_down_its_list(tmp_path):
    """bfloat16 included."""
    options = ("--numbers=1000", "--from=1", "--cases=2")
    run("gpu.py", *SMALL, *options, f"--out={tmp_path}/gpu.json")
    _, one, half = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert (one["number"], one["masks"], one["ours"]["plan"]) == (1, "one", "unrolled")
    assert half["precision"] == "bfloat16"
    assert half["ours"]["step_seconds"]["count"] == 2


def test_the_kernels_of_a_step_are_read_off_its_trace(monkeypatch):
    """Only those on the GPU's streams; the time during which two overlap counts once."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    measure = importlib.import_module("measure")

    def event(name, first, micros, thread=1, process=1):
        return {"ph": "X", "name": name, "pid": process, "tid": thread, "ts": first, "dur": micros}

    def meta(kind, process, name, thread=0):
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}

    events = [
        meta("process_name", 1, "/device:GPU:0"),
        meta("process_name", 2, "/host:CPU"),
        meta("thread_name", 1, "Stream #1", 1),
        meta("thread_name", 1, "XLA Ops", 2),
        meta("thread_name", 2, "Stream of a host", 1),
        event("sum", 0, 30),
        event("conv", 20, 20),
        event("sum", 100, 50),
        event("sum", 0, 500, thread=2),
        event("python", 0, 900, process=2),
    ]

    @contextlib.contextmanager
    def trace(folder):
        yield
        packed = gzip.compress(json.dumps({"traceEvents": events}).encode())
        (Path(folder) / "a.trace.json.gz").write_bytes(packed)

    monkeypatch.setattr("jax.profiler.trace", trace)
    told = measure.kernels(lambda: lambda: None)
    assert told["kernels"] == 3
    assert told["busy_seconds"] == pytest.approx(90e-6)
    assert [(name, count) for name, count, _ in told["top"]] == [("sum", 2), ("conv", 1)]
    assert told["top"][0][2] == pytest.approx(80e-6)


def test_gpu_leaves_out_what_it_has_no_time_for(tmp_path):
    run("gpu.py", "--minutes=0.1", "--cases=2", "--numbers=1000", f"--out={tmp_path}/gpu.json")
    _, *cases = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert [case["left_out"] for case in cases] == ["no time was left"] * 2


def test_train_step(tmp_path):
    run("train_step.py", *SMALL, "--genotype=ASAP", f"--out={tmp_path}/step.json")
    (case,) = json.loads((tmp_path / "step.json").read_text())["cases"]
    assert case["ours"]["step_seconds"]["count"] == 2


def test_augmentation(tmp_path):
    options = ("--recipes=darts,imagenet", "--batch=3", "--size=16", "--repeats=2")
    run("augmentation.py", *options, f"--out={tmp_path}/augment.json")
    plain, policy = json.loads((tmp_path / "augment.json").read_text())["cases"]
    assert (plain["cutout"], plain["policy"], policy["policy"]) == (16, "", "imagenet")
    assert [case["seconds"]["count"] for case in (plain, policy)] == [2, 2]


def test_latency(tmp_path):
    options = ("--channels=4", "--cells=1", "--size=8", "--repeats=3", "--largest=4", "--gain=0")
    run("latency.py", *options, f"--out={tmp_path}/latency.json")
    *cases, summary = json.loads((tmp_path / "latency.json").read_text())["cases"]
    assert [case["batch"] for case in cases] == [1, 2, 4]
    assert [case["seconds"]["count"] for case in cases] == [3, 3, 3]
    assert summary["latency_seconds"] == cases[0]["seconds"]["median"]
    rates = {case["batch"]: case["images_per_second"] for case in cases}
    assert rates[summary["best_batch"]] == max(rates.values()) == summary["best_images_per_second"]


@pytest.mark.slow
def test_data(tmp_path):
    run("data.py", "--images=24", "--batch=4", "--workers=0,1", f"--out={tmp_path}/data.json")
    record = json.loads((tmp_path / "data.json").read_text())
    assert 20_000 < record["settings"]["mean_bytes_a_file"] < 200_000
    assert [case["workers"] for case in record["cases"]] == [0, 1]
    assert all(case["images_a_second"] > 0 for case in record["cases"])


@pytest.fixture
def in_here(monkeypatch):
    """Runs a benchmark in this process, with every preset replaced by the tiny config."""
    config = tiny()

    def start(name, *options):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        copy = config.copy_and_resolve_references
        monkeypatch.setattr(presets, "get_config", lambda name="": copy())
        monkeypatch.setattr(sys, "argv", [name, *options])
        importlib.import_module(name).main()

    return start


def test_search_run(in_here, tmp_path):
    in_here("search_run", f"--out={tmp_path}")
    epochs = json.loads((tmp_path / "search.json").read_text())["epochs"]
    begun_with = [sum(sum(map(sum, mask)) for mask in epoch["masks"].values()) for epoch in epochs]
    left = [epoch["candidates_left"] for epoch in epochs]
    assert begun_with == [2 * 14 * 3, *left[:-1]]
    assert left[-1] < left[0]
    assert (tmp_path / "search.svg").exists()


@pytest.mark.slow
def test_gpu_search_goes_on_where_it_was_cut(in_here, capsys, tmp_path):
    options = ("--data=digits", f"--workdir={tmp_path}")
    in_here("gpu_search", *options, "--minutes=0")
    assert "the same command goes on" in capsys.readouterr().out
    record = json.loads((tmp_path / "search_time.json").read_text())
    assert (len(record["epochs"]), record["ended"]) == (1, False)
    in_here("gpu_search", *options, "--minutes=5")
    record = json.loads((tmp_path / "search_time.json").read_text())
    assert record["ended"]
    assert [each["epoch"] for each in record["epochs"]] == [*range(1, len(record["epochs"]) + 1)]
    assert record["seconds"] == sum(each["seconds"] for each in record["epochs"])


def finished(folder, accuracy):
    """A workdir as left by a run, as far as the tables read it."""
    folder.mkdir(parents=True, exist_ok=True)
    record = dict.fromkeys(
        ("balanced_accuracy", "parameters", "search_seconds", "train_seconds", "total_seconds"), 1
    )
    record |= {"test_accuracy": accuracy, "versions": {}, "epochs": {"search": 0}}
    (folder / "results.json").write_text(json.dumps({**record, "candidates_left": None}))


def test_a_table_of_runs_that_are_done_starts_none(tmp_path):
    """Two cells on two data sets, two seeds; errors and deviations by hand."""
    for cell, data, first, second in (
        ("ASAP", "cifar100", 0.84, 0.85),
        ("ASAP", "svhn", 0.98, 0.98),
        ("mine", "cifar100", 0.5, 0.6),
        ("mine", "svhn", 0.9, 0.91),
    ):
        finished(tmp_path / f"{cell}-{data}-0", first)
        finished(tmp_path / f"{cell}-{data}-1", second)
    options = ("--cells=ASAP,runs/mine", "--data=cifar100,svhn", "--seeds=2", f"--out={tmp_path}")
    printed = run("transfer.py", *options)
    assert "| cell | cifar100 | svhn |" in printed
    assert "| `ASAP` | 15.50 +- 0.71 | 2.00 +- 0.00 |" in printed
    assert "| `mine` | 45.00 +- 7.07 | 9.50 +- 0.71 |" in printed
    assert (tmp_path / "transfer.md").read_text().strip() == printed.strip()
    records = json.loads((tmp_path / "transfer.json").read_text())
    assert [each["seed"] for each in records["mine/svhn"]] == [0, 1]
    page = (tmp_path / "report.html").read_text()
    assert "<td>15.50 +- 0.71</td>" in page  # the table
    assert "<span>84.50 ± 0.71</span>" in page  # the accuracies of ASAP on CIFAR-100


def test_a_table_of_search_quality(tmp_path):
    """Of searches that are done, by hand: of four cells 12.5, 37.5, 62.5 and 87.5 % are worse."""
    ops = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
    cells = [f"|{op}~0|+|{op}~0|{op}~1|+|{op}~0|{op}~1|{op}~2|" for op in ops]
    accuracies = tmp_path / "cells.csv"
    rows = (f"{cell},{10 * i},{i}" for i, cell in enumerate(cells))
    accuracies.write_text("\n".join(("architecture,valid,test", *rows)))
    found = {("asap", "300"): (2, 3), ("asap", "1000"): (3, 3), ("gdas", "300"): (0, 1)}
    for (method, steps), seeds in found.items():
        for seed, cell in enumerate(seeds):
            folder = tmp_path / f"{method}-{steps}-{seed}"
            folder.mkdir()
            Genotype.from_architecture_string(cells[cell]).save(folder / "genotype.json")
            record = {"candidates_left": 6, "certainty": {}, "seconds": 30 + seed}
            (folder / "search.json").write_text(json.dumps(record))
    options = ("--methods=asap", "--steps=300,1000", "--seeds=2", f"--out={tmp_path}")
    printed = run("search_quality.py", f"--table={accuracies}", *options)
    asked = f"--table={accuracies}", "--methods=gdas", "--steps=300", "--seeds=2"
    other = run("search_quality.py", *asked, f"--out={tmp_path}", "--column=test")
    told = {line.split(" | ")[0]: line.split(" | ")[1:] for line in printed.splitlines()}
    assert told["| `asap/300`"] == (
        ["25.00 +- 7.07", "75 +- 18", "+2.0", "p = 0.125", "62, 88", "6", "30 |"]
    )
    assert told["| `asap/1000`"][:4] == ["30.00 +- 0.00", "88 +- 0", "-", "p = 0.031"]
    assert "| `gdas/300` | 0.50 +- 0.71 | 25 +- 18 | -2.0 | p = 0.875 | 12, 38 |" in other
    records = json.loads((tmp_path / "search_quality.json").read_text())
    assert records["gdas/300"][1]["architecture"] == cells[1]
    assert (tmp_path / "search_quality.svg").read_text().startswith("<svg")


def test_each_budget_of_a_search_quality_has_its_steps_and_changes(monkeypatch):
    """As many steps as it says, and the alphas' rate times them alike."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("search_quality")
    arguments = types.SimpleNamespace(
        steps="100,1000",
        methods="asap,drnas",
        vary=["search.channels=4,16"],
        table="t.csv",
        options=["--config.data.dir=/data"],
    )
    cases = script.cases_of(arguments)
    assert list(cases)[:4] == [
        *("asap/100", "asap/100/search.channels=4", "asap/100/search.channels=16"),
        "drnas/100",
    ]
    assert len(cases) == 12
    for case, options in cases.items():
        values = dict(
            each.removeprefix("--config").lstrip(".=:").split("=") for each in options[1:]
        )
        steps = int(case.split("/")[1])
        batches = int(values["data.train_examples"]) // 2 // 32
        assert batches * int(values["search.epochs"]) == steps
        reach = float(values["search.alpha.learning_rate"]) * steps
        assert reach == pytest.approx(3 if "drnas" in case else 10, rel=0.01)  # its own factor
        assert values["data.dir"] == "/data"
        assert values.get("search.channels", "") == case.partition("channels=")[2]


@pytest.fixture
def transfer(monkeypatch, tmp_path):
    """transfer.py in this process: (options) -> commands of the runs, which are not executed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import transfer

    def of(*options, code=0):
        started = []

        def start(run, environment):
            started.append(list(run.arguments))
            if code == 0:
                finished(run.folder, 0.5)
            (run.folder / sweep.OUTPUT).write_text("$ command\nasap_jax: what it said last\n")
            return types.SimpleNamespace(poll=lambda: code, returncode=code)

        monkeypatch.setattr(sweep, "_start", start)
        monkeypatch.setattr(sweep, "_slots", lambda at_once: [{}])
        monkeypatch.setattr(sweep, "_POLL", 0.0)
        monkeypatch.setattr(sys, "argv", ["transfer.py", f"--out={tmp_path}", *options])
        transfer.main()
        return started

    return of


def test_a_table_refuses_runs_of_other_options(transfer, capsys, tmp_path):
    options = ("--cells=ASAP", "--data=svhn", "--seeds=1", "--")
    assert len(transfer(*options, "--config.train.epochs=2")) == 1
    assert transfer(*options, "--config.train.epochs=2") == []
    with pytest.raises(SystemExit) as ended:
        transfer(*options)
    assert ended.value.code == 2
    other = f"{tmp_path}/ASAP-svhn-0 holds a run of other arguments (only there: --config.train.ep"
    assert capsys.readouterr().err.startswith(other)


def test_a_run_that_fails_ends_the_table(transfer, capsys, tmp_path):
    options = ("--cells=ASAP", "--data=svhn,cifar100", "--seeds=1")
    for code, want in ((2, 2), (143, 143), (-9, 137)):
        with pytest.raises(SystemExit) as ended:
            transfer(*options, code=code)
        assert ended.value.code == want
        told = capsys.readouterr().err
        assert f"ASAP/svhn, seed 0: the run in {tmp_path}/ASAP-svhn-0 ended with exit" in told
        assert "asap_jax: what it said last" in told
        assert told.count("\n") == 1


def test_a_column_has_a_source_of_its_own(transfer):
    options = ("--cells=ASAP,NASNet", "--data=cinic10,svhn,freiburg", "--seeds=1")
    sources = {"cinic10": "cinic10:/data/CINIC-10", "freiburg": "freiburg:/data/a=b"}
    named = [f"--source={name}={source}" for name, source in sources.items()]
    started = transfer(*options, *named, "--", "--config.data.dir=/data/tfds")
    assert len(started) == 6
    for command in started:
        recipe = command[0].removeprefix("--config=train:")
        assert "--config.data.dir=/data/tfds" in command
        got = [each for each in command if each.startswith("--config.data.source=")]
        want = [sources[recipe]] if recipe in sources else []
        assert got == [f"--config.data.source={source}" for source in want]


def test_the_rows_are_the_papers_cells(transfer):
    """Of SNAS' three cells, the one with table 1's 2.8M parameters."""
    import transfer as script

    cells = script.CELLS.split(",")
    assert set(cells) <= set(GENOTYPES)
    (snas,) = (cell for cell in cells if cell.startswith("SNAS"))
    network = EvalNetwork(GENOTYPES[snas], 10, channels=36, cells=20)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 2_847_358


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data=svhn,cifar10",), "--data=cifar10 (did you mean 'cifar100'?): recipes are asap_"),
        (("--data=svhn", "--source=cinic10=cinic10:/data"), "'cinic10' is none of --data=svhn"),
        (("--data=cinic10", "--source=cinic10"), "--source=cinic10: expected RECIPE=SOURCE, such"),
    ],
)
def test_what_transfer_refuses_before_the_first_run(options, message, transfer, capsys):
    with pytest.raises(SystemExit) as ended:
        transfer(*options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_each_ablation_is_a_config_of_its_own(monkeypatch, tmp_path):
    """For every setting, the config that the command makes of its flags."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ablations = importlib.import_module("ablations")
    cases = ablations.cases_of("digits", list(ablations.CHANGES), tmp_path, flags())
    seen = {}
    for name, arguments in cases.items():
        values = absl.flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        absl.flags.DEFINE_string("mode", "", "", flag_values=values)
        monkeypatch.setattr(sys, "argv", ["main", *map(command_line.packaged, arguments)])
        values(sys.argv)  # overridable keys are looked up there
        config = values.config
        stages.make_strategy(config.search, stages.make_space(config.search), 4)
        seen[name] = config.to_json()
        assert config.train.channels == 4  # the options passed to each run
    assert len(set(seen.values())) == len(seen) == 12


@pytest.mark.slow  # a dozen runs; the other tables share its code
def test_ablations(tmp_path):
    options = ("--size=digits", "--of=output", "--seeds=1", f"--out={tmp_path}")
    printed = run("ablations.py", *options, "--", *flags())
    rows = [line.split("`")[1] for line in printed.splitlines() if line.startswith("| `")]
    assert rows == ["ASAP", "conv-output"]
    records = json.loads((tmp_path / "ablations.json").read_text())
    assert records["conv-output"][0]["parameters"] != records["ASAP"][0]["parameters"]
    assert records["conv-output"][0]["candidates_left"] is None  # no search of its own
    usual, convolved = (
        json.loads((tmp_path / f"{each}-0" / "config.json").read_text()) for each in rows
    )
    assert (usual["train"]["output"], convolved["train"]["output"]) == ("concat", "conv")
    assert convolved["genotype"] == str(tmp_path / "ASAP-0")


@pytest.mark.slow  # two runs; the tests of comparisons run the same sweep
def test_transfer(tmp_path):
    options = ("--cells=ASAP", "--data=fashion_mnist,cifar100", "--seeds=1", f"--out={tmp_path}")
    changes = {"data.source": "digits", "data.train_examples": 100, "train.batch_size": 50}
    changes |= {"train.channels": 4, "train.cells": 3, "train.epochs": 1}
    changes |= {"train.auxiliary_weight": 0.0, "train.augmentation.jitter": ()}
    passed = [f"--config.{key}={value}" for key, value in changes.items()]
    printed = run("transfer.py", *options, "--", *passed)
    assert "| cell | fashion_mnist | cifar100 |" in printed
    assert "| `ASAP` |" in printed
    for column in ("fashion_mnist", "cifar100"):
        config = json.loads((tmp_path / f"ASAP-{column}-0" / "config.json").read_text())
        assert config["train"]["schedule"] == "power_cosine"


def test_several_gpus_take_what_their_collectives_take(tmp_path, capsys, monkeypatch):
    work = {"seconds": 0.02}
    record = {"collectives": {"all-reduce": [100, 350_000_000]}, "least": work}
    record |= {"argument_bytes": 10**9, "temporary_bytes": 2 * 10**9}
    path = tmp_path / "program.json"
    path.write_text(json.dumps({"cases": [record]}))
    import scaling

    arguments = ("scaling.py", f"--case=step:10:{path}", "--devices=1,8")
    monkeypatch.setattr(sys, "argv", [*arguments, f"--case=again:predicted:{path}"])
    scaling.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| step | 1 | 0 | 0 MB | 3.0 GB | 10.0 ms | 100 % |"
    # 100 of 20 us, and 350 MB * 2 * 7/8 at 350 GB/s
    assert rows[1] == "| step | 8 | 100 | 350 MB | 3.0 GB | 13.8 ms | 73 % |"
    assert rows[3] == "| again | 8 | 100 | 350 MB | 3.0 GB | 23.8 ms | 84 % |"
