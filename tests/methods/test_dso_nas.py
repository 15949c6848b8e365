"""DSO-NAS: scales that reach zero, and isolated nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_space import CELLS, EDGES, KEY, SPACE

from asap_jax import STRATEGIES, SearchSpace
from asap_jax.host.errors import UserError
from asap_jax.methods import dso_nas, pruning
from asap_jax.networks.spaces import NASBENCH201
from asap_jax.training import optim


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
