"""DARTS+: when it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import KEY, SPACE, random_alphas

from asap_jax import STRATEGIES, SearchSpace
from asap_jax.methods import darts_plus, derive
from asap_jax.networks.spaces import DARTS, NASBENCH201

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("inputs", [2, 1, None])
@pytest.mark.parametrize("space", [SPACE, DARTS, NASBENCH201])
def test_darts_plus_counts_the_skips_that_would_be_derived(space, inputs):
    masks = {cell: np.ones(space.shape, bool) for cell in space.cell_types}
    count = jax.jit(lambda alphas: darts_plus.derived_skips(alphas, space, inputs))
    seen = set()
    for _ in range(60):
        alphas = random_alphas(RNG, space)
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
