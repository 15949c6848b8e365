"""Spaces: NAS-Bench-201's, its strings and tables, and a user's own."""

import dataclasses
import itertools
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax import OPERATIONS, SPACES, STRATEGIES, EvalNetwork, Genotype, SearchSpace, Supernet
from asap_jax.host.errors import UserError
from asap_jax.layers.ops import Context, chain, norm, pointwise, relu
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.mixture import Mixture, one_hot_mixture
from asap_jax.networks.models import count_parameters
from asap_jax.networks.nasbench201 import NASBench201
from asap_jax.networks.spaces import NASBENCH201
from asap_jax.searching import quality
from asap_jax.searching.quality import Measured

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
STRING = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"


def uniform(op):
    return "+".join(
        "|" + "".join(f"{op}~{source}|" for source in range(target)) for target in (1, 2, 3)
    )


# NAS-Bench-201


@pytest.mark.parametrize(
    ("op", "parameters"), [("nor_conv_3x3", 1_531_546), ("skip_connect", 73_306), ("none", 73_306)]
)
def test_networks_have_the_benchmarks_size(op, parameters):
    network = EvalNetwork(Genotype.from_architecture_string(uniform(op)), 10, 16, 15)
    x, plain = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), Context(reference=True)
    variables = jax.eval_shape(lambda x: network.init(KEY, x, plain), x)
    assert count_parameters(variables["params"]) == parameters


def test_architecture_strings():
    genotype = Genotype.from_architecture_string(STRING)
    assert genotype.normal == (
        (("nor_conv_3x3", 0),),
        (("avg_pool_3x3", 1),),
        (("skip_connect", 0), ("nor_conv_1x1", 1)),
    )
    assert genotype.normal_concat == (3,)
    assert genotype.architecture_string() == STRING
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert asap_jax.GENOTYPES["ASAP"].architecture_string() is None
    two = Genotype(((("skip_connect", 0), ("nor_conv_1x1", 0)),), (1,), skeleton="nasbench201")
    assert two.architecture_string() is None  # an edge with two operations has no name


@pytest.mark.parametrize("text", ["", "nor_conv_3x3", "|nor_conv_3x3|", "|a~0|+|b~zero|"])
def test_what_is_no_architecture_string_is_named(text):
    with pytest.raises(ValueError, match="architecture string"):
        Genotype.from_architecture_string(text)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_works_in_a_space_of_one_cell_type(name):
    options = {
        "p_darts": {"keep": (3, 2)},
        "pr_darts": {"keep": (3, 2), "grow": (1, 0), "lengths": (2, 1, 1)},
    }
    strategy = STRATEGIES[name](NASBENCH201, 4, 3, **options.get(name, {}))
    arch = strategy.init(KEY)
    mixtures = strategy.mixture(arch, jnp.int32(11), KEY)
    assert mixtures.keys() == arch.masks.keys() == {"normal"}
    assert mixtures["normal"].active.shape == (6, 5)
    genotype = strategy.derive(arch, None, KEY, lambda mixed, images=None: 0.0)
    assert genotype.skeleton == "nasbench201"
    decided = one_hot_mixture(genotype, NASBENCH201)["normal"]
    assert decided.active.sum() == sum(len(node) for node in genotype.normal)


def test_none_is_derived_where_the_benchmark_has_it():
    alphas = jnp.zeros((6, 5)).at[:, 3].set(1.0).at[2, 0].set(2.0)
    arch = STRATEGIES["darts"](NASBENCH201, 4, 3).init(KEY)._replace(alphas={"normal": alphas})
    found = STRATEGIES["darts"](NASBENCH201, 4, 3).derive(arch, None, KEY, None)
    want = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+" + uniform("nor_conv_3x3").split("+")[2]
    assert found.architecture_string() == want


def test_a_decided_supernet_is_the_benchmarks_network():
    """One function of the same weights, in float64, for a cell with every kind of edge."""
    genotype = Genotype.from_architecture_string(STRING)
    with jax.enable_x64(True):
        images = jnp.asarray(RNG.normal(size=(4, 8, 8, 3)))
        supernet = Supernet(NASBENCH201, 5, channels=4, cells=3)
        shape = NASBENCH201.shape
        alphas = jnp.asarray(RNG.normal(size=shape))
        mask = jnp.ones(shape, bool)
        full = {"normal": Mixture(masked_softmax(alphas, mask), mask)}
        variables = jax.jit(supernet.init)(KEY, images, full)

        @jax.jit
        def logits(mixtures):
            return supernet.apply(variables, images, mixtures, train, mutable=["batch_stats"])[0]

        train = Context(train=True)
        plain = supernet.apply(
            variables, images, full, Context(True, reference=True), mutable=["batch_stats"]
        )[0]
        np.testing.assert_allclose(logits(full), plain, rtol=1e-9, atol=1e-11)

        built = EvalNetwork(genotype, 5, channels=4, cells=3)
        fresh = jax.jit(built.init)(KEY, images)
        params = dict(fresh["params"])
        for name, tree in variables["params"].items():
            params[name] = tree
        edges = [(op, s, t) for t, node in enumerate(genotype.normal, 1) for op, s in node]
        for i in range(3):
            params[f"cell{i}"] = {}
            for e, (op, source, target) in enumerate(edges):
                own = fresh["params"][f"cell{i}"].get(f"edge{e}")
                if own is not None:
                    row = NASBENCH201.edges.index((source, target))
                    stack = variables["params"][f"cell{i}"]["stride1"][op]
                    taken = jax.tree.map(lambda leaf, row=row: leaf[row], stack)
                    params[f"cell{i}"][f"edge{e}"] = own | taken
        (got, _), _ = built.apply(
            {**fresh, "params": params}, images, train, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(
            got, logits(one_hot_mixture(genotype, NASBENCH201)), rtol=1e-9, atol=1e-11
        )


def test_the_table_reads_strings_and_genotypes(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"architecture,cifar10_valid,cifar10_test\n{STRING},81.5,90.25\n")
    table = NASBench201(path)
    want = {"cifar10_valid": 81.5, "cifar10_test": 90.25}
    assert table[STRING] == table[Genotype.from_architecture_string(STRING)] == want
    assert len(table) == 1
    for unknown in (uniform("none"), "no string", asap_jax.GENOTYPES["ASAP"]):
        with pytest.raises(KeyError):
            table[unknown]


def test_the_table_says_how_many_cells_are_worse(tmp_path):
    """Of four cells, two of which are equal in the first column: by hand."""
    path, ops = tmp_path / "table.csv", ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
    rows = zip(map(uniform, ops), (10.0, 80.0, 80.0, 90.0), (10.0, 30.0, 20.0, 40.0), strict=True)
    lines = (f"{cell},{valid},{test}" for cell, valid, test in rows)
    path.write_text("\n".join(("architecture,valid,test", *lines)))
    table = NASBench201(path)
    found = [table.worse(uniform(op)) for op in ops]
    assert [each["valid"] for each in found] == [12.5, 50.0, 50.0, 87.5]
    assert [each["test"] for each in found] == [12.5, 62.5, 37.5, 87.5]
    assert table.worse(Genotype.from_architecture_string(uniform(ops[3]))) == found[3]
    with pytest.raises(KeyError):
        table.worse(STRING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line has to name"),
        (f"architecture\n{STRING}\n", "first line has to name"),
        (f"cell,accuracy\n{STRING},90\n", "first line has to name"),
        (f"architecture,accuracy\n{STRING},high\n", "line 2: .*high"),
        (f"architecture,accuracy\n{STRING},nan\n", "line 2: not a finite number"),
        ("architecture,accuracy\nnor_conv_3x3,90\n", "line 2: not an architecture string"),
        ("architecture,accuracy\n|conv_9x9~0|,90\n", "line 2: .*unknown operation"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        NASBench201(path)


def small(config, **changes):
    config.data.update({"train_examples": 60, "test_examples": 20})
    config.search.update({"channels": 4, "epochs": 2, "batch_size": 15, **changes})
    config.train.update({"channels": 4, "cells": 3, "epochs": 1, "batch_size": 30})
    return config


def test_a_search_logs_what_the_table_says_of_its_cell(tmp_path, capsys, monkeypatch):
    """End-to-end, ASAP on the benchmark's space; the table has all 15,625 cells."""
    known = Measured(1, 55, 4), Measured(900, 90, 2)
    monkeypatch.setattr(quality, "MEASURED", {"asap": known})
    path, rows = tmp_path / "table.csv", ["architecture,accuracy"]
    for number, ops in enumerate(itertools.product(NASBENCH201.candidates, repeat=6)):
        a, b, c, d, e, f = ops
        rows.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|,{number / 200:.3f}")
    path.write_text("\n".join(rows))
    values = dict(row.split(",") for row in rows[1:])
    config = small(tiny(), space="nasbench201", candidates=(), edges="all", benchmark=str(path))
    config.search.benchmark_cells = 6
    config.train.auxiliary_weight = 0.0
    seen = []
    found = asap_jax.run(config, workdir=tmp_path / "run", on_epoch=seen.append)
    searched = [record for record in seen if record["phase"] == "search"]
    printed = capsys.readouterr().out
    assert len(searched) == 2
    for record in searched:
        value = float(values[record["architecture"]])
        assert record["benchmark"] == {"accuracy": value}
        assert f"accuracy {value:.2f}" in printed
        assert record["skips_normal"] == record["architecture"].count("skip_connect")
    assert found.genotype.architecture_string() == searched[-1]["architecture"]
    assert found.search["benchmark"] == searched[-1]["benchmark"]
    rank = round(200 * found.search["benchmark"]["accuracy"])  # no two cells are equal
    assert found.search["worse"] == {"accuracy": 100 * (rank + 0.5) / 15_625}
    assert f"better than {found.search['worse']['accuracy']:.0f} % of all cells" in printed
    steps = sum(record["steps"] for record in searched)
    assert found.search["steps"] == steps
    assert found.search["expected"] == {"steps": 1, "worse": 55, "error": 4}
    assert "better than 55 +- 4 % of all cells" in printed
    assert f"warning: {steps} steps are few" in printed
    assert "from 900 steps on" in (tmp_path / "run" / "warnings.txt").read_text()
    assert re.search(rf"architecture +{re.escape(searched[-1]['architecture'])}", printed)
    ranking = found.search["ranking"]
    assert (ranking["column"], ranking["cells"]) == ("accuracy", 6)
    assert -1 <= ranking["kendall"] <= 1
    assert f"6 cells against accuracy: Kendall's tau {ranking['kendall']:.2f}" in printed
    assert found.search["derived_accuracy"] == found.search["gap"]["all"]["derived"]
    network = asap_jax.load(tmp_path / "run")
    assert network.predict(np.zeros((2, 8, 8), np.uint8)).shape == (2,)
    assert (tmp_path / "run" / "cells.png").stat().st_size > 5000


def test_a_cell_that_is_not_in_the_table_is_named(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text(f"architecture,accuracy\n{uniform('skip_connect')},54.3\n")
    config = small(tiny(), space="nasbench201", candidates=("nor_conv_1x1", "avg_pool_3x3"))
    config.search.update({"edges": "all", "benchmark": str(path), "epochs": 1})
    found = asap_jax.search(config)
    assert found.search["benchmark"] == {}
    name = found.genotype.architecture_string()
    assert f"warning: the cell {name} is not in {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": 4}, "config.search.cells=4"),
        ({"benchmark": "nowhere.csv"}, "config.search.benchmark.*nowhere.csv"),
        ({"space": "asap", "benchmark": "t.csv"}, "knows the cells of the space nasbench201"),
    ],
)
def test_what_the_benchmarks_space_cannot_do_is_refused(changes, message):
    config = small(tiny(), **{"space": "nasbench201", "candidates": (), **changes})
    with pytest.raises(UserError, match=message):
        asap_jax.search(config, quiet=True)


@pytest.mark.parametrize("searches", [1, 2])
def test_the_benchmarks_network_has_no_auxiliary_head(searches):
    config = small(tiny(), space="nasbench201", candidates=())
    config.train.auxiliary_weight, config.searches = 0.4, searches
    start = asap_jax.run if searches == 1 else asap_jax.search
    with pytest.raises(UserError, match="auxiliary_weight"):
        start(config, quiet=True)


# A user's own space


def gate(channels, stride, affine):
    """A user-defined operation: x times the sigmoid of a 1x1 convolution, every `stride`th."""
    layer = chain({"relu": relu, "conv": pointwise(channels, channels), "norm": norm(channels)})

    def apply(params, stats, x, context):
        x = x[:, ::stride, ::stride]
        y, stats = layer.apply(params, stats, x, context)
        return x * jax.nn.sigmoid(y), stats

    return asap_jax.Layer(layer.weights, layer.stats, apply)


@pytest.fixture
def own_space():
    """Three nodes, six edges, one of which skips a node."""
    space = SearchSpace(
        {"gate": gate, "max_pool_3x3": OPERATIONS["max_pool_3x3"]},
        nodes=3,
        edges=((0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)),
    )
    SPACES["own"] = space
    yield space
    del SPACES["own"], OPERATIONS["gate"]


def test_an_own_space_goes_the_whole_road(own_space, tmp_path):
    config = small(tiny(), space="own", candidates=())
    found = asap_jax.run(config, workdir=tmp_path, quiet=True)
    assert [len(node) for node in found.genotype.normal] == [2, 2, 2]
    ops = {op for node in found.genotype.normal + found.genotype.reduce for op, _ in node}
    assert ops <= {"gate", "max_pool_3x3"}
    assert {s for _, s in found.genotype.normal[2]} == {2, 3}
    assert asap_jax.load(tmp_path).module.genotype == found.genotype


def test_a_network_of_own_operations_loads_where_they_are_registered(own_space, tmp_path):
    node = (("gate", 0), ("gate", 1))
    genotype = Genotype((node,), (2,), (node,), (2,))
    config = small(tiny())
    trained = asap_jax.train(genotype, config, workdir=tmp_path, quiet=True)
    images = RNG.integers(0, 255, (4, 8, 8, 1), np.uint8)
    want = trained.predict_proba(images)
    np.testing.assert_array_equal(asap_jax.load(tmp_path).predict_proba(images), want)
    del OPERATIONS["gate"]
    with pytest.raises(UserError, match=r"unknown operation 'gate'.*register"):
        asap_jax.load(tmp_path)
    OPERATIONS["gate"] = gate


def test_another_space_of_the_same_name_is_not_resumed(own_space, tmp_path):
    config = small(tiny(), space="own", candidates=())
    with pytest.raises(KeyboardInterrupt):
        asap_jax.search(config, workdir=tmp_path, on_step=interrupt, quiet=True)
    SPACES["own"] = dataclasses.replace(
        own_space, edges=((0, 2), (1, 2), (0, 3), (2, 3), (2, 4), (3, 4))
    )
    with pytest.raises(UserError, match="space"):
        asap_jax.search(config, workdir=tmp_path, quiet=True)


def interrupt(record):
    os.kill(os.getpid(), signal.SIGINT)


def test_a_name_stands_for_one_operation(own_space):
    SearchSpace({"gate": gate, "skip_connect": OPERATIONS["skip_connect"]})  # the same again
    with pytest.raises(ValueError, match="another operation 'gate'"):
        SearchSpace({"gate": lambda channels, stride, affine: relu, "skip_connect": gate})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skeleton": "resnet"}, "skeleton has to be one of"),
        ({"edges": ((0, 2), (0, 2), (1, 3))}, "two edges lead"),
        ({"edges": ((0, 2), (3, 3))}, "earlier node to a later"),
        ({"edges": ((0, 3), (0, 2))}, "sorted by target"),
        ({"edges": ((0, 2),)}, "reach each node"),
    ],
)
def test_spaces_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(("skip_connect", "max_pool_3x3"), **{"nodes": 2, **options})
