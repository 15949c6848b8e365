"""P-DARTS: what its stages carry over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import CELLS, KEY, random_alphas

from asap_jax import STRATEGIES
from asap_jax.methods import derive
from asap_jax.networks.spaces import DARTS

RNG = np.random.default_rng(0)


def stages_of(strategy, alphas):
    found = [strategy]
    while found[-1].next_stage is not None:
        arch = found[-1].init(KEY)._replace(alphas=alphas)
        found.append(found[-1].next_stage(arch))
    return found


def test_p_darts_carries_the_strongest_candidates_over():
    strategy = STRATEGIES["p_darts"](DARTS, 76, 4)
    alphas = random_alphas(RNG, DARTS)
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
    stages = stages_of(STRATEGIES["p_darts"](DARTS, 75, 4), random_alphas(RNG, DARTS))

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
    strategy = stages_of(STRATEGIES["p_darts"](DARTS, 75, 4), random_alphas(RNG, DARTS))[-1]
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
