"""Mixture weights, pruning and derivation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asap_jax.methods import derive, pruning
from asap_jax.methods.relaxation import masked_softmax, normalised_entropy
from asap_jax.networks import spaces
from asap_jax.networks.genotypes import GENOTYPES
from asap_jax.networks.mixture import Mixture, one_hot_mixture

RNG = np.random.default_rng(0)
ALPHAS = jnp.asarray(RNG.normal(size=(14, 7)), jnp.float32)
MASK = jnp.asarray(RNG.uniform(size=(14, 7)) < 0.5).at[:, 2].set(True)


def test_weights_are_a_distribution_over_the_living():
    weights = masked_softmax(ALPHAS, MASK, 0.7)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (weights[~MASK] == 0).all()
    assert (weights[MASK] > 0).all()
    only = np.asarray(ALPHAS, np.float64) / 0.7
    row = np.exp(only[3][np.asarray(MASK[3])])
    np.testing.assert_allclose(weights[3][MASK[3]], row / row.sum(), rtol=1e-5)


def test_temperature_goes_from_uniform_to_one_hot():
    cold = masked_softmax(ALPHAS, MASK, 1e-6)
    winners = jnp.where(MASK, ALPHAS, -jnp.inf).argmax(-1)
    np.testing.assert_array_equal(cold, jax.nn.one_hot(winners, 7))
    hot = masked_softmax(ALPHAS, jnp.ones_like(MASK), 1e6)
    np.testing.assert_allclose(hot, 1 / 7, rtol=1e-5)
    assert float(normalised_entropy(hot)) == pytest.approx(1, rel=1e-6)
    assert float(normalised_entropy(cold)) == 0


def test_gradient_is_equation_4_with_the_factor_one_over_t():
    temperature, slopes = 0.3, jnp.asarray(RNG.normal(size=(14, 7)), jnp.float32)
    got = jax.grad(lambda a: jnp.sum(masked_softmax(a, MASK, temperature) * slopes))(ALPHAS)
    weights = masked_softmax(ALPHAS, MASK, temperature)
    mean = (weights * slopes).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, weights * (slopes - mean) / temperature, atol=1e-6)
    assert (got[~MASK] == 0).all()


def test_pruning_holds_every_edge_against_the_same_threshold():
    weights = masked_softmax(ALPHAS, MASK)
    kept = pruning.prune_below(MASK, weights, 0.15)
    heaviest = jax.nn.one_hot(weights.argmax(-1), 7, dtype=bool)
    np.testing.assert_array_equal(kept, MASK & ((weights >= 0.15) | heaviest))
    # The threshold does not grow as an edge thins out: one of two is also held against 0.15.
    two = jnp.zeros((1, 7), bool).at[0, :2].set(True)
    near = masked_softmax(jnp.asarray([[0.0, 1.5] + [0.0] * 5]), two)
    assert near[0, 0] == pytest.approx(0.18, abs=0.01)
    assert pruning.prune_below(two, near, 0.15).sum() == 2
    assert pruning.prune_below(two, near, 0.2).sum() == 1


def test_pruning_never_empties_an_edge_and_masks_only_shrink():
    mask = jnp.ones((14, 7), bool)
    for seed, threshold in enumerate((0.1, 0.2, 0.9, 2.0)):
        alphas = jax.random.normal(jax.random.key(seed), (14, 7))
        kept = pruning.prune_below(mask, masked_softmax(alphas, mask), threshold)
        assert not (kept & ~mask).any()
        assert (kept.sum(-1) >= 1).all()
        mask = kept
    assert (mask.sum(-1) == 1).all()
    assert pruning.decided({"normal": mask, "reduce": mask})
    tied = pruning.prune_below(jnp.ones((1, 3), bool), jnp.full((1, 3), 1 / 3), 0.5)
    np.testing.assert_array_equal(tied, [[True, False, False]])


def slow_darts_rule(weights, space):
    """quark0/darts' genotype(), from its description: two edges by their best named candidate."""
    none = space.candidates.index("none")
    nodes, start = [], 0
    for i in range(4):
        rows = weights[start : start + i + 2]
        named = np.delete(rows, none, 1)
        best = sorted(range(i + 2), key=lambda j: -named[j].max())[:2]
        names = [name for name in space.candidates if name != "none"]
        nodes.append(tuple((names[named[j].argmax()], j) for j in sorted(best)))
        start += i + 2
    return tuple(nodes)


def test_derivation_is_darts_rule():
    for seed in range(5):
        alphas = np.random.default_rng(seed).normal(size=(14, 8)).astype(np.float32)
        cells = {"normal": jnp.asarray(alphas), "reduce": jnp.asarray(alphas[::-1])}
        masks = {cell: jnp.ones((14, 8), bool) for cell in cells}
        found = derive.strongest(cells, masks, spaces.DARTS, 2)
        assert found.normal == slow_darts_rule(np.asarray(jax.nn.softmax(alphas)), spaces.DARTS)
        assert found.normal_concat == (2, 3, 4, 5)


def test_derivation_keeps_all_edges_or_two_and_breaks_ties_low():
    zeros = {cell: jnp.zeros((14, 7)) for cell in spaces.ASAP.cell_types}
    masks = {cell: jnp.ones((14, 7), bool).at[:, 0].set(False) for cell in spaces.ASAP.cell_types}
    found = derive.strongest(zeros, masks, spaces.ASAP, 2)
    assert found.normal == ((("sep_conv_5x5", 0), ("sep_conv_5x5", 1)),) * 4
    every = derive.strongest(zeros, masks, spaces.ASAP, None)
    assert [len(node) for node in every.reduce] == [2, 3, 4, 5]


def test_a_pruned_alpha_still_counts_in_the_ranking():
    """Edges are ranked by the softmax over all N alphas, pruned ones with their frozen value."""
    # Edge 2 has the largest alpha, but its pruned candidates came close: 0.144 of the softmax,
    # against 0.216 for edge 3 and 0.199 for edge 4.
    alphas = jnp.zeros((14, 7)).at[2].set(0.99).at[2, 0].set(1.0).at[3, 0].set(0.5)
    alphas = alphas.at[4, 0].set(0.4)
    mask = jnp.zeros((14, 7), bool).at[:, 0].set(True)
    cells = dict.fromkeys(spaces.ASAP.cell_types, alphas)
    masks = dict.fromkeys(spaces.ASAP.cell_types, mask)
    found = derive.strongest(cells, masks, spaces.ASAP, 2)
    assert [source for _, source in found.normal[1]] == [1, 2]


def test_one_hot_mixture_computes_just_the_genotype():
    mixtures = one_hot_mixture(GENOTYPES["ASAP"], spaces.ASAP)
    for cell in spaces.ASAP.cell_types:
        weights = np.asarray(mixtures[cell].weights)
        assert weights.sum() == 8
        np.testing.assert_array_equal(mixtures[cell].active, weights == 1)
    edge = spaces.ASAP.edges.index((1, 3))
    assert mixtures["normal"].weights[edge, spaces.ASAP.candidates.index("sep_conv_3x3")] == 1


def test_edge_weights_scale_whole_edges():
    mixture = Mixture(jnp.ones((2, 3)), jnp.ones((2, 3), bool), jnp.asarray([0.25, 0.75]))
    np.testing.assert_array_equal(mixture.scaled, [[0.25] * 3, [0.75] * 3])
