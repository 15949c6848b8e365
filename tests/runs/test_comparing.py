"""Comparisons: their configs, what is collected, the table, the figures, a whole one."""

import json
import math
import xml.etree.ElementTree

import numpy as np
import pytest
from command import command
from scipy import stats
from tiny import flags

import asap_jax
from asap_jax import GENOTYPES, Genotype
from asap_jax.configs import comparisons
from asap_jax.host import workdir as files
from asap_jax.host.errors import UserError
from asap_jax.methods import STRATEGIES, derive
from asap_jax.runs import comparing
from asap_jax.searching import certainty

SPACE = {"space": "asap", "candidates": [], "edges": "top2"}


def record(accuracy, seed=0, **changes):
    found = {
        "seed": seed,
        "accuracy": accuracy,
        "derived_accuracy": 0.5,
        "parameters": 1000,
        "multiply_adds": 5000,
        "search_seconds": 10.0,
        "total_seconds": 20.0,
        "skips": {"normal": 2, "reduce": 0},
        "candidates_left": 28,
        "gap": 0.1,
        "genotype": json.loads(GENOTYPES["ASAP"].to_json()),
        "benchmark": {},
        "worse": {},
        "ranking": {},
    }
    return found | changes


def workdir(folder, accuracy, left=(196, 98, 28), entropies=(1.0, 0.5, 0.0)):
    """The files of a finished run that a comparison reads."""
    folder.mkdir(parents=True)
    genotype = GENOTYPES["ASAP"]
    genotype.save(folder / "genotype.json")
    (folder / "config.json").write_text(json.dumps({"workdir_version": 1, "search": SPACE}))
    search = {
        "derived_accuracy": 0.625,
        "seconds": 12.0,
        "candidates_left": left[-1],
        "epochs": 3,
        "gap": {"top2": {"gap": 0.25}, "all": {"gap": 0.5}},
        "benchmark": {},
        "ranking": {},
    }
    (folder / "search.json").write_text(json.dumps(search))
    results = {"test_accuracy": accuracy, "parameters": 7, "multiply_adds": 8}
    results |= {"total_seconds": 30.0, "device": "cpu", "versions": {}}
    (folder / "results.json").write_text(json.dumps(results))
    epochs = [
        {"phase": "search", "run": 0, "epoch": i, "seconds": 4.0 / i, "val_accuracy": i / 4}
        | {"entropy": entropies[i - 1], "candidates_left": left[i - 1]}
        for i in (1, 2, 3)
    ]
    epochs.append({"phase": "train", "run": 0, "epoch": 1, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))


def test_every_size_has_a_config_whose_runs_are_commands():
    for size in comparisons.SIZES:
        config = comparisons.get_config(size)
        cases = comparisons.cases(config)
        assert config.baseline in cases
        assert cases["asap"] == [f"--config=search:{config.preset},asap,fair"]
    assert [*comparisons.cases(comparisons.get_config("digits"))] == [*STRATEGIES]


def test_what_changes_for_all_runs_is_in_their_arguments():
    config = comparisons.get_config("tiny")
    config.methods, config.fair = "asap, random", False
    config.run.train.epochs = 3
    config.run.search.candidates = ("skip_connect", "max_pool_3x3")
    changed = [
        "--config.search.candidates=('skip_connect', 'max_pool_3x3')",
        "--config.train.epochs=3",
    ]
    assert comparisons.cases(config) == {
        "asap": ["--config=search:tiny,asap", *changed],
        "random": ["--config=search:tiny,random", *changed],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(methods="asap,dart"), r"unknown 'dart' \(did you mean 'darts'\?\)"),
        (lambda c: c.update(methods=" , "), "names none"),
        (lambda c: c.update(methods="asap,asap"), "or one twice"),
        (lambda c: c.update(baseline="randomly"), "config.baseline: unknown 'randomly'"),
        (lambda c: c.update(seeds=0), "config.seeds is 0, but has to be at least 1"),
        (lambda c: c.run.update(genotype="ASAP"), "transfer.py"),
        (lambda c: c.run.search.update(max_skips=2), "but random has no alphas"),
        (lambda c: c.update(methods=None), "config.methods is None"),
        (lambda c: c.run.search.update(epochs=0), "asap: config.search.epochs is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    config = comparisons.get_config("tiny")
    change(config)
    with pytest.raises(UserError, match=message):
        comparisons.cases(config)


def test_what_is_collected_of_a_run(tmp_path):
    workdir(tmp_path / "run", 0.875)
    found = comparing.record_of(tmp_path / "run")
    assert found["accuracy"] == 0.875
    assert found["derived_accuracy"] == 0.625
    assert found["gap"] == 0.25  # of the rule that was used
    assert found["skips"] == derive.skips(GENOTYPES["ASAP"])
    assert (found["search_seconds"], found["total_seconds"]) == (12.0, 30.0)
    (tmp_path / "run" / "results.json").unlink()  # a search alone
    found = comparing.record_of(tmp_path / "run")
    assert found["accuracy"] is None
    assert found["total_seconds"] == 12.0


def test_welchs_test_is_by_the_formula():
    first, second = [90.0, 92.0, 94.0], [88.0, 88.5, 87.5, 88.0]
    difference, p = comparing.welch(first, second)
    assert difference == pytest.approx(4.0)
    parts = np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 4
    t = 4.0 / math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    assert p == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)
    assert comparing.welch([1.0], second) is None
    assert comparing.welch([2.0, 2.0], [2.0, 2.0]) == (0.0, 1.0)
    assert comparing.welch([3.0, 3.0], [2.0, 2.0]) == (1.0, 0.0)


def test_the_table():
    other = json.loads(GENOTYPES["ASAP"].to_json())
    other["normal"] = other["reduce"]
    records = {
        "asap": [record(0.9), record(0.92, 1, parameters=3000, genotype=other)],
        "random": [record(0.9, gap=None), record(0.9, 1, gap=None)],
    }
    header, _, asap, random = comparing.table(records, "random").splitlines()
    cells = dict(zip(header.split(" | "), asap.split(" | "), strict=True))
    assert cells["| method"] == "| `asap`"
    assert cells["test accuracy, %"] == "91.00 +- 1.41"
    assert cells["against `random`"] == "+1.00 (p = 0.50)"
    assert cells["parameters"] == "2,000"
    assert cells["gap, points"] == "+10 +- 0"
    same = certainty.agreement(GENOTYPES["ASAP"], Genotype.from_json(json.dumps(other)))
    assert cells["seeds agree, %"] == f"{100 * same:.0f}"
    assert 50 <= int(cells["seeds agree, %"]) < 100  # the reduction cells are the same
    assert cells["skips, normal cell"] == "2, 2"
    assert " | - | " in random
    assert "against" not in comparing.table({"asap": records["asap"]}, "random")


def test_the_table_of_searches_alone_is_of_the_benchmarks_accuracies():
    known = [{"valid": 80.0, "test": each} for each in (84.0, 88.0)]
    ranking = {"column": "test", "cells": 9, "kendall": 0.5, "spearman": 0.6}
    alone = {"accuracy": None, "parameters": None, "multiply_adds": None}
    runs = [
        record(**alone | {"seed": i, "benchmark": each, "ranking": ranking})
        | {"worse": {"valid": 9.0, "test": each["test"] - 20}}
        for i, each in enumerate(known)
    ]
    header, _, row = comparing.table({"asap": runs}, "").splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["test"] == "86.00 +- 2.83"
    assert cells["worst, best seed"] == "84.00, 88.00"
    assert cells["cells that are worse, %"] == "66 +- 3"
    assert cells["rank correlation"] == "0.50 +- 0.00"
    assert "parameters" not in cells


def test_a_table_with_what_is_not_known():
    """A cell outside the benchmark's table, tied accuracies: left out, not in the way."""
    alone = {"accuracy": None, "parameters": None, "multiply_adds": None}
    ranking = {"column": "test", "cells": 2, "kendall": math.nan, "spearman": math.nan}
    runs = [
        record(**alone | {"seed": i, "benchmark": known, "ranking": ranking})
        for i, known in enumerate(({}, {"test": 84.0}, {"test": 86.0}))
    ]
    others = [record(**alone | {"seed": i, "benchmark": {}}) for i in range(3)]
    text = comparing.table({"nap": runs, "random": others}, "random")
    header, _, nap, random = text.splitlines()
    cells = dict(zip(header.split(" | "), nap.split(" | "), strict=True))
    assert cells["test"] == "85.00 +- 1.41"
    assert cells["worst, best seed"] == "84.00, 86.00"
    assert cells["rank correlation"] == "-"
    assert "nan" not in random


def test_folders_of_runs_and_of_comparisons_are_kept_apart(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run, not a comparison"):
        comparing.compare(comparisons.get_config("tiny"), tmp_path / "run")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match="holds a comparison of runs"):
        files.check(tmp_path / "both", {})
    with pytest.raises(UserError, match=r"a size of configs/compare.py"):
        asap_jax.compare(5, workdir=tmp_path / "new")


def test_figures_are_means_over_seeds_and_scaled_time(tmp_path):
    workdir(tmp_path / "asap-0", 0.9)
    workdir(tmp_path / "asap-1", 0.8, left=(196, 196, 28))
    workdir(tmp_path / "random-0", 0.7, left=(196,) * 3, entropies=(math.nan,) * 3)
    runs = {"asap": (0, 1), "random": (0,)}
    records = {
        method: [
            {"seed": seed, **comparing.record_of(tmp_path / f"{method}-{seed}")} for seed in seeds
        ]
        for method, seeds in runs.items()
    }
    figures = comparing.figures(tmp_path, records)
    series = {title: [*names] for title, (_, names, _) in figures.items()}
    assert figures["Epoch duration"][1] == {"asap": 0, "random": 1}
    assert series == {
        "Error and search time": [],
        "Validation accuracy": ["asap", "random"],
        "Entropy": ["asap"],  # random has none
        "Epoch duration": ["asap", "random"],
        "Candidates left": ["asap"],  # random prunes none
    }
    config = comparisons.get_config("tiny")
    config.methods = "random,asap"
    comparing.write(config, tmp_path, records)
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert [*kept] == ["random", "asap"]  # in the config's order
    for path in (tmp_path / "figures").iterdir():
        xml.etree.ElementTree.parse(path)
    assert len([*(tmp_path / "figures").iterdir()]) == 5
    shown = comparing.Comparison(records, comparing.table(records, "random"), tmp_path)
    assert shown._repr_html_().count("<svg") == 5
    page = (tmp_path / "report.html").read_text()
    assert "85.00 ± 7.07" in page
    assert "the paper&#x27;s figure 1" in page
    # The middle of the search: half the candidates in one run, all in the other.
    middle = "asap, at 0.5: 0.75"
    assert middle not in figures["Candidates left"][0]  # of [all, epochs 1 to 3] it is no point
    assert "asap, at 0.5: 0.5" in figures["Entropy"][0]
    assert "asap, at 0.5: 0.5" in figures["Validation accuracy"][0]


def test_a_comparison_by_the_command(tmp_path):
    """Two runs; the same command repeats none, and more seeds only add to them."""
    options = ["--mode=compare", "--config=compare:digits", "--config.methods=asap"]
    options += [flag.replace("--config.", "--config.run.") for flag in flags()]
    options += ["--config.run.search.epochs=1", "--config.run.train.epochs=1"]
    done = command(*options, "--config.seeds=1", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "1 methods, 1 seeds: 0 of 1 runs done" in done.stdout
    before = (tmp_path / "asap-0" / "results.json").stat().st_mtime_ns
    done = command(*options, "--config.seeds=1", f"--workdir={tmp_path}")
    assert "1 of 1 runs done" in done.stdout
    assert (tmp_path / "asap-0" / "results.json").stat().st_mtime_ns == before
    (record,) = json.loads((tmp_path / "comparison.json").read_text())["asap"]
    assert 0 <= record["accuracy"] <= 1
    assert 0 <= record["derived_accuracy"] <= 1
    table = (tmp_path / "comparison.md").read_text()
    assert table in done.stdout
    assert (tmp_path / "asap-0" / "report.html").exists()
    assert 'href="asap-0/report.html"' in (tmp_path / "report.html").read_text()
