"""PC-DARTS: edges with weights of their own, and its grace."""

import jax
import jax.numpy as jnp
import numpy as np
from small_space import CANDIDATES, CELLS, EDGES, KEY, SPACE

from asap_jax import STRATEGIES
from asap_jax.methods import derive


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
