"""What is specific to each method."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import theory

from asap_jax import STRATEGIES, SearchSpace
from asap_jax.configs import presets
from asap_jax.host.errors import UserError
from asap_jax.methods import (
    Architecture,
    bilevel,
    darts_plus,
    derive,
    dso_nas,
    enas,
    evolution,
    pruning,
    random,
    schedules,
)
from asap_jax.methods.relaxation import gumbel_softmax
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.spaces import ASAP, DARTS, NASBENCH201
from asap_jax.runs import inputs
from asap_jax.searching import stages
from asap_jax.training import optim
from asap_jax.training.feed import Batch

SPACE = SearchSpace(("dil_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
EDGES, CANDIDATES = len(SPACE.edges), len(SPACE.candidates)
CELLS = ("normal", "reduce")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def random_alphas(space=SPACE):
    shape = (len(space.edges), len(space.candidates))
    return {cell: jnp.asarray(RNG.normal(size=shape), jnp.float32) for cell in CELLS}


# Second-order DARTS, on a small smooth problem in float64.


def bilevel_problem():
    """(loss, point) of two coupled smooth losses; omega [5], alphas [3]."""
    rng = np.random.default_rng(1)
    weights = {half: jnp.asarray(rng.normal(size=(5, 3))) for half in ("train", "val")}

    def loss(params, alphas, batch_stats, batch, key):
        mixed = jnp.tanh(batch @ jax.nn.softmax(alphas)) * params
        return jnp.sum(jnp.sin(mixed) + 0.3 * params**2), (batch_stats, mixed)

    rate = schedules.cosine_by_epoch(0.2, 0.1, 10, 1)
    omega = optim.sgd(rate, momentum=0.9, weight_decay=0.01)
    params = jnp.asarray(rng.normal(size=5))
    state = omega.init(params)
    _, state = omega.update(jnp.asarray(rng.normal(size=5)), state, params)  # some momentum
    return loss, bilevel.Point(
        params,
        jnp.asarray(rng.normal(size=3)),
        {},
        state,
        jnp.int32(4),
        weights["train"],
        weights["val"],
        KEY,
        optim.virtual_sgd(rate, 0.9, 0.01),
    )


def unrolled_loss(loss, point, alphas):
    """L_val(omega - xi (momentum m + dL_train + decay omega), alpha), by hand."""
    gradient = jax.grad(lambda w: loss(w, alphas, {}, point.train, KEY)[0])(point.params)
    xi = 0.1 + 0.1 * (1 + np.cos(np.pi * 4 / 10)) / 2
    trace = jnp.asarray(
        next(leaf for leaf in jax.tree.leaves(point.omega_opt) if leaf.shape == point.params.shape)
    )
    moved = point.params - xi * (0.9 * trace + gradient + 0.01 * point.params)
    return loss(moved, alphas, {}, point.val, KEY)[0]


def test_exact_second_order_is_the_derivative_of_the_unrolled_loss():
    with jax.enable_x64(True):
        loss, point = bilevel_problem()
        (value, _), got = bilevel.second_order_exact(loss, point)
        assert value == pytest.approx(float(unrolled_loss(loss, point, point.alphas)), rel=1e-6)
        for i in range(3):
            step = 1e-5 * jnp.eye(3)[i]
            ahead, behind = (
                unrolled_loss(loss, point, point.alphas + sign * step) for sign in (1, -1)
            )
            assert got[i] == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-5, abs=1e-8)
        _, plain = bilevel.first_order(loss, point)
        assert np.abs(got - plain).max() > 1e-2  # the problem distinguishes them


def test_the_finite_difference_converges_to_it():
    with jax.enable_x64(True):
        loss, point = bilevel_problem()
        _, exact = bilevel.second_order_exact(loss, point)
        errors = [
            float(np.abs(bilevel.second_order(loss, point, epsilon)[1] - exact).max())
            for epsilon in (0.1, 0.01, 0.001)
        ]
        assert errors[1] < errors[0] / 50  # quadratic in epsilon
        assert errors[2] < errors[1] / 50
        assert errors[2] < 1e-7


def test_a_gradient_of_ones_own_may_be_one_through_a_gradient():
    def own(loss, point):
        return bilevel.second_order_exact(loss, point)

    for updates in (bilevel.omega_then_alpha, bilevel.alpha_then_omega, bilevel.joint):
        assert updates(own).differentiations == 2
        assert updates(own, differentiations=1).differentiations == 1
    once = bilevel.first_order, bilevel.second_order, bilevel.single_level
    assert {bilevel.omega_then_alpha(each).differentiations for each in once} == {1}
    assert bilevel.alpha_then_omega(bilevel.second_order_exact).differentiations == 2
    assert bilevel.omega_alone().differentiations == 1


# DARTS+


@pytest.mark.parametrize("inputs", [2, 1, None])
@pytest.mark.parametrize("space", [SPACE, DARTS, NASBENCH201])
def test_darts_plus_counts_the_skips_that_would_be_derived(space, inputs):
    masks = {cell: np.ones(space.shape, bool) for cell in space.cell_types}
    count = jax.jit(lambda alphas: darts_plus.derived_skips(alphas, space, inputs))
    seen = set()
    for _ in range(60):
        alphas = random_alphas(space)
        alphas["normal"] = alphas["normal"].at[:, space.candidates.index("skip_connect")].add(0.7)
        want = derive.skips(derive.strongest(alphas, masks, space, inputs))["normal"]
        assert int(count(alphas["normal"])) == want
        seen.add(want)
    assert len(seen) >= 3


def after_each_step(strategy, alphas_of_epochs, steps):
    """[epochs, steps], whether the strategy is finished after each step."""
    arch, look, ends = strategy.init(KEY), jax.jit(strategy.prune), []
    for epoch, alphas in enumerate(alphas_of_epochs):
        ends.append([])
        for i in range(steps):
            arch = look(arch._replace(alphas=alphas), alphas, jnp.int32(epoch * steps + i))
            ends[-1].append(bool(strategy.finished(arch)))
    return np.array(ends)


def alphas_with_skips(count):
    """Convolutions everywhere but on `count` edges of the normal cell; the other has only skips."""
    normal = jnp.zeros(SPACE.shape).at[:, 0].set(1.0).at[:count, 2].set(2.0)
    return {"normal": normal, "reduce": jnp.zeros(SPACE.shape).at[:, 2].set(1.0)}


def test_darts_plus_stops_after_the_epoch_with_two_skips():
    epochs = [alphas_with_skips(count) for count in (0, 1, 1, 2, 0)]
    ends = after_each_step(STRATEGIES["darts_plus"](SPACE, 9, 3), epochs, 3)
    assert not ends[:3].any()
    assert ends[3].tolist() == [False, False, True]
    later = after_each_step(STRATEGIES["darts_plus"](SPACE, 9, 3, skips=3), epochs, 3)
    assert not later.any()


def test_darts_plus_stops_when_the_ranking_of_what_learns_is_stable():
    """In epoch 2 two convolutions swap; skips and the size of the alphas do not count."""
    space = SearchSpace(("skip_connect", "dil_conv_3x3", "sep_conv_3x3"), nodes=1)
    strategy = STRATEGIES["darts_plus"](space, 20, 3, skips=0, stable_epochs=4)

    def alphas(epoch):
        scale, skip = 1.0 + epoch, (-1.0) ** epoch * 10
        first = jnp.tile(jnp.asarray([skip, 1.0, 2.0]), (2, 1)) * scale
        swapped = first.at[1].set(jnp.asarray([skip, 2.0, 1.0]) * scale)
        return {"normal": first, "reduce": first if epoch < 2 else swapped}

    ends = after_each_step(strategy, [alphas(epoch) for epoch in range(8)], 3)
    assert np.argwhere(ends)[0].tolist() == [6, 2]  # epochs 3 to 6 end as epoch 2 did
    arch = strategy.init(KEY)
    assert int(strategy.measured(arch)["stable_epochs"]) == 0


# beta-DARTS


def test_beta_darts_decays_the_weights_by_the_logsumexp_of_an_edge():
    """By hand, at epoch 30 of 100: w = 15; the gradient is w softmax(alpha) / edges."""
    strategy = STRATEGIES["beta_darts"](SPACE, 100, 4)
    alphas, step = random_alphas(), jnp.int32(4 * 30 + 3)
    arch = strategy.init(KEY)

    def term(alphas):
        return strategy.regularizer(arch._replace(alphas=alphas), step)

    value, gradients = jax.value_and_grad(term)(alphas)
    exponents = {cell: np.exp(np.asarray(a, np.float64)) for cell, a in alphas.items()}
    want = 15 * sum(np.mean(np.log(each.sum(-1))) for each in exponents.values())
    assert float(value) == pytest.approx(want, rel=1e-5)
    for cell, each in exponents.items():
        softmax = each / each.sum(-1, keepdims=True)
        np.testing.assert_allclose(gradients[cell], 15 * softmax / EDGES, rtol=1e-5)


def test_beta_darts_weight_grows_to_50():
    """50 e / 100 in the authors' 100 epochs; the same line in any other number."""
    for epochs in (100, 20):
        strategy = STRATEGIES["beta_darts"](SPACE, epochs, 4)
        for epoch in range(epochs):
            for step in (4 * epoch, 4 * epoch + 3):
                got = strategy.readings(jnp.int32(step))["regularizer_weight"]
                assert float(got) == pytest.approx(50 * epoch / epochs, rel=1e-6)


# SNAS and GDAS


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
    alphas = random_alphas(DARTS)
    alphas = {c: a.at[0, 0].set(9.0) for c, a in alphas.items()}  # `none` on the first edge
    found = strategy.derive(arch._replace(alphas=alphas), 2, KEY, None)
    choice = np.asarray(alphas["normal"]).argmax(-1)
    assert sum(len(node) for node in found.normal) == (choice != 0).sum()
    assert all(source != 0 for _, source in found.normal[0])


def test_gdas_samples_one_candidate_with_straight_through_gradients():
    strategy = STRATEGIES["gdas"](SPACE, 11, 5)
    assert float(strategy.readings(jnp.int32(0))["temperature"]) == pytest.approx(10)
    assert float(strategy.readings(jnp.int32(54))["temperature"]) == pytest.approx(0.1, rel=1e-4)
    alphas, arch, step = random_alphas(), strategy.init(KEY), jnp.int32(25)
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
    alphas = {c: a.at[:, 0].set(9.0) for c, a in random_alphas(DARTS).items()}
    found = strategy.derive(strategy.init(KEY)._replace(alphas=alphas), 2, KEY, None)
    assert all(op != "none" for node in found.normal for op, _ in node)
    space = NASBENCH201
    strategy = STRATEGIES["gdas"](space, 11, 5)
    arch = strategy.init(KEY)
    want = derive.strongest(arch.alphas, arch.masks, space, 2)
    assert strategy.derive(arch, 2, KEY, None) == want


# DrNAS


def dirichlet_arch(strategy):
    """Concentrations below and above 1; the last candidate of the first edge is pruned."""
    alphas = {cell: 0.7 * a for cell, a in random_alphas().items()}
    masks = {cell: m.at[0, -1].set(False) for cell, m in strategy.init(KEY).masks.items()}
    return strategy.init(KEY)._replace(alphas=alphas, masks=masks)


def live_concentrations(alphas, mask):
    """elu(alpha) + 1 in float64, 0 where pruned."""
    alphas = np.asarray(alphas, np.float64)
    return np.where(mask, np.where(alphas > 0, alphas + 1, np.exp(alphas)), 0)


@pytest.mark.slow
def test_drnas_samples_the_dirichlet_distribution_with_pathwise_gradients():
    """E w_o^2 = a_o (a_o + 1) / (a (a + 1)) with a the sum of a_o, and its derivative by alpha."""
    strategy = STRATEGIES["drnas"](SPACE, 10, 5)
    arch, draws = dirichlet_arch(strategy), 20_000
    mask = np.asarray(arch.masks["normal"])
    weigh = RNG.normal(size=(EDGES, CANDIDATES))

    def sampled(alphas, key):
        moved = arch._replace(alphas={**arch.alphas, "normal": alphas})
        weights = strategy.mixture(moved, jnp.int32(0), key)["normal"].weights
        return jnp.sum(weigh * weights**2), weights

    @jax.jit
    def all_of_them(keys):
        run = jax.value_and_grad(sampled, has_aux=True)
        (values, weights), gradients = jax.vmap(lambda k: run(arch.alphas["normal"], k))(keys)
        return values, weights, gradients

    found = all_of_them(jax.random.split(KEY, draws))
    values, weights, gradients = (np.asarray(leaf, np.float64) for leaf in found)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights[:, ~mask] == 0).all()
    assert (gradients[:, ~mask] == 0).all()

    def expectation(alphas):
        a = live_concentrations(alphas, mask)
        total = a.sum(-1, keepdims=True)
        return np.sum(weigh * a * (a + 1) / (total * (total + 1)))

    alphas = np.asarray(arch.alphas["normal"], np.float64)
    error = 5 / np.sqrt(draws)
    assert abs(values.mean() - expectation(alphas)) < error * values.std()
    a = live_concentrations(alphas, mask)
    np.testing.assert_allclose(
        weights.mean(0), a / a.sum(-1, keepdims=True), atol=error * weights.std(0).max()
    )
    for e, o in np.argwhere(mask):
        step = np.zeros_like(alphas)
        step[e, o] = 1e-5
        want = (expectation(alphas + step) - expectation(alphas - step)) / 2e-5
        assert abs(gradients[:, e, o].mean() - want) < error * gradients[:, e, o].std(), (e, o)


def test_drnas_distribution_is_the_mean_and_its_divergence_is_that_of_the_densities():
    """KL(q || uniform) = E_q log q - log (n - 1)!, by a million samples of NumPy's."""
    strategy = STRATEGIES["drnas"](SPACE, 10, 5, kl=0.5)
    arch = dirichlet_arch(strategy)
    found = strategy.distribution(arch, None)
    want, deviation = 0.0, 0.0
    for cell in CELLS:
        for e, mask in enumerate(np.asarray(arch.masks[cell])):
            a = live_concentrations(arch.alphas[cell][e], mask)
            np.testing.assert_allclose(found[cell].weights[e], a / a.sum(), rtol=1e-5)
            a = a[mask]
            samples = np.random.default_rng(e).dirichlet(a, 100_000)
            norm = math.lgamma(a.sum()) - sum(map(math.lgamma, a))
            logs = norm + np.sum((a - 1) * np.log(samples), -1) - math.lgamma(len(a))
            want += logs.mean()
            deviation += logs.var() / len(logs)
    got = float(strategy.regularizer(arch, jnp.int32(7)))
    assert got == pytest.approx(0.5 * want, abs=0.5 * 5 * np.sqrt(deviation))
    flat = arch._replace(alphas=jax.tree.map(jnp.zeros_like, arch.alphas))
    assert float(strategy.regularizer(flat, jnp.int32(0))) == pytest.approx(0, abs=1e-5)
    assert STRATEGIES["drnas"](SPACE, 10, 5).regularizer is None


def test_drnas_goes_on_with_the_strongest_candidates_and_their_alphas():
    config = presets.get_config("drnas").search
    options = config.strategy.to_dict()
    assert options.pop("name") == "drnas"
    first = STRATEGIES["drnas"](ASAP, config.epochs, 4, **options)
    assert (first.epochs, first.partial_channels) == (25, 6)
    assert [bool(first.learns(jnp.int32(step))) for step in (39, 40)] == [False, True]
    alphas = random_alphas(ASAP)
    last = first.next_stage(first.init(KEY)._replace(alphas=alphas))
    assert (last.epochs, last.partial_channels, last.next_stage) == (25, 4, None)
    arch = last.init(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, arch.alphas, alphas)
    for cell in CELLS:
        ranks = np.argsort(np.argsort(-np.asarray(alphas[cell]), -1), -1)
        np.testing.assert_array_equal(arch.masks[cell], ranks < 4)
    found = last.derive(arch, None, KEY, None)
    best = np.asarray(alphas["normal"]).argmax(-1)
    chosen = one_hot_mixture(found, ASAP)["normal"].weights
    np.testing.assert_array_equal(chosen.argmax(-1), best)
    fair = presets.get_config("drnas,fair").search
    assert all(fair.channels % k == 0 for k in fair.strategy.partial_channels)


# EDAS


def test_edas_relaxes_one_edge_and_moves_only_its_alphas():
    strategy = STRATEGIES["edas"](SPACE, 4, 3)
    arch = strategy.init(KEY)._replace(alphas=random_alphas())
    seen = np.zeros((2, EDGES), int)
    for key in jax.random.split(KEY, 300):
        mixtures = strategy.mixture(arch, jnp.int32(0), key)
        live = strategy.live(arch, jnp.int32(0), key)
        relaxed = np.stack([np.asarray(mixtures[c].active.sum(-1) > 1) for c in CELLS])
        assert relaxed.sum() == 1
        for i, cell in enumerate(CELLS):
            np.testing.assert_array_equal(live[cell], np.repeat(relaxed[i][:, None], CANDIDATES, 1))
            clamped = np.asarray(mixtures[cell].weights)[~relaxed[i]]
            best = np.asarray(arch.alphas[cell]).argmax(-1)[~relaxed[i]]
            np.testing.assert_array_equal(clamped, np.eye(CANDIDATES)[best])
            soft = np.asarray(mixtures[cell].weights)[relaxed[i]]
            np.testing.assert_allclose(
                soft, jax.nn.softmax(arch.alphas[cell])[relaxed[i]], rtol=1e-6
            )
        seen += relaxed
    assert seen.min() > 10  # 30 on average


def test_edas_moves_an_edge_at_the_configured_rate_however_seldom_it_is_drawn():
    """Adam's first step is the learning rate, also for the edge that waited longest."""
    strategy, optimizer = STRATEGIES["edas"](SPACE, 4, 3), optim.adam(0.01, weight_decay=0.0)
    arch = strategy.init(KEY)
    alphas, state, waited = arch.alphas, optimizer.init(arch.alphas), {}
    for step, key in enumerate(jax.random.split(KEY, 60)):
        live = strategy.live(arch, jnp.int32(step), key)
        gradients = jax.tree.map(jnp.ones_like, alphas)
        after, state = optim.update_where(optimizer, live, gradients, state, alphas)
        for cell in CELLS:
            for edge in np.flatnonzero(np.asarray(live[cell]).any(-1)):
                moved = np.abs(np.asarray(after[cell] - alphas[cell]))[edge]
                np.testing.assert_allclose(moved, 0.01, rtol=1e-3)
                waited.setdefault((cell, edge), step)
        alphas = after
    assert len(waited) == 2 * EDGES
    assert max(waited.values()) > 10  # a global count would make this step three times as long


def test_edas_keeps_all_edges_unless_asked():
    config = presets.get_config("edas")
    assert config.search.edges == "all"
    strategy = STRATEGIES["edas"](ASAP, 4, 3)
    arch = strategy.init(KEY)._replace(alphas=random_alphas(ASAP))
    for rule, edges in (("all", 14), ("top2", 8)):
        found = strategy.derive(arch, derive.EDGES[rule], KEY, None)
        assert sum(len(node) for node in found.normal) == edges
    # Next to the relaxed edge, the supernet is the derived cell.
    every = one_hot_mixture(strategy.derive(arch, None, KEY, None), ASAP)
    mixtures = strategy.mixture(arch, jnp.int32(0), KEY)
    differ = [np.abs(mixtures[c].weights - every[c].weights).max(-1) > 1e-6 for c in CELLS]
    assert np.sum(differ) == 1


# PARSEC


PAIR = SearchSpace(("max_pool_3x3", "skip_connect"), nodes=1, edges=((0, 2), (1, 2)))


def parsec_point(strategy, alphas, images, samples_key):
    """A loss whose likelihoods are known: the sum of a table's entries of the sampled candidates.

    omega [2, 2] is added to the normal cell's entries, so its gradient counts what was sampled.
    """
    table = {
        "normal": jnp.asarray([[0.9, 0.2], [0.4, 0.6]]),
        "reduce": jnp.asarray([[0.1, 0.5], [0.3, 0.3]]),
    }
    masks = strategy.init(KEY).masks

    def loss(params, alphas, stats, batch, key):
        arch = Architecture(alphas, masks)
        chosen = {c: m.active for c, m in strategy.mixture(arch, 0, key).items()}
        value = sum(jnp.vdot(chosen[c], table[c]) for c in CELLS) / 10
        value += jnp.vdot(chosen["normal"], params) * batch.images.mean()
        return value, (stats + 1, jnp.ones((len(batch.labels), 2)))

    def batch(size, scale):
        return Batch(jnp.full((size, 1), scale), jnp.zeros(size, jnp.int32))

    point = bilevel.Point(
        jnp.zeros((2, 2)),
        alphas,
        jnp.int32(0),
        None,
        jnp.int32(0),
        batch(3, 2.0),
        batch(images, 0.0),
        samples_key,
    )
    return loss, point, table


def test_parsec_follows_the_gradient_of_the_evidence():
    """Many samples against all 16 architectures: the exact posterior, for both gradients."""
    strategy = STRATEGIES["parsec"](PAIR, 4, 3, samples=20_000)
    alphas = {c: jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32) for c in CELLS}
    images = 20
    loss, point, table = parsec_point(strategy, alphas, images, KEY)

    def evidence(alphas):
        total = 0.0
        for choice in itertools.product((0, 1), repeat=4):
            log = 0.0
            for c, chosen in zip(CELLS, (choice[:2], choice[2:]), strict=True):
                for e, o in enumerate(chosen):
                    log += jax.nn.log_softmax(alphas[c])[e, o] - images * table[c][e, o] / 10
            total += jnp.exp(log)
        return jnp.log(total)

    (_, (stats, _)), got = strategy.updates.gradient(loss, point)
    want = jax.grad(lambda alphas: -evidence(alphas))(alphas)
    assert int(stats) == 20_000  # every sample updates the statistics
    for cell in CELLS:
        np.testing.assert_allclose(got[cell], want[cell], atol=0.02)
        assert np.abs(want[cell]).max() > 0.1
        np.testing.assert_allclose(got[cell].sum(-1), 0, atol=1e-5)
    # A table of sums factorizes: the posterior of an edge is softmax(alpha - n loss).
    posterior = jax.nn.softmax(alphas["normal"] - images * table["normal"] / 10)
    (value, _), gradient = strategy.updates.omega(loss, point)
    np.testing.assert_allclose(gradient, 2.0 * posterior, atol=0.03)
    assert float(value) > 0


@pytest.mark.parametrize("power", [1.0, 0.05])
def test_parsecs_weights_are_the_samples_shares_of_the_likelihood(power):
    strategy = STRATEGIES["parsec"](PAIR, 4, 3, samples=3, likelihood_power=power)
    rng = np.random.default_rng(0)
    alphas = {c: jnp.asarray(rng.normal(size=(2, 2)), jnp.float32) for c in CELLS}
    loss, point, _ = parsec_point(strategy, alphas, 20, jax.random.key(3))
    keys = jax.random.split(point.key, 3)
    losses = [float(loss(point.params, alphas, 0, point.val, key)[0]) for key in keys]
    likelihoods = np.exp(-np.asarray(losses)) ** (20 * power)
    weights = likelihoods / likelihoods.sum()
    assert np.ptp(weights) > 0.01
    arch = strategy.init(KEY)._replace(alphas=alphas)
    drawn = [strategy.mixture(arch, 0, key) for key in keys]
    (value, _), got = strategy.updates.gradient(loss, point)
    assert float(value) == pytest.approx(weights @ losses, rel=1e-5)
    for cell in CELLS:  # d log pi = a - pi
        soft = np.asarray(jax.nn.softmax(alphas[cell]))
        terms = [
            w * (soft - np.asarray(d[cell].active)) for w, d in zip(weights, drawn, strict=True)
        ]
        np.testing.assert_allclose(got[cell], sum(terms), rtol=1e-4, atol=1e-6)
    _, gradient = strategy.updates.omega(loss, point)
    want = sum(
        2.0 * w * np.asarray(d["normal"].active) for w, d in zip(weights, drawn, strict=True)
    )
    np.testing.assert_allclose(gradient, want, rtol=1e-5)
    trained = strategy.trained(arch, 0, point.key)
    for cell in CELLS:
        union = np.any([d[cell].active for d in drawn], 0)
        np.testing.assert_array_equal(trained[cell].active, union)


# DSO-NAS


def test_dso_nas_moves_its_scales_by_the_accelerated_proximal_gradient():
    """eta = 0.1, gamma = 0.5, mu = 0.9: two steps by hand."""
    optimizer = dso_nas.accelerated_proximal(0.1, 0.5, 0.9)
    scales = {"normal": jnp.asarray([1.0, 0.04, 0.2])}
    state = optimizer.init(scales)
    gradients = {"normal": jnp.asarray([-0.8, 0.0, 0.3])}
    updates, state = optimizer.update(gradients, state, scales)
    scales = optax.apply_updates(scales, updates)
    # z = 1.08 - 0.05, 0, 0.17 - 0.05; m = z - lambda; lambda = max(0, z + 0.9 m).
    np.testing.assert_allclose(state["normal"], [0.03, -0.04, -0.08], rtol=1e-5)
    np.testing.assert_allclose(scales["normal"], [1.057, 0.0, 0.048], rtol=1e-5)
    assert float(scales["normal"][1]) == 0
    gradients = {"normal": jnp.asarray([-0.8, -2.0, 0.3])}
    updates, state = optimizer.update(gradients, state, scales)
    scales = optax.apply_updates(scales, updates)
    # z = 1.137 - 0.05, 0.2 - 0.05, 0; m = z - lambda + 0.9 m: 0.057, 0.114, -0.12.
    np.testing.assert_allclose(state["normal"], [0.057, 0.114, -0.12], rtol=1e-5)
    np.testing.assert_allclose(scales["normal"], [1.1383, 0.2526, 0.0], rtol=1e-5)


def test_dso_nas_drives_scales_to_zero_unless_their_gradient_outweighs_gamma():
    """A linear loss: scales fall to exactly 0 unless g < -gamma; they are pruned when it is due."""
    strategy = STRATEGIES["dso_nas"](SPACE, 10, 20, gamma=0.05, grace=0.2, prune_every=2)
    assert [bool(strategy.learns(jnp.int32(step))) for step in (39, 40)] == [False, True]
    slopes = jnp.asarray([-0.06, -0.04, 0.01])
    arch = strategy.init(KEY)
    assert all((scales == 1).all() for scales in arch.alphas.values())
    gradients = {cell: jnp.tile(slopes, (EDGES, 1)) for cell in CELLS}

    @jax.jit
    def advance(arch, state, step):
        live = strategy.live(arch, step, KEY)
        alphas, state = optim.update_where(
            strategy.alpha_optimizer, live, gradients, state, arch.alphas
        )
        return strategy.prune(arch._replace(alphas=alphas), gradients, step), state

    state = strategy.alpha_optimizer.init(arch.alphas)
    for step in range(40, 200):
        arch, state = advance(arch, state, jnp.int32(step))
        if step == 78:
            assert (arch.alphas["normal"][:, 2] == 0).all()
            assert arch.masks["normal"].all()  # not yet due
        if step == 79:
            assert not arch.masks["normal"][:, 2].any()
    for cell in CELLS:
        assert (arch.alphas[cell][:, 0] > 1).all()
        assert (arch.alphas[cell][:, 1:] == 0).all()
        np.testing.assert_array_equal(arch.masks[cell], np.tile([True, False, False], (EDGES, 1)))
    found = strategy.derive(arch, 2, KEY, None)
    assert found.normal[1] == tuple(("dil_conv_3x3", source) for source in range(3))
    empty = {**arch.alphas, "reduce": jnp.zeros(SPACE.shape)}
    with pytest.raises(UserError, match=r"scales of the reduce cell are all 0 .*gamma, now 0\.05"):
        strategy.derive(arch._replace(alphas=empty), 2, KEY, None)


def test_isolated_nodes_lose_their_edges():
    """Node 2 has no inputs, so its edge to node 3 goes, and with it the only input of node 3."""
    space = SearchSpace(("max_pool_3x3", "skip_connect"), nodes=3)
    names = [f"{s}{t}" for s, t in space.edges]
    assert names == "02 12 03 13 23 04 14 24 34".split()

    def kept(edges, space=space, names=names, candidate=1):
        mask = np.zeros(space.shape, bool)
        mask[[names.index(edge) for edge in edges.split()], candidate] = True
        left = np.asarray(pruning.connected(jnp.asarray(mask), space))
        assert not (left & ~mask).any()
        return " ".join(names[e] for e in np.flatnonzero(left.any(-1)))

    assert kept("23 34 14 24") == "14"
    assert kept("02 23 34") == "02 23 34"  # all nodes are outputs
    bench = [f"{s}{t}" for s, t in NASBENCH201.edges]
    assert bench == "01 02 12 03 13 23".split()
    assert kept("01 02 12 03", NASBENCH201, bench, 3) == "03"  # only node 3 is an output
    assert kept("01 12 23", NASBENCH201, bench, 3) == "01 12 23"
    assert kept("02 12 23", NASBENCH201, bench, 3) == "02 23"
    assert NASBENCH201.candidates[0] == "none"
    assert kept("01 13", NASBENCH201, bench, 0) == ""  # `none` connects nothing


# PC-DARTS


def test_pc_darts_ranks_by_alphas_times_betas():
    """Node 3 has edges 2, 3, 4: by alphas alone 2 and 3 win, by both 3 and 4."""
    strategy = STRATEGIES["pc_darts"](SPACE, 10, 5)
    arch = strategy.init(KEY)
    alphas = jnp.zeros((EDGES, CANDIDATES)).at[:, 0].set(jnp.asarray([0, 0, 3.0, 2.0, 1.0]))
    betas = jnp.asarray([0.5, -0.5, -4.0, 1.0, 2.0])
    for name, part in (("alphas", alphas), ("betas", betas)):
        assert {cell: leaf.shape for cell, leaf in arch.alphas[name].items()} == dict.fromkeys(
            CELLS, part.shape
        )
        arch.alphas[name] = dict.fromkeys(CELLS, part)
    mixture = strategy.mixture(arch, jnp.int32(0), KEY)["normal"]
    np.testing.assert_allclose(mixture.edge_weights[:2], jax.nn.softmax(betas[:2]), rtol=1e-6)
    np.testing.assert_allclose(mixture.edge_weights[2:], jax.nn.softmax(betas[2:]), rtol=1e-6)
    np.testing.assert_allclose(mixture.weights, jax.nn.softmax(alphas), rtol=1e-6)
    found = strategy.derive(arch, 2, KEY, None)
    assert [source for _, source in found.normal[1]] == [1, 2]
    alone = derive.strongest(arch.alphas["alphas"], arch.masks, SPACE, 2)
    assert [source for _, source in alone.normal[1]] == [0, 1]


def test_pc_darts_learns_after_its_grace():
    strategy = STRATEGIES["pc_darts"](SPACE, 50, 4)
    assert [bool(strategy.learns(jnp.int32(step))) for step in (59, 60)] == [False, True]
    assert strategy.partial_channels == 4


# P-DARTS


def stages_of(strategy, alphas):
    found = [strategy]
    while found[-1].next_stage is not None:
        arch = found[-1].init(KEY)._replace(alphas=alphas)
        found.append(found[-1].next_stage(arch))
    return found


def test_p_darts_carries_the_strongest_candidates_over():
    strategy = STRATEGIES["p_darts"](DARTS, 76, 4)
    alphas = random_alphas(DARTS)
    stages = stages_of(strategy, alphas)
    assert [stage.extra_cells for stage in stages] == [0, 6, 12]
    assert [stage.epochs for stage in stages] == [25, 25, 26]
    order = np.argsort(-np.asarray(alphas["reduce"]), -1)
    for stage, kept in zip(stages, (8, 5, 3), strict=True):
        arch = stage.init(jax.random.key(4))
        assert np.abs(arch.alphas["reduce"]).max() < 0.01  # reinitialized
        want = np.zeros((14, 8), bool)
        np.put_along_axis(want, order[:, :kept], True, -1)
        np.testing.assert_array_equal(arch.masks["reduce"], want)
    assert [bool(stages[1].learns(jnp.int32(step))) for step in (39, 40)] == [False, True]


def test_p_darts_drops_out_skips_at_a_falling_rate():
    stages = stages_of(STRATEGIES["p_darts"](DARTS, 75, 4), random_alphas(DARTS))

    def rate(stage, epoch):
        mixture = stage.mixture(stage.init(KEY), jnp.int32(4 * epoch), KEY)["normal"]
        return mixture.skip_dropout and float(mixture.skip_dropout.rate)

    assert rate(stages[0], 3) is None
    assert rate(stages[1], 0) == pytest.approx(0.4 * 24 / 25)
    assert rate(stages[1], 9) == pytest.approx(0.4 * 15 / 25)
    assert rate(stages[2], 10) == pytest.approx(0.7)
    assert rate(stages[2], 24) == pytest.approx(0.7 * np.exp(-0.2 * 14))


def test_p_darts_ends_with_few_skips_in_the_normal_cell():
    """Skips are strongest everywhere: the weakest chosen one is dropped, and edges chosen again."""
    strategy = stages_of(STRATEGIES["p_darts"](DARTS, 75, 4), random_alphas(DARTS))[-1]
    arch = strategy.init(KEY)
    skip = DARTS.candidates.index("skip_connect")
    strength = np.asarray([3, 11, 7, 1, 9, 13, 5, 2, 8, 12, 4, 10, 6, 0]) / 4
    alphas = jnp.zeros((14, 8)).at[:, skip].set(2 + strength).at[:, 5].set(1.0)
    arch = arch._replace(
        alphas=dict.fromkeys(CELLS, alphas),
        masks=dict.fromkeys(CELLS, jnp.zeros((14, 8), bool).at[:, [0, skip, 5]].set(True)),
    )
    found = strategy.derive(arch, 2, KEY, None)

    exponents = np.exp([np.zeros(14), 2 + strength, np.ones(14)])  # none, skip, sep_conv_5x5
    skips, convs = (exponents / exponents.sum(0))[1:]
    nodes = [[0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]]
    while True:
        best = np.maximum(skips, convs)
        kept = [e for edges in nodes for e in sorted(edges, key=lambda e: -best[e])[:2]]
        with_skip = [e for e in kept if skips[e] > convs[e]]
        if len(with_skip) <= 2:
            break
        skips[min(with_skip, key=lambda e: skips[e])] = 0
    want = [("skip_connect" if e in with_skip else "sep_conv_5x5", e) for e in sorted(kept)]
    got = [
        (op, DARTS.edges.index((source, target)))
        for target, node in enumerate(found.normal, 2)
        for op, source in node
    ]
    assert got == want
    assert len(with_skip) == 2
    assert derive.skips(found) == {"normal": 2, "reduce": 8}
    assert found.reduce == derive.strongest(arch.alphas, arch.masks, DARTS, 2).reduce


# ENAS

RANGES = enas.Ranges(temperature=5.0, source=1.1, op=1.1 / 2.5, conv_bias=False)


def enas_point(alphas, reward, images=200):
    """A loss whose accuracy on the alpha batch is the reward of the drawn candidates."""

    def loss(params, alphas, stats, batch, key):
        right = jnp.arange(images) < reward(alphas, key) * images
        logits = jnp.where(right[:, None], jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
        return jnp.float32(0.5), (stats, logits)

    batch = Batch(jnp.zeros((images, 1)), jnp.zeros(images, jnp.int32))
    return loss, bilevel.Point({}, alphas, {}, None, jnp.int32(0), batch, batch, KEY)


@pytest.mark.slow
def test_enas_controller_finds_the_best_arm():
    """A bandit whose reward is the share of skips from node 1: REINFORCE alone decides it."""
    space = SearchSpace(("dil_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=1)
    strategy = STRATEGIES["enas"](
        *(space, 4, 3),
        **{"inputs_per_node": 1, "tanh_constant": 5.0, "op_tanh_reduce": 1.0},
        baseline_decay=0.9,
    )
    arch = strategy.init(KEY)

    def reward(alphas, key):
        mixtures = strategy.mixture(arch._replace(alphas=alphas), 0, key)
        return sum(mixtures[cell].active[1, 2] / 2 for cell in CELLS)

    def update(carry, key):
        alphas, state = carry
        loss, point = enas_point(alphas, reward)
        _, gradients = strategy.updates.gradient(loss, point._replace(key=key))
        updates, state = strategy.alpha_optimizer.update(gradients, state, alphas)
        return (optax.apply_updates(alphas, updates), state), None

    @jax.jit
    def expected(alphas):
        return jax.vmap(lambda key: reward(alphas, key))(jax.random.split(KEY, 500)).mean()

    first = float(expected(arch.alphas))
    assert first == pytest.approx(1 / 6, abs=0.06)  # of 6 pairs
    start = arch.alphas, strategy.alpha_optimizer.init(arch.alphas)
    keys = jax.random.split(jax.random.key(1), 200)
    (alphas, _), _ = jax.jit(partial(jax.lax.scan, update))(start, keys)
    assert float(expected(alphas)) > 0.9
    assert float(alphas["baseline"]) == pytest.approx(float(expected(alphas)), abs=0.1)

    def skips(mixtures, images):
        assert images == 160
        return float(sum(mixtures[cell].weights[1, 2] for cell in CELLS))

    found = strategy.derive(arch._replace(alphas=alphas), 2, KEY, skips)
    assert found.normal == found.reduce == ((("skip_connect", 1),),)


@pytest.mark.slow
def test_enas_rewards_are_accuracies_and_entropies_above_the_baseline():
    """The gradient and the baseline of one update, from its two architectures by hand."""
    options = {"architectures": 2, "entropy_weight": 0.1, "baseline_decay": 0.9}
    strategy = STRATEGIES["enas"](SPACE, 4, 3, **options)
    arch = strategy.init(KEY)
    alphas = arch.alphas | {"baseline": jnp.float32(0.3)}

    def reward(alphas, key):
        mixtures = strategy.mixture(arch._replace(alphas=alphas), 0, key)
        return mixtures["normal"].active[:, 2].mean()

    loss, point = enas_point(alphas, reward)
    (value, (_, logits)), got = jax.jit(partial(strategy.updates.gradient, loss))(point)
    assert float(value) == 0.5
    assert logits.shape == (200, 2)
    ranges = enas.Ranges(1.0, 1.1, 1.1 / 2.5, False)
    drawn = partial(enas.draw, space=SPACE, inputs_per_node=2, ranges=ranges)

    @jax.jit
    def one(controller, key):
        log = jax.grad(lambda params: drawn(params, key).log_probability)(controller)
        return log, drawn(controller, key).entropy, reward(alphas, key)

    rewards, want = [], []
    for key in jax.random.split(KEY, 2):
        log, entropy, share = one(alphas["controller"], key)
        rewards.append(float(share) + 0.1 * float(entropy))
        want.append(jax.tree.map(lambda g, r=rewards[-1]: -(r - 0.3) * g, log))
    assert rewards[0] != rewards[1]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *want)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got["controller"], mean
    )
    # The moving average of two equal rewards R: 0.81 b + 0.19 R.
    updates, _ = strategy.alpha_optimizer.update(got, strategy.alpha_optimizer.init(alphas), alphas)
    average = np.mean(rewards)
    assert float(0.3 + updates["baseline"]) == pytest.approx(0.81 * 0.3 + 0.19 * average, rel=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_enas_decisions_by_hand(bias):
    """One node: the LSTM, the attention over its two sources, tanh, temperature and biases."""
    space = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=1)
    params = jax.tree.map(
        lambda a: 4 * a + 0.0, enas.init_controller(space, bias, jax.random.key(2))
    )
    params["op_bias"] = params["op_bias"] / 4 + jnp.asarray([0.0, 1.0, -2.0])
    drawn = enas.draw(
        params, KEY, space=space, inputs_per_node=1, ranges=RANGES._replace(conv_bias=bias)
    )
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def lstm(x, c, h):
        i, f, o, g = np.split(np.concatenate([x, h]) @ p["lstm"], 4)
        c = sigmoid(i) * np.tanh(g) + sigmoid(f) * c
        return c, sigmoid(o) * np.tanh(c)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    c, h = np.zeros((2, 64))
    log_probability = entropy = 0.0
    for cell in CELLS:
        nodes = []
        for _ in range(2):
            c, h = lstm(p["begin"], c, h)
            nodes.append(h @ p["node"])
        c, h = lstm(p["begin"], c, h)
        scores = np.tanh(np.stack(nodes) + h @ p["query"]) @ p["score"]
        of_sources = softmax(1.1 * np.tanh(scores / 5))
        c, h = lstm(np.zeros(64), c, h)  # the embedding of an input node
        logits = 0.44 * np.tanh((h @ p["op"] + p["op_bias"]) / 5)
        if bias and cell == "normal":
            logits += [0.25, -0.25, -0.25]
        of_ops = softmax(logits)
        chosen, expected = drawn.pairs[cell]
        np.testing.assert_allclose(expected, of_sources[:, None] * of_ops, rtol=1e-4)
        [(source, op)] = np.argwhere(chosen)
        log_probability += np.log(of_sources[source] * of_ops[op])
        entropy -= sum(np.sum(each * np.log(each)) for each in (of_sources, of_ops))
        c, h = lstm(p["op_embedding"][op], c, h)
    assert float(drawn.log_probability) == pytest.approx(log_probability, rel=1e-4)
    assert float(drawn.entropy) == pytest.approx(entropy, rel=1e-4)


def test_enas_log_probabilities_are_those_of_its_draws():
    """An operation on each edge, as in NAS-Bench-201: how often each of 4 architectures comes."""
    space = SearchSpace(("none", "skip_connect"), 2, ((0, 1), (1, 2)), "nasbench201")
    params = jax.tree.map(lambda a: 8 * a, enas.init_controller(space, False, KEY))
    ranges = enas.Ranges(1.0, 5.0, 5.0, False)
    one = partial(enas.draw, params, space=space, inputs_per_node=None, ranges=ranges)
    drawn = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    chosen = np.asarray(drawn.pairs["normal"][0])
    assert (chosen.sum(-1) == 1).all()
    code = chosen[:, 0, 1] * 2 + chosen[:, 1, 1]
    logs = np.asarray(drawn.log_probability)
    for i in range(4):
        assert np.ptp(logs[code == i]) < 1e-4
        assert np.exp(logs[code == i][0]) == pytest.approx((code == i).mean(), abs=0.03)
    assert float(-logs.mean()) == pytest.approx(float(drawn.entropy.mean()), abs=0.05)


def test_enas_spreads_its_updates_over_the_epoch_and_never_draws_none():
    strategy = STRATEGIES["enas"](DARTS, 4, 50, updates_per_epoch=30)
    learns = np.asarray(jax.vmap(strategy.learns)(jnp.arange(100)))
    assert learns[:50].sum() == learns[50:].sum() == 30
    assert not (~learns[1:] & ~learns[:-1]).any()  # 2 steps in 5 rest, never two in a row
    every = STRATEGIES["enas"](DARTS, 4, 20, updates_per_epoch=30)
    assert np.asarray(jax.vmap(every.learns)(jnp.arange(40))).all()
    mixtures = jax.jit(jax.vmap(partial(strategy.mixture, strategy.init(KEY), 0)))(
        jax.random.split(KEY, 200)
    )
    for cell in CELLS:
        active = np.asarray(mixtures[cell].active)
        assert not active[:, :, DARTS.candidates.index("none")].any()
        assert active.any(0).sum() > 50
        for target in DARTS.intermediate:
            count = active[:, DARTS.incoming(target)].sum((1, 2))
            assert set(count.tolist()) <= {1, 2}


# Distributions


@pytest.mark.parametrize("name", ["snas", "gdas", "edas", "parsec"])
def test_a_sampling_methods_distribution_is_the_softmax_of_its_alphas(name):
    strategy = STRATEGIES[name](SPACE, 10, 5)
    arch = strategy.init(KEY)._replace(alphas=random_alphas())
    mixtures = strategy.mixture(arch, jnp.int32(3), KEY)
    found = strategy.distribution(arch, mixtures)
    for cell in CELLS:
        want = jax.nn.softmax(arch.alphas[cell])
        np.testing.assert_allclose(found[cell].weights, want, rtol=1e-6)
        assert found[cell].active.all()
        assert np.abs(mixtures[cell].weights - want).max() > 0.1


def test_what_is_not_normalised_or_has_no_alphas_has_no_distribution():
    without = {n for n in STRATEGIES if STRATEGIES[n](ASAP, 10, 5).distribution is None}
    assert without == {"nap", "dso_nas", "enas", "random", "evolution"}


# Gradual pruning


def kept_by_equation_13(epochs, power, start, total, final):
    t = np.arange(1, epochs + 1)
    t0 = round(start * epochs)
    share = np.clip((t - t0) / (epochs - t0), 0, 1)
    return np.round(total * (1 - (final + (0 - final) * (1 - share) ** power))).astype(int)


@pytest.mark.parametrize("name", ["magnitude", "accum_grad", "nap"])
@pytest.mark.parametrize("power", [1, 3])
def test_equation_13_prunes_the_exact_number(name, power):
    epochs, steps, total = 50, 2, len(ASAP.edges) * 7
    strategy = STRATEGIES[name](ASAP, epochs, steps, power=power, start=0.4)
    arch = strategy.init(KEY)
    prune = jax.jit(strategy.prune)
    counts = []
    for step in range(epochs * steps):
        alphas = random_alphas(ASAP)
        arch = prune(arch._replace(alphas=alphas), alphas, jnp.int32(step))
        if step % steps == 0:
            counts.append(int(arch.masks["normal"].sum()))
    expected = kept_by_equation_13(epochs, power, 0.4, total, 1 - 1 / 7)
    if name == "nap":
        np.testing.assert_array_equal(counts, expected)
        assert (arch.masks["normal"].sum(-1) != 1).any()
    else:  # never an edge's last
        assert (arch.masks["normal"].sum(-1) >= 1).all()
        np.testing.assert_array_equal(counts, expected)
        assert bool(strategy.finished(arch))
    assert counts[19] == total
    assert counts[-1] == len(ASAP.edges)


def test_magnitude_ranks_by_the_weights_and_not_by_the_alphas():
    """Shifting all alphas of an edge changes neither the network nor the choice."""
    strategy = STRATEGIES["magnitude"](SPACE, 10, 1, start=0.0)
    arch = strategy.init(KEY)
    alphas = random_alphas()
    moved = {c: a + 5.0 * jnp.arange(EDGES)[:, None] for c, a in alphas.items()}
    for step in range(0, 10, 3):
        kept, again = (
            strategy.prune(arch._replace(alphas=each), None, jnp.int32(step)).masks
            for each in (alphas, moved)
        )
        jax.tree.map(np.testing.assert_array_equal, kept, again)
        weights = np.asarray(jax.nn.softmax(alphas["normal"]))
        count = int(kept["normal"].sum())
        last = weights == weights.max(-1, keepdims=True)  # the best of an edge stays
        order = np.sort(np.where(last, np.inf, weights).ravel())
        np.testing.assert_array_equal(kept["normal"], last | (weights >= order[-count]))


def test_pruning_starts_at_epoch_20_whatever_the_length_where_the_paper_says_so():
    for name in ("magnitude", "accum_grad"):
        config = presets.get_config(name)
        assert config.search.strategy.start_epoch == 20
        assert presets.get_config(f"digits,{name}").search.strategy.start_epoch is None
        options = config.search.strategy.to_dict()
        del options["name"]
        for epochs in (50, 70):
            strategy = STRATEGIES[name](ASAP, epochs, 1, **options)
            arch, alphas = strategy.init(KEY), random_alphas(ASAP)
            arch = arch._replace(alphas=alphas)
            for step, cuts in ((18, False), (19, False), (20, True)):
                masks = strategy.prune(arch, alphas, jnp.int32(step)).masks
                assert bool((~masks["normal"]).any()) == cuts, (name, epochs, step)


def test_accumulated_gradients_decide_whatever_the_alphas_say():
    strategy = STRATEGIES["accum_grad"](SPACE, 10, 1, start=0.0)
    arch = strategy.init(KEY)
    gradients = {c: jnp.tile(jnp.asarray([0.1, -3.0, 1.0]), (EDGES, 1)) for c in CELLS}
    for step in range(10):
        alphas = {c: jnp.tile(jnp.asarray([9.0, -9.0, 0.0]), (EDGES, 1)) for c in CELLS}
        arch = strategy.prune(arch._replace(alphas=alphas), gradients, jnp.int32(step))
    for cell in CELLS:
        np.testing.assert_array_equal(arch.masks[cell], np.tile([False, True, False], (EDGES, 1)))
        np.testing.assert_allclose(arch.extra[cell][:, 1], 30.0, rtol=1e-5)


def test_keep_best_protects_each_edge():
    scores = jnp.asarray([[5.0, 4.0, 3.0], [0.1, 0.2, 0.05]])
    mask = jnp.ones((2, 3), bool)
    kept = pruning.keep_best(mask, scores, 3)
    np.testing.assert_array_equal(kept, [[True, True, False], [False, True, False]])
    np.testing.assert_array_equal(pruning.keep_best(mask, scores, 0).sum(-1), [1, 1])
    kept = pruning.keep_best_of_cell(mask, scores, 3)
    np.testing.assert_array_equal(kept, [[True] * 3, [False] * 3])
    tied = pruning.keep_best(mask, jnp.zeros((2, 3)), 3)
    np.testing.assert_array_equal(tied, [[True, True, False], [True, False, False]])


@pytest.mark.parametrize("relaxation", ["identity", "sigmoid"])
def test_naps_nodes_differ_in_their_inputs(relaxation):
    strategy = STRATEGIES["nap"](ASAP, 10, 1, relaxation=relaxation)
    arch = strategy.init(KEY)
    first = strategy.mixture(arch, jnp.int32(0), KEY)["normal"].weights
    np.testing.assert_allclose(first, 1 / 7 if relaxation == "identity" else 0.5, rtol=1e-6)
    alphas = random_alphas(ASAP)
    arch = strategy.prune(arch._replace(alphas=alphas), alphas, jnp.int32(9))
    weights = strategy.mixture(arch, jnp.int32(9), KEY)["normal"].weights
    assert (weights[~arch.masks["normal"]] == 0).all()
    assert weights.sum(-1).max() > 1.0  # not normalized per edge
    found = strategy.derive(arch, 2, KEY, None)
    sizes = [len(node) for node in found.normal + found.reduce]
    assert sum(sizes) == 2 * len(ASAP.edges)
    assert len(set(sizes)) > 2
    mixture = one_hot_mixture(found, ASAP)["normal"]
    np.testing.assert_array_equal(mixture.active, arch.masks["normal"])


# Evolution


def test_evolution_removes_the_oldest_even_if_it_is_the_best():
    """Large tournaments find the best living one: 10 wins once, then it has died of age."""
    parents = []

    def mutation(parent):
        parents.append(parent)
        return -len(parents)

    history = evolution.evolve(
        [10, 0, 1], lambda x: x, mutation, np.random.default_rng(0), sample=60, cycles=8
    )
    assert history == [(x, x) for x in (10, 0, 1, -1, -2, -3, -4, -5)]
    assert parents == [10, 1, 1, -1, -2]  # of (10 0 1), (0 1 -1), (1 -1 -2), (-1 -2 -3), ...


def test_evolution_draws_its_tournaments_uniformly_with_replacement():
    """The best of 2 out of 4, ranks 0 to 3: rank r wins with ((r + 1)^2 - r^2) / 16."""
    wins = np.zeros(4)
    rng = np.random.default_rng(0)

    def mutation(parent):
        wins[parent] += 1
        return parent

    for _ in range(4000):
        evolution.evolve([2, 0, 3, 1], lambda x: x, mutation, rng, sample=2, cycles=5)
    np.testing.assert_allclose(wins / 4000, [1 / 16, 3 / 16, 5 / 16, 7 / 16], atol=0.03)


def differing(masks, other):
    """[(cell type, edges that differ)] of the cell types that differ."""
    edges = {c: np.flatnonzero((masks[c] != other[c]).any(-1)).tolist() for c in masks}
    return [(c, found) for c, found in edges.items() if found]


@pytest.mark.parametrize("inputs", [2, None])
@pytest.mark.parametrize("space", [SPACE, DARTS, NASBENCH201])
def test_a_mutation_changes_one_operation_or_one_source(space, inputs):
    rng = np.random.default_rng(0)
    kinds, masks = set(), random.draw(space, inputs, KEY, 1)[0]
    for _ in range(200):
        child = evolution.mutate(rng, masks, space)
        [(cell, edges)] = differing(masks, child)
        for target in space.intermediate:
            rows = space.incoming(target)
            assert child[cell][rows].sum() == masks[cell][rows].sum()
        assert (child[cell].sum(-1) <= 1).all()
        assert not any(each[:, ~random.drawable(space)].any() for each in child.values())
        if len(edges) == 2:  # a source
            assert space.edges[edges[0]][1] == space.edges[edges[1]][1]
            before, after = (each[cell][edges].any(0) for each in (masks, child))
            np.testing.assert_array_equal(before, after)
        kinds.add((cell, len(edges)))
        masks = child
    lengths = {1} if inputs is None else {1, 2}
    assert kinds == {(cell, length) for cell in space.cell_types for length in lengths}


def test_evolution_finds_the_best_cell_of_a_known_fitness():
    """The number of inputs that a cell has in common with a target, 8 at most."""
    strategy = STRATEGIES["evolution"](SPACE, 9, 3, population=20, sample=5, cycles=400, images=7)
    target = random.draw(SPACE, 2, jax.random.key(9), 1)[0]
    asked = []

    def evaluate(mixtures, images=None):
        agreed = sum(float((mixtures[c].active & target[c]).sum()) for c in CELLS)
        asked.append((images, agreed))
        return agreed

    arch = strategy.init(KEY)
    found = strategy.derive(arch, 2, KEY, evaluate)
    assert found == derive.all_living(target, SPACE)
    few = [agreed for images, agreed in asked if images == 7]
    assert max(few[:10]) < max(few) == 8
    assert [images for images, _ in asked[-10:]] == [None] * 10
    assert len(few) == len(asked) - 10 <= 400  # an architecture that is met again is not evaluated
    first, asked[:] = list(asked), []
    assert strategy.derive(arch, 2, KEY, evaluate) == found
    assert asked == first
    asked.clear()
    strategy.derive(arch, 2, jax.random.key(1), evaluate)
    assert asked != first


# Theorem 2


def test_pac_schedule_at_hand_computed_values():
    """N = 7, delta = 0.1, eta L = 1."""
    temperature = schedules.pac_temperature(7, 1.0, 0.1)
    for t, want in ((1, 6.5966), (100, 1.0826), (11_700, 0.1286)):
        formula = np.sqrt(8 / t * np.log(np.pi**2 * 7 * t**2 / 0.3))
        assert formula == pytest.approx(want, abs=1e-4)
        assert float(temperature(jnp.int32(t))) == pytest.approx(formula, rel=1e-5)
    assert float(schedules.pac_log_threshold(7)(200)) == pytest.approx(-np.log(7) - 200)


def test_asap_pac_compares_logarithms():
    """At t = 200 theta is 0 in float32, but two candidates can still be told apart."""
    strategy = STRATEGIES["asap_pac"](SPACE, 1000, 1, gradient_bound=1.0, grace=0.0)
    arch, step = strategy.init(KEY), jnp.int32(199)
    temperature = float(strategy.readings(step)["temperature"])
    limit = temperature * (200 + np.log(3))
    logs = jnp.tile(jnp.asarray([0.0, -1.02 * limit, -0.98 * limit]), (EDGES, 1))
    gradients = dict.fromkeys(CELLS, jnp.zeros((EDGES, 3)))
    pruned = strategy.prune(arch._replace(alphas=dict.fromkeys(CELLS, logs)), gradients, step)
    np.testing.assert_array_equal(pruned.masks["normal"], np.tile([True, False, True], (EDGES, 1)))
    assert not bool(STRATEGIES["asap_pac"](SPACE, 10, 5, grace=0.2).learns(jnp.int32(9)))
    assert bool(STRATEGIES["asap_pac"](SPACE, 10, 5, grace=0.2).learns(jnp.int32(10)))


def test_asap_pac_counts_the_gradients_that_its_bound_cuts():
    """Only of live alphas: 2 of 3 candidates exceed L in the first step, 1 of 2 in the next."""
    strategy = STRATEGIES["asap_pac"](SPACE, 1000, 1, gradient_bound=0.01, grace=0.0)
    arch = strategy.init(KEY)
    assert float(strategy.measured(arch)["clipped_share"]) == 0
    gradients = dict.fromkeys(CELLS, jnp.tile(jnp.asarray([0.02, -0.011, 0.009]), (EDGES, 1)))
    arch = strategy.prune(arch, gradients, jnp.int32(0))
    assert float(strategy.measured(arch)["clipped_share"]) == pytest.approx(2 / 3)
    dead = {cell: mask.at[:, 0].set(False) for cell, mask in arch.masks.items()}
    arch = strategy.prune(arch._replace(masks=dead), gradients, jnp.int32(1))
    assert float(strategy.measured(arch)["clipped_share"]) == pytest.approx(3 / 5)


@pytest.mark.parametrize(("arms", "gap", "delta"), [(2, 0.8, 0.1), (7, 0.8, 0.1), (7, 1.2, 0.3)])
def test_the_survivor_is_the_best_arm_as_often_as_the_theorem_promises(arms, gap, delta):
    kept = theory.simulate(KEY, theory.pac_rule(arms, delta), arms, gap, 1000, 4000)
    assert kept.undecided == 0
    assert kept.wrong <= delta


def test_a_colder_temperature_breaks_the_bound():
    rule = theory.pac_rule(7, 0.1, scale=0.1)
    assert theory.simulate(KEY, rule, 7, 0.4, 1000, 4000).wrong > 0.2


def test_arms_without_a_difference_are_not_decided_by_the_theorem():
    still = theory.simulate(KEY, theory.pac_rule(3, 0.1), 3, 0.0, 200, 500)
    assert still.undecided > 0.9
    assert still.steps == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("darts", {"order": "third"}, "order has to be one of first, second, exact"),
        ("darts_plus", {"skips": 0}, "one of them above 0"),
        ("darts_plus", {"stable_epochs": 3}, "fewer than two of the candidates .* have weights"),
        ("beta_darts", {"weight": -1.0}, "weight has to be 0 or more"),
        ("drnas", {"keep": (2,)}, "keep has one entry less"),
        ("drnas", {"partial_channels": (2, 1), "keep": (4,)}, "keep has to fall"),
        ("drnas", {"partial_channels": (0,)}, "have to be at least 1"),
        ("drnas", {"grace": 1.0}, "grace has to lie"),
        ("drnas", {"kl": -1.0}, "kl has to be 0 or more"),
        ("evolution", {"sample": 0}, "sample has to be at least 1"),
        ("evolution", {"cycles": 99}, "cycles counts the first population of 100"),
        ("snas", {"final_temperature": 2.0}, "final_temperature"),
        ("gdas", {"final_temperature": 0.0}, "final_temperature"),
        ("magnitude", {"power": 2}, "power has to be 1 or 3"),
        ("accum_grad", {"start": 1.0}, "start has to lie"),
        ("nap", {"relaxation": "softmax"}, "relaxation has to be"),
        ("nap", {"sparsity": 1.0}, "sparsity has to lie"),
        ("asap_pac", {"delta": 0.0}, "delta has to lie"),
        ("dso_nas", {"gamma": 0.0}, "gamma and learning_rate have to be above 0"),
        ("dso_nas", {"momentum": 1.0}, "momentum has to lie"),
        ("dso_nas", {"grace": 1.0}, "grace has to lie"),
        ("dso_nas", {"prune_every": 0}, "prune_every has to be at least 1"),
        ("enas", {"architectures": 0}, "architectures has to be at least 1"),
        ("enas", {"inputs_per_node": 0}, "inputs_per_node has to be at least 1"),
        ("enas", {"temperature": 0.0}, "temperature has to be above 0"),
        ("enas", {"baseline_decay": 1.0}, "baseline_decay has to lie"),
        ("enas", {"entropy_weight": -1.0}, "entropy_weight has to be 0 or more"),
        ("parsec", {"samples": 0}, "samples has to be at least 1"),
        ("parsec", {"likelihood_power": 0.0}, "likelihood_power has to be above 0"),
        ("pc_darts", {"partial_channels": 0}, "partial_channels has to be"),
        ("pc_darts", {"grace": 1.0}, "grace has to lie"),
        ("p_darts", {"keep": (2,)}, "keep has one entry less"),
        ("p_darts", {"keep": (2, 3)}, "keep has to fall"),
        ("p_darts", {"keep": (2, 2), "skip_dropout": (0, 0, 1.0)}, "skip_dropout has to lie"),
        ("p_darts", {"keep": (2, 2), "grace": 1.0}, "grace has to lie"),
        ("p_darts", {"keep": (2, 2), "max_skips": -1}, "have to be 0 or more"),
        ("asap_pac", {"gradient_bound": 0.0}, "gradient_bound has to be"),
        ("magnitude", {"start_epoch": 4}, "start_epoch is 4, but .* last of the 4 epochs"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        STRATEGIES[name](SPACE, 4, 3, **options)
