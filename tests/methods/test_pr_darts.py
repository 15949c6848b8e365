"""PR-DARTS: its cycles, what is dropped and what grows; growing changes no function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax.configs import presets
from asap_jax.layers.ops import Context
from asap_jax.methods import pr_darts as module
from asap_jax.methods.base import Architecture, softmax_mixture
from asap_jax.methods.pr_darts import drop_and_grow, morph, pr_darts
from asap_jax.networks.models import Supernet
from asap_jax.networks.spaces import SearchSpace

SPACE = SearchSpace(
    ("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"), nodes=2
)
FIRST = np.array([True, True, False, True, False])  # nothing grows into these
CYCLES = {"keep": (4, 2), "grow": (2, 0), "lengths": (2, 1, 1)}


def start(seed=0):
    strategy = pr_darts(SPACE, 8, 3, **CYCLES)
    arch = strategy.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    alphas = {c: jnp.asarray(rng.normal(size=a.shape), a.dtype) for c, a in arch.alphas.items()}
    return strategy, arch._replace(alphas=alphas)


def test_cycles_are_as_long_as_the_authors():
    assert module._ends(100, (15, 15, *[10] * 7)) == [0, 15, 30, *range(40, 101, 10)]
    assert module._ends(6, (2, 1, 1)) == [0, 3, 4, 6]
    assert module._ends(3, (100, 1, 1)) == [0, 1, 2, 3]
    lengths, learning, strategy = [], [], pr_darts(SPACE, 100, 10)
    while True:
        lengths.append(strategy.epochs)
        learning.append(next(e for e in range(20) if strategy.learns(10 * e)))
        if strategy.next_stage is None:
            break
        strategy = strategy.next_stage(strategy.init(jax.random.key(0)))
    assert lengths == [15, 15, *[10] * 7]
    assert learning == [5, 5, *[3] * 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": (2,)}, "describe 9, 2 and 9 cycles"),
        ({"grow": (6, *[0] * 7)}, "grow has to lie in"),
        ({"lengths": (0, *[1] * 8)}, "positive lengths"),
        ({"grace": 1.0}, "grace has to lie in"),
    ],
)
def test_impossible_cycles_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pr_darts(SPACE, 100, 10, **options)
    with pytest.raises(ValueError, match="at least as many epochs"):
        pr_darts(SPACE, 8, 10)


def test_a_search_starts_with_what_nothing_grows_into():
    _, arch = start()
    assert all((np.asarray(mask) == FIRST).all() for mask in arch.masks.values())


def test_the_weakest_go_and_the_strong_grow():
    """An edge keeps its two strongest; each convolution among them grows its larger kernel."""
    _, arch = start()
    new, grown = drop_and_grow(jax.device_get(arch), SPACE, 4, 2, cycle=0)
    children = {1: 2, 3: 4}
    for cell, mask in new.masks.items():
        alphas = np.where(FIRST, np.asarray(arch.alphas[cell]), -np.inf)
        for edge, live in enumerate(np.asarray(mask)):
            stay = set(np.argsort(-alphas[edge])[:2].tolist())
            want = stay | {children[o] for o in stay & {1, 3}}
            assert set(np.flatnonzero(live).tolist()) == want
            told = {o: parent for (e, o), parent in grown[cell].items() if e == edge}
            assert told == {children[o]: o for o in stay & {1, 3}}
            assert set(np.flatnonzero(new.extra["dropped"][cell][edge])) == {0, 1, 3} - stay
    kept, none = drop_and_grow(jax.device_get(new), SPACE, 2, 0, cycle=1)
    assert all(not each for each in none.values())
    assert all((np.asarray(mask).sum(1) <= 2).all() for mask in kept.masks.values())


def test_what_was_dropped_does_not_come_back():
    _, arch = start()
    dropped = {cell: mask.at[:, 2].set(True) for cell, mask in arch.extra["dropped"].items()}
    arch = arch._replace(extra={**arch.extra, "dropped": dropped})
    new, _ = drop_and_grow(jax.device_get(arch), SPACE, 5, 2, cycle=0)
    assert not any(np.asarray(mask)[:, 2].any() for mask in new.masks.values())
    assert all(np.asarray(mask)[:, 4].all() for mask in new.masks.values() if mask[:, 3].all())


def test_the_stronger_parent_grows_more_often():
    """With room for one, in proportion to the parents' weights; other keys draw otherwise."""
    _, arch = start()
    row = jnp.log(jnp.asarray([0.1, 0.6, 1e-9, 0.3, 1e-9]))
    alphas = {cell: jnp.broadcast_to(row, mask.shape) for cell, mask in arch.masks.items()}
    counts = np.zeros(5, int)
    for seed in range(40):
        key = jax.random.key_data(jax.random.key(seed))
        held = arch._replace(alphas=alphas, extra={**arch.extra, "key": key})
        _, grown = drop_and_grow(jax.device_get(held), SPACE, 4, 1, cycle=0)
        for places in grown.values():
            for _, child in places:
                counts[child] += 1
    edges = 40 * 2 * len(SPACE.edges)
    assert counts.sum() == edges
    assert counts[2] / edges == pytest.approx(2 / 3, abs=4 * np.sqrt(2 / 9 / edges))


@pytest.mark.parametrize("train", [True, False])
def test_growing_leaves_the_function_as_it_was(train):
    """Of both cell types, both strides; also of what the norms of the children start with."""
    _, arch = start()
    network = Supernet(SPACE, 3, 4, 3)
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    mixtures = softmax_mixture(arch)
    variables = network.init(jax.random.key(2), images, mixtures)
    variables = jax.tree.map(
        lambda leaf: leaf * jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), variables
    )
    new, grown = drop_and_grow(jax.device_get(arch), SPACE, 5, 2, cycle=0)  # nothing is dropped
    assert sum(len(places) for places in grown.values()) == 2 * 2 * len(SPACE.edges)
    params, stats = morph(network, variables["params"], variables["batch_stats"], grown)

    @jax.jit
    def logits(params, stats, mixtures):
        context = Context(train=train)
        held = {"params": params, "batch_stats": stats}
        return network.apply(held, images, mixtures, context, mutable=["batch_stats"])[0]

    before = logits(variables["params"], variables["batch_stats"], mixtures)
    after = logits(params, stats, softmax_mixture(new))
    np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-5)
    without = logits(variables["params"], variables["batch_stats"], softmax_mixture(new))
    # The weights of the children mattered.
    assert np.abs(without - before).max() > 30 * np.abs(after - before).max()


def test_a_cycle_starts_with_the_alphas_of_before_or_new_ones():
    for reset in (False, True):
        strategy = pr_darts(SPACE, 8, 3, reset_alphas=reset, **CYCLES)
        _, arch = start()
        following = strategy.next_stage(arch)
        begun = following.init(jax.random.key(9))
        assert isinstance(begun, Architecture)
        largest = max(float(jnp.abs(a).max()) for a in begun.alphas.values())
        assert (largest < 0.01) == reset
        assert any(np.asarray(mask)[:, 2].any() for mask in begun.masks.values())


@pytest.mark.slow
def test_a_search_inherits_and_resumes(tmp_path):
    """Its weights pass from cycle to cycle, also when each cycle is run by another start."""
    config = tiny()
    presets.update(config.search, {"epochs": 4, "strategy": {"name": "pr_darts", **CYCLES}})
    config.search.candidates = ("skip_connect", "sep_conv_3x3", "sep_conv_5x5")
    whole = asap_jax.search(config)
    stopped = 0

    def stop(record):
        nonlocal stopped
        stopped += 1
        if stopped in (2, 3):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            asap_jax.search(config, workdir=tmp_path, on_epoch=stop)
    again = asap_jax.search(config, workdir=tmp_path, on_epoch=stop)
    assert again.genotype == whole.genotype
    assert again.search["gap"] == whole.search["gap"]
