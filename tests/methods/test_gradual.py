"""Gradual pruning: by magnitude, by accumulated gradients, and NAP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import CELLS, EDGES, KEY, SPACE, random_alphas

from asap_jax import STRATEGIES
from asap_jax.configs import presets
from asap_jax.methods import pruning
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.spaces import ASAP

RNG = np.random.default_rng(0)


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
        alphas = random_alphas(RNG, ASAP)
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
    alphas = random_alphas(RNG)
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
            arch, alphas = strategy.init(KEY), random_alphas(RNG, ASAP)
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
    alphas = random_alphas(RNG, ASAP)
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
