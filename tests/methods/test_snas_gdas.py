"""SNAS and GDAS: what they sample and derive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import CANDIDATES, CELLS, EDGES, KEY, SPACE, random_alphas

from asap_jax import STRATEGIES, SearchSpace
from asap_jax.configs import presets
from asap_jax.methods import derive
from asap_jax.methods.relaxation import gumbel_softmax
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.spaces import DARTS, NASBENCH201
from asap_jax.runs import inputs
from asap_jax.searching import stages

RNG = np.random.default_rng(0)


def test_snas_samples_follow_the_gumbel_softmax_law():
    """With two candidates, log(w1 / w2) is logistic around the alphas' difference, over lambda."""
    strategy = STRATEGIES["snas"](SearchSpace(("max_pool_3x3", "skip_connect"), nodes=1), 10, 5)
    arch = strategy.init(KEY)
    difference = 0.8
    alphas = {c: a.at[:, 0].set(difference) for c, a in arch.alphas.items()}
    step = jnp.int32(5 * 4)
    temperature = float(strategy.readings(step)["temperature"])
    assert temperature == pytest.approx(0.03 + 0.97 * 5 / 10, rel=1e-5)  # epoch 4 of 10
    draw = jax.jit(
        jax.vmap(
            lambda k: strategy.mixture(arch._replace(alphas=alphas), step, k)["normal"].weights
        )
    )
    weights = np.asarray(draw(jax.random.split(KEY, 4000)), np.float64)[:, 0]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    ratio = np.sort(np.log(np.maximum(weights[:, 0], 1e-38) / np.maximum(weights[:, 1], 1e-38)))
    law = 1 / (1 + np.exp(-(temperature * ratio - difference)))
    distance = np.abs(law - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < 1.63 / np.sqrt(4000)  # Kolmogorov-Smirnov at 1 %


def test_snas_temperature_falls_as_in_the_authors_code():
    """lambda = (1 - (e + 1) / E)(1 - 0.03) + 0.03: from 0.99353 to 0.03 over 150 epochs."""
    strategy = STRATEGIES["snas"](SPACE, 150, 5)
    for epoch, want in ((0, 0.9935333), (74, 0.515), (148, 0.0364667), (149, 0.03)):
        for step in (5 * epoch, 5 * epoch + 4):
            got = float(strategy.readings(jnp.int32(step))["temperature"])
            assert got == pytest.approx(want, rel=1e-5)


def test_snas_learns_from_all_training_images():
    """12 batches of 30 cover the 360 images; ASAP's half has 6."""
    config = presets.get_config("tiny,snas")
    dataset = inputs.load_data(config)
    stage = stages.build(config.search, dataset)
    assert stage.steps == 12
    # The temperature follows these epochs.
    readings = [stage.strategy.readings(jnp.int32(step))["temperature"] for step in (0, 11, 12)]
    assert readings[0] == readings[1] > readings[2]
    assert stages.build(presets.get_config("tiny").search, dataset).steps == 6


def test_snas_keeps_all_edges_but_those_that_choose_none():
    strategy = STRATEGIES["snas"](DARTS, 10, 5)
    arch = strategy.init(KEY)
    alphas = random_alphas(RNG, DARTS)
    alphas = {c: a.at[0, 0].set(9.0) for c, a in alphas.items()}  # `none` on the first edge
    found = strategy.derive(arch._replace(alphas=alphas), 2, KEY, None)
    choice = np.asarray(alphas["normal"]).argmax(-1)
    assert sum(len(node) for node in found.normal) == (choice != 0).sum()
    assert all(source != 0 for _, source in found.normal[0])


def test_gdas_samples_one_candidate_with_straight_through_gradients():
    strategy = STRATEGIES["gdas"](SPACE, 11, 5)
    assert float(strategy.readings(jnp.int32(0))["temperature"]) == pytest.approx(10)
    assert float(strategy.readings(jnp.int32(54))["temperature"]) == pytest.approx(0.1, rel=1e-4)
    alphas, arch, step = random_alphas(RNG), strategy.init(KEY), jnp.int32(25)
    mixture = strategy.mixture(arch._replace(alphas=alphas), step, KEY)["normal"]
    assert (mixture.active.sum(-1) == 1).all()
    np.testing.assert_allclose(mixture.weights, mixture.active, atol=1e-6)
    assert (mixture.weights[~mixture.active] == 0).all()
    cotangent = jnp.asarray(RNG.normal(size=(EDGES, CANDIDATES)), jnp.float32)

    def hard(alphas):
        moved = arch._replace(alphas={**arch.alphas, "normal": alphas})
        return jnp.sum(cotangent * strategy.mixture(moved, step, KEY)["normal"].weights)

    def soft(alphas):
        key = jax.random.split(KEY, 2)[0]
        tau = strategy.readings(step)["temperature"]
        return jnp.sum(cotangent * gumbel_softmax(key, alphas, arch.masks["normal"], tau))

    got, want = (jax.grad(f)(alphas["normal"]) for f in (hard, soft))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    # Sampled with the softmax's frequencies, whatever the temperature.
    draw = jax.vmap(
        lambda k: strategy.mixture(arch._replace(alphas=alphas), step, k)["normal"].active
    )
    share = draw(jax.random.split(KEY, 4000)).mean(0)
    np.testing.assert_allclose(share, jax.nn.softmax(alphas["normal"]), atol=0.035)


def test_gdas_takes_the_strongest_pairs_which_may_share_a_source():
    """Node 3's two strongest pairs are on its edge from node 0; DARTS' rule takes two sources."""
    alphas = np.zeros((EDGES, CANDIDATES), np.float32)
    alphas[2] = [3.0, 0.0, 2.9]  # 0 -> 3: 0.51 and 0.46 of its softmax
    alphas[3] = [0.4, 0.0, 0.0]  # 1 -> 3: 0.43
    alphas[4] = [0.0, 0.2, 0.0]  # 2 -> 3: 0.38
    alphas[1] = [0.0, 9.0, 0.0]
    found = {}
    for pairs in (True, False):
        strategy = STRATEGIES["gdas"](SPACE, 11, 5, pairs=pairs)
        arch = strategy.init(KEY)._replace(alphas=dict.fromkeys(CELLS, jnp.asarray(alphas)))
        found[pairs] = strategy.derive(arch, 2, KEY, None)
        every = strategy.derive(arch, None, KEY, None)
        assert [len(node) for node in every.normal] == [2, 3]
    assert found[True].normal[1] == (("dil_conv_3x3", 0), ("skip_connect", 0))
    assert found[False].normal[1] == (("dil_conv_3x3", 0), ("dil_conv_3x3", 1))
    assert found[True].normal[0] == (("dil_conv_3x3", 0), ("max_pool_3x3", 1))
    mixture = one_hot_mixture(found[True], SPACE)["normal"]
    assert mixture.weights[2].tolist() == [1, 0, 1]


def test_gdas_pairs_leave_none_and_nas_bench_201_to_the_rule_of_edges():
    strategy = STRATEGIES["gdas"](DARTS, 11, 5)
    alphas = {c: a.at[:, 0].set(9.0) for c, a in random_alphas(RNG, DARTS).items()}
    found = strategy.derive(strategy.init(KEY)._replace(alphas=alphas), 2, KEY, None)
    assert all(op != "none" for node in found.normal for op, _ in node)
    space = NASBENCH201
    strategy = STRATEGIES["gdas"](space, 11, 5)
    arch = strategy.init(KEY)
    want = derive.strongest(arch.alphas, arch.masks, space, 2)
    assert strategy.derive(arch, 2, KEY, None) == want
