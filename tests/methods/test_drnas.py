"""DrNAS: the Dirichlet distribution and its stages."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import CANDIDATES, CELLS, EDGES, KEY, SPACE, random_alphas

from asap_jax import STRATEGIES
from asap_jax.configs import presets
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.spaces import ASAP

RNG = np.random.default_rng(0)


def dirichlet_arch(strategy):
    """Concentrations below and above 1; the last candidate of the first edge is pruned."""
    alphas = {cell: 0.7 * a for cell, a in random_alphas(RNG).items()}
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
    alphas = random_alphas(RNG, ASAP)
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
