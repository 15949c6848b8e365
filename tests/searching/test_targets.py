"""A target for the derived network's size: exact sizes, the term in the loss, the exchanges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax import GENOTYPES, SPACES, EvalNetwork
from asap_jax.host.errors import UserError
from asap_jax.layers.ops import Context
from asap_jax.methods import derive
from asap_jax.methods import random as random_search
from asap_jax.networks.mixture import Mixture, one_hot_mixture
from asap_jax.networks.models import count_parameters, multiply_adds
from asap_jax.searching import targets

IMAGE = (32, 32, 3)


def network(genotype, cells=5, **options):
    return EvalNetwork(genotype, 10, 8, cells, **options)


def parameters(network, image=IMAGE):
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, Context(reference=True)), images
    )
    return count_parameters(variables["params"])


def target(value, space="asap", inputs=2, weight=1.0, kind="parameters", build=network):
    return targets.make_target(kind, value, weight, inputs, SPACES[space], build, IMAGE)


@pytest.mark.parametrize(
    ("name", "space", "options"),
    [
        ("ASAP", "asap", {}),
        ("DARTS_V2", "darts", {"output": "conv", "squeeze": "early", "cells": 6}),
        ("ASAP", "asap", {"stem": "imagenet"}),
    ],
)
def test_sizes_are_those_of_the_network(name, space, options):
    """Also of cells other than the one that the tables were measured with."""
    build = partial(network, **options)
    genotype = GENOTYPES[name]
    sizes = {"parameters": parameters, "multiply-adds": partial(multiply_adds, image_shape=IMAGE)}
    for kind, measured in sizes.items():
        want = measured(build(genotype))
        assert target(want, space, kind=kind, build=build).size(genotype) == want


def test_sizes_in_nasbench201():
    space = SPACES["nasbench201"]
    build = partial(network, cells=3)
    (masks,) = random_search.draw(space, None, jax.random.key(0), 1)
    genotype = derive.all_living(masks, space)
    want = parameters(build(genotype))
    assert target(want, "nasbench201", None, build=build).size(genotype) == want


def test_the_ratio_is_that_of_the_cells_that_would_be_derived():
    space, goal = SPACES["asap"], target(30_000)
    for seed in range(3):
        alphas = {
            cell: jax.random.normal(jax.random.key(2 * seed + i), space.shape)
            for i, cell in enumerate(space.cell_types)
        }
        masks = {cell: jnp.ones(space.shape, bool) for cell in space.cell_types}
        genotype = derive.strongest(alphas, masks, space, 2)
        mixtures = {c: Mixture(jax.nn.softmax(a), masks[c]) for c, a in alphas.items()}
        ratio = float(goal.ratio(mixtures))
        assert ratio == pytest.approx(goal.size(genotype) / 30_000, rel=1e-5)
    only = one_hot_mixture(GENOTYPES["ASAP"], space)
    # An edge without any weight counts as nothing, and every edge kept has weight 1.
    assert float(goal.ratio(only)) == pytest.approx(goal.size(GENOTYPES["ASAP"]) / 30_000, rel=1e-5)


@pytest.mark.parametrize(("value", "sign"), [(10_000.0, 1), (200_000.0, -1)])
def test_the_term_pushes_towards_the_target(value, sign):
    """Above the target it lowers the weight of the large candidates, below it that of small ones.

    By hand for one edge of the uniform mixture: the gradient with respect to a weight is
    weight * log(ratio) * (share of the edge) * (its size - the edge's mean size) / expected size.
    """
    space = SPACES["asap"]
    goal = target(30_000)._replace(value=value, weight=3.0)
    mask = jnp.ones(space.shape, bool)
    uniform = {c: jnp.full(space.shape, 1 / space.shape[1]) for c in space.cell_types}

    def penalty(weights):
        return goal.penalty({cell: Mixture(w, mask) for cell, w in weights.items()})

    mixtures = {cell: Mixture(w, mask) for cell, w in uniform.items()}
    gradient = jax.grad(penalty)(uniform)["normal"][0]
    sizes, total = goal.tables["normal"], goal.base
    for cell in space.cell_types:
        for node in space.intermediate:
            edges = space.incoming(node)
            total += 2 / len(edges) * goal.tables[cell][edges].mean(1).sum()
    named = np.array([name != "none" for name in space.candidates])
    mean = sizes[0][named].mean()
    want = 3.0 * np.log(float(goal.ratio(mixtures))) * (sizes[0] - mean) / total
    np.testing.assert_allclose(gradient[named], want[named], rtol=1e-4, atol=1e-9)
    largest, smallest = np.argmax(sizes[0]), np.argmin(np.where(named, sizes[0], np.inf))
    assert sign * float(gradient[largest]) > 0 > sign * float(gradient[smallest])


def test_exchanges_reach_the_target_and_lose_little():
    space = SPACES["asap"]
    goal, genotype = target(30_000), GENOTYPES["ASAP"]
    rng = np.random.default_rng(0)
    weights = {cell: rng.dirichlet(np.ones(space.shape[1]), space.shape[0]) for cell in goal.tables}
    masks = {cell: np.ones(space.shape, bool) for cell in goal.tables}
    size = goal.size(genotype)
    for value in (0.8 * size, 1.3 * size, 1.04 * size):
        wanted = goal._replace(value=value)
        found = wanted.fit(genotype, weights, masks)
        assert abs(wanted.size(found) / value - 1) <= targets.TOLERANCE + 1e-9
        assert parameters(network(found)) == wanted.size(found)
        assert all(len(node) == 2 for cell in found.cells.values() for node in cell[0])
    assert found == genotype  # 4 % off is near enough


def test_exchanges_take_live_candidates_alone():
    """With one candidate an edge only edges can be exchanged; with nothing else, nothing."""
    space, goal, genotype = SPACES["asap"], target(30_000), GENOTYPES["ASAP"]
    mixtures = one_hot_mixture(genotype, space)
    weights = {cell: np.asarray(mix.weights) for cell, mix in mixtures.items()}
    masks = {cell: weights[cell] > 0 for cell in weights}
    far = goal._replace(value=10 * goal.size(genotype))
    assert far.fit(genotype, weights, masks) == genotype  # every edge it has is in use
    large = space.candidates.index("sep_conv_5x5")
    for cell in masks:
        masks[cell][:, large] = True
    found = far.fit(genotype, weights, masks)
    assert far.size(found) > goal.size(genotype)
    kept = {op for nodes, _ in found.cells.values() for node in nodes for op, _ in node}
    assert kept <= {"sep_conv_5x5"} | {
        op for nodes, _ in genotype.cells.values() for node in nodes for op, _ in node
    }


def test_an_edge_may_be_emptied_where_the_space_derives_none():
    space = SPACES["nasbench201"]
    build = partial(network, cells=3)
    largest = np.zeros((1, *space.shape), bool)
    largest[..., space.candidates.index("nor_conv_3x3")] = True
    genotype = derive.all_living({"normal": largest[0]}, space)
    goal = target(parameters(build(genotype)), "nasbench201", None, build=build)
    small = goal._replace(value=0.6 * goal.value)
    weights = {"normal": np.full(space.shape, 0.2)}
    only = {"normal": largest[0]}  # nothing but to leave edges out
    found = small.fit(genotype, weights, only)
    assert sum(len(node) for node in found.normal) < 6
    assert abs(small.size(found) / small.value - 1) < abs(goal.value / small.value - 1)


def test_a_target_out_of_reach_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"have [\d,]+ to [\d,]+ parameters, got 1,000,000"):
        target(1e6)
    config = tiny()
    config.search.target_params = 1e6
    with pytest.raises(UserError, match=r"config.search.target_params: networks of this space"):
        asap_jax.search(config)
    config.search.target_macs = 1e6
    with pytest.raises(UserError, match=r"0 beside config.search.target_params=1e"):
        asap_jax.search(config)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_a_search_ends_near_its_target(factor):
    """The size is logged, relative to the target; the network trained is what was asked for."""
    config = tiny()
    config.search.update({"epochs": 4, "strategy": {"final_temperature": 1.0}})  # prunes little
    usual = 3258
    config.search.target_params = factor * usual
    seen = []
    outcome = asap_jax.search(config, on_epoch=seen.append)
    build = EvalNetwork(outcome.genotype, 10, 4, 3)
    assert parameters(build, (8, 8, 1)) == pytest.approx(factor * usual, rel=targets.TOLERANCE)
    assert all(record["size"] > 0 for record in seen)
