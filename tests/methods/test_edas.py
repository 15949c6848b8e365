"""EDAS: one relaxed edge a step."""

import jax
import jax.numpy as jnp
import numpy as np
from small_space import CANDIDATES, CELLS, EDGES, KEY, SPACE, random_alphas

from asap_jax import STRATEGIES
from asap_jax.configs import presets
from asap_jax.methods import derive
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.spaces import ASAP
from asap_jax.training import optim

RNG = np.random.default_rng(0)


def test_edas_relaxes_one_edge_and_moves_only_its_alphas():
    strategy = STRATEGIES["edas"](SPACE, 4, 3)
    arch = strategy.init(KEY)._replace(alphas=random_alphas(RNG))
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
    arch = strategy.init(KEY)._replace(alphas=random_alphas(RNG, ASAP))
    for rule, edges in (("all", 14), ("top2", 8)):
        found = strategy.derive(arch, derive.EDGES[rule], KEY, None)
        assert sum(len(node) for node in found.normal) == edges
    # Next to the relaxed edge, the supernet is the derived cell.
    every = one_hot_mixture(strategy.derive(arch, None, KEY, None), ASAP)
    mixtures = strategy.mixture(arch, jnp.int32(0), KEY)
    differ = [np.abs(mixtures[c].weights - every[c].weights).max(-1) > 1e-6 for c in CELLS]
    assert np.sum(differ) == 1
