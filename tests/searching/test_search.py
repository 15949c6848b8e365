"""The search step and the strategies: one contract for all, and what is specific to each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asap_jax import STRATEGIES, Context, EvalNetwork, SearchSpace, Supernet
from asap_jax.configs import presets
from asap_jax.host import loop
from asap_jax.host.checkpoint import Checkpoints
from asap_jax.host.errors import UserError
from asap_jax.methods import derive
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.models import live_parameters
from asap_jax.searching.passes import SplitState, of_programs, program
from asap_jax.searching.search_step import (
    Optimizers,
    SearchStep,
    init_state,
    make_search_step,
    step_keys,
)
from asap_jax.training import optim
from asap_jax.training.feed import Batch

SPACE = SearchSpace(("dil_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
CELLS = ("normal", "reduce")
NETWORK = Supernet(SPACE, 3, channels=4, cells=3)
OPTIMIZERS = Optimizers(
    optim.sgd(optax.constant_schedule(0.05)),
    optim.adam(0.05, weight_decay=1e-3),
    optim.virtual_sgd(optax.constant_schedule(0.05)),
)
EPOCHS, STEPS = 4, 3
IMAGE = (8, 8, 1)
# ASAP: T = 1.04, 0.832, 0.666, 0.532 over four epochs of three steps, one of them grace.
OPTIONS = {
    "asap": {"decay": 0.8, "threshold": 0.95},
    "asap_pac": {"gradient_bound": 0.3},
    "drnas": {"partial_channels": (2, 1), "keep": (2,), "kl": 0.01},
    "magnitude": {"start": 0.25, "power": 3},
    "pc_darts": {"partial_channels": 2, "grace": 0.25},
    "pr_darts": {"keep": (2,), "grow": (1,), "lengths": (1, 1)},
    "p_darts": {"extra_cells": (0, 0), "keep": (2,), "skip_dropout": (0.3, 0.4)},
    "random": {"samples": 3},
    "evolution": {"population": 4, "sample": 2, "cycles": 9, "best": 2},
    "parsec": {"samples": 2},
    "enas": {"architectures": 2, "samples": 3},
    "dso_nas": {"gamma": 0.5, "grace": 0.25, "prune_every": 1},
}
# One of several methods with similar steps represents the others in the default run.
SLOW = (
    "magnitude",
    "accum_grad",
    "pc_darts",
    "nap",
    "asap_pac",
    "darts_plus",
    "beta_darts",
    "gdas",
    "edas",
    "evolution",
    "drnas",
    "drnas stage 2",
    "dso_nas",
    "parsec",
    "enas",
    "p_darts",
    "p_darts stage 2",
    "pr_darts",
    "darts second",
    "darts exact",
)
KEEP_ALL_EDGES = ("snas", "nap")  # regardless of the requested number of inputs
RNG = np.random.default_rng(0)
BATCHES = [
    Batch(
        jnp.asarray(RNG.normal(size=(8, *IMAGE)), jnp.float32), jnp.asarray(RNG.integers(0, 3, 8))
    )
    for _ in range(8)
]


def make(name):
    name, _, variant = name.partition(" ")
    options = {"order": variant} if name == "darts" and variant else OPTIONS.get(name, {})
    strategy = STRATEGIES[name](SPACE, EPOCHS, STEPS, **options)
    if variant == "stage 2":
        strategy = strategy.next_stage(strategy.init(jax.random.key(5)))
    return strategy


def alphas_first(strategy):
    return strategy.updates.order[0] == "alpha"


def network_of(strategy):
    return NETWORK.clone(partial_channels=strategy.partial_channels)


def start(strategy, seed=0):
    return init_state(network_of(strategy), strategy, OPTIMIZERS, jax.random.key(seed), IMAGE)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in (*STRATEGIES, "p_darts stage 2", "drnas stage 2", "darts second", "darts exact")
    ],
)
def history(request):
    """(strategy, jitted step, states before and after each of 12 steps, metrics)."""
    strategy = make(request.param)
    step = jax.jit(make_search_step(network_of(strategy), strategy, OPTIMIZERS))
    states, metrics = [start(strategy)], []
    for i in range(EPOCHS * STEPS):
        state, measured = step(states[-1], BATCHES[i % 8], BATCHES[(i + 3) % 8])
        states.append(state)
        metrics.append(jax.device_get(measured))
    return strategy, step, states, metrics


def test_one_compilation_serves_the_whole_search(history):
    _, step, states, _ = history
    assert step._cache_size() == 1
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), s) for s in (states[0], states[-1])
    ]
    assert shapes[0] == shapes[1]


def test_masks_only_shrink_and_no_edge_runs_empty(history):
    strategy, _, states, _ = history
    for before, after in itertools.pairwise(states):
        for cell in CELLS:
            grown = after.arch.masks[cell] & ~before.arch.masks[cell]
            assert not grown.any()
            assert strategy.edges_may_empty or (after.arch.masks[cell].sum(-1) >= 1).all()


def test_inactive_candidates_are_not_touched(history):
    strategy, _, states, _ = history
    touched = 0
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        key = step_keys(before.key, i).omega
        seen = after.arch if alphas_first(strategy) else before.arch  # as the omega step sees them
        mixtures = (strategy.trained or strategy.mixture)(seen, before.step, key)
        for mixture in mixtures.values():
            assert (mixture.weights[~mixture.active] == 0).all()
        live = live_parameters(network_of(strategy), before.params, mixtures)
        jax.tree.map(
            lambda on, old, new: np.testing.assert_array_equal(
                jnp.where(on, 0, new), jnp.where(on, 0, old)
            ),
            live,
            before.params,
            after.params,
        )
        edges = [tree["cell0"]["stride1"] for tree in (live, before.params, after.params)]
        touched += all(
            bool((old != new)[jnp.broadcast_to(on, old.shape)].any() or not on.any())
            for on, old, new in zip(*map(jax.tree.leaves, edges), strict=True)
        )
    assert touched == EPOCHS * STEPS


def test_pruned_alphas_are_frozen(history):
    strategy, _, states, _ = history
    dead_alphas = 0
    for before, after in itertools.pairwise(states):
        key = step_keys(before.key, before.step).alpha
        live = strategy.live(before.arch, before.step, key)
        dead = jax.tree.map(jnp.logical_not, live)
        for mask, old, new in zip(
            *map(jax.tree.leaves, (dead, before.arch.alphas, after.arch.alphas)), strict=True
        ):
            np.testing.assert_array_equal(new[mask], old[mask])
            dead_alphas += int(mask.sum())
    assert dead_alphas > 0 or all(m.all() for m in states[-1].arch.masks.values())


def test_the_entropy_is_that_of_the_methods_own_distribution(history):
    """A sample's means nothing: for a one-hot sample it is 0, whatever the alphas."""
    strategy, _, states, metrics = history
    if strategy.distribution is None:
        assert not any(key.startswith("entropy") for key in metrics[-1])
        return
    before, after = states[-2:]
    key = step_keys(before.key, before.step).alpha
    mixtures = strategy.mixture(after.arch, before.step, key)
    found = strategy.distribution(after.arch, mixtures)
    for cell in CELLS:
        weights = np.asarray(found[cell].weights, np.float64)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        entropy = -np.sum(weights * np.log(np.where(weights > 0, weights, 1)), -1) / np.log(3)
        assert metrics[-1][f"entropy_{cell}"] == pytest.approx(entropy.mean(), abs=1e-5)


@pytest.mark.parametrize("where", ["omega half", "alpha half", "alphas", "weights"])
def test_nothing_is_decided_by_numbers_that_are_none(history, where):
    """A NaN in a step prunes nothing, and ends the search with an error."""
    strategy, step, states, _ = history
    before = states[8]
    train, val = BATCHES[0], BATCHES[3]
    nan = {"images": train.images * jnp.nan}
    if where == "omega half":
        train = train._replace(**nan)
    elif where != "weights" and (
        not strategy.updates.has_alphas or (where == "alpha half" and strategy.updates.joint)
    ):
        pytest.skip("it makes no use of them")
    elif where == "alpha half":
        val = val._replace(**nan)
    elif where == "alphas":
        alphas = jax.tree.map(lambda leaf: leaf * jnp.nan, before.arch.alphas)
        before = before.replace(arch=before.arch._replace(alphas=alphas))
    else:
        before = before.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, before.params))
    after, metrics = step(before, train, val)
    if not (where == "omega half" and alphas_first(strategy)):  # which updated its alphas before
        jax.tree.map(np.testing.assert_array_equal, after.arch.masks, before.arch.masks)
    with pytest.raises(UserError, match=r"in epoch 1 of the search: lower config\.search\.omega"):
        loop._check_metrics(jax.device_get(metrics), "search", loop.Progress())
    with pytest.raises(UserError, match="a weight or a statistic became infinite or nan"):
        loop._check_state(after, "search", loop.Progress())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [derive.strongest, derive.of_weights, derive.most_probable])
def test_no_cells_follow_from_numbers_that_are_none(rule, bad):
    masks = {cell: np.ones(SPACE.shape, bool) for cell in CELLS}
    alphas = {cell: np.zeros(SPACE.shape) for cell in CELLS}
    alphas["reduce"][-1, -1] = bad
    rest = () if rule is derive.most_probable else (masks,)
    tail = () if rule is derive.most_probable else (2,)
    with pytest.raises(ValueError, match="not finite: the search has diverged"):
        rule(alphas, *rest, SPACE, *tail)


def test_a_step_says_whether_its_alphas_learned(history):
    """To distinguish a NaN `val_loss` from that of a step in which they rest."""
    strategy, _, states, metrics = history
    for state, measured in zip(states, metrics, strict=False):
        expected = strategy.updates.has_val_loss and bool(strategy.learns(state.step))
        assert bool(measured["alphas_learned"]) == expected
        assert bool(measured["alphas_learned"]) == np.isfinite(measured["val_loss"])
        loop._check_metrics(measured, "search", loop.Progress())


def test_a_search_that_is_saved_and_restored_goes_on_bit_for_bit(history, tmp_path):
    strategy, step, states, metrics = history
    options = {"keep": 2, "every_steps": 0, "every_seconds": 0}
    saved = Checkpoints(tmp_path / "search-0", {"data": "x"}, **options)
    saved.save(6, states[6], {"epoch": 2})
    saved.close()
    again = Checkpoints(tmp_path / "search-0", {"data": "x"}, **options)
    state, progress = again.latest(start(strategy, seed=1))
    again.close()
    assert progress == {"epoch": 2}
    for i in range(6, EPOCHS * STEPS):
        state, measured = step(state, BATCHES[i % 8], BATCHES[(i + 3) % 8])
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(measured), metrics[i])
    for part in ("params", "batch_stats", "arch", "omega_opt", "alpha_opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(states[-1], part))


def test_derivation_gives_a_network(history, request):
    strategy, _, states, _ = history
    name = request.node.callspec.params["history"]
    seen = []

    def evaluate(mixtures, images=None):
        seen.append(mixtures)
        return float(len(seen))

    for inputs in (2, None):
        genotype = strategy.derive(states[-1].arch, inputs, jax.random.key(0), evaluate)
        sizes = [len(node) for node in genotype.normal + genotype.reduce]
        if name == "nap":  # any number of inputs, as many candidates as edges in total
            assert sum(sizes[:2]) == sum(sizes[2:]) == len(SPACE.edges)
        elif name == "enas":  # pairs that were drawn twice count once
            assert all(1 <= size <= 2 for size in sizes)
        elif name == "dso_nas":  # whatever has a scale left
            assert all(sizes[node] <= len(SPACE.incoming(2 + node % 2)) * 3 for node in range(4))
            assert 0 < sum(sizes) <= sum(m.sum() for m in states[-1].arch.masks.values())
        else:
            every = inputs is None or name in KEEP_ALL_EDGES
            assert sizes == ([2, 3] * 2 if every else [2, 2] * 2)
        network = EvalNetwork(genotype, 3, channels=4, cells=3)
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))


def test_passes_as_programs_are_the_step_and_change_nothing_once_it_is_over():
    strategy = make("asap")
    state = start(strategy).replace(step=jnp.int32(STEPS))  # alphas learn
    passes = SearchStep(NETWORK, strategy, OPTIMIZERS).passes(learns=True)
    assert [each.name for each in passes] == ["omega", "alpha", "advance"]
    programs = [(each, jax.jit(program(each))) for each in passes]
    for each, run in programs:
        changed, _ = run(*SplitState.of(state, each), np.bool_(True), *BATCHES[:2])
        jax.tree.map(np.testing.assert_array_equal, changed, SplitState.of(state, each).changing)
    got, metrics = of_programs(programs)(state, np.bool_(False), *BATCHES[:2])
    want, expected = jax.jit(make_search_step(NETWORK, strategy, OPTIMIZERS))(state, *BATCHES[:2])
    assert int(got.step) == STEPS + 1
    assert metrics.keys() == expected.keys()
    for part in ("params", "batch_stats", "omega_opt"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5),
            getattr(got, part),
            getattr(want, part),
        )
    jax.tree.map(np.testing.assert_array_equal, got.arch.masks, want.arch.masks)


def test_asap_is_algorithm_1():
    strategy = make("asap")
    step = jax.jit(make_search_step(NETWORK, strategy, OPTIMIZERS))
    state = start(strategy)
    assert all((alphas == 0).all() for alphas in state.arch.alphas.values())
    temperatures = [1.3 * 0.8 ** (i // STEPS + 1) for i in range(EPOCHS * STEPS)]
    pruned = 0
    for i, temperature in enumerate(temperatures):
        before = state
        state, metrics = step(state, BATCHES[i % 8], BATCHES[(i + 3) % 8])
        assert metrics["temperature"] == pytest.approx(temperature, rel=1e-5)
        if temperature >= 1:  # grace: omega only
            jax.tree.map(np.testing.assert_array_equal, state.arch, before.arch)
            jax.tree.map(np.testing.assert_array_equal, state.alpha_opt, before.alpha_opt)
            assert np.isnan(metrics["val_loss"])
            continue
        for cell in CELLS:
            mask, alphas = before.arch.masks[cell], state.arch.alphas[cell]
            undecided = mask.sum(-1) > 1
            assert (alphas != before.arch.alphas[cell])[undecided].any()
            # Line 7 at the new alphas and this step's T; theta = 0.95 / 3 on every edge.
            weights = np.asarray(masked_softmax(alphas, mask, temperature))
            expected = np.asarray(mask) & (weights >= 0.95 / 3)
            expected |= np.arange(3) == weights.argmax(-1)[:, None]
            np.testing.assert_array_equal(state.arch.masks[cell], expected)
            pruned += int(mask.sum() - expected.sum())
        left = sum(int(mask.sum()) for mask in state.arch.masks.values())
        assert metrics["candidates_left"] == left
        assert bool(metrics["finished"]) == (left == 2 * len(SPACE.edges))
    assert pruned > 5


def test_the_omega_step_sees_the_alphas_of_before_and_the_alpha_step_the_omega_of_after():
    """ASAP's order; DARTS' is the reverse. By hand from the same loss, at one step below tau."""
    space = SearchSpace(("dil_conv_3x3", "skip_connect"), nodes=1)
    network = Supernet(space, 3, channels=4, cells=3)
    for name in ("asap", "darts"):
        strategy = STRATEGIES[name](space, 10, STEPS)
        state = init_state(network, strategy, OPTIMIZERS, jax.random.key(0), IMAGE)
        state = state.replace(step=jnp.int32(5 * STEPS))
        key = step_keys(state.key, state.step).omega

        def loss(params, alphas, stats, batch, state=state, strategy=strategy, key=key):
            arch = state.arch._replace(alphas=alphas)
            logits, new = network.apply(
                {"params": params, "batch_stats": stats},
                batch.images,
                strategy.mixture(arch, state.step, key),
                Context(train=True),
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return losses.mean(), new["batch_stats"]

        @jax.jit
        def omega(params, alphas, stats, state=state, loss=loss):
            g, stats = jax.grad(loss, has_aux=True)(params, alphas, stats, BATCHES[0])
            updates, _ = OPTIMIZERS.omega.update(g, state.omega_opt, params)
            return optax.apply_updates(params, updates), stats

        @jax.jit
        def alpha(params, alphas, stats, state=state, loss=loss):
            g, stats = jax.grad(loss, 1, has_aux=True)(params, alphas, stats, BATCHES[1])
            updates, _ = OPTIMIZERS.alpha.update(g, state.alpha_opt, alphas)
            return optax.apply_updates(alphas, updates), stats

        params, alphas, stats = state.params, state.arch.alphas, state.batch_stats
        if name == "darts":
            alphas, stats = alpha(params, alphas, stats)
            params, stats = omega(params, alphas, stats)
        else:
            params, stats = omega(params, alphas, stats)
            alphas, stats = alpha(params, alphas, stats)
        got, _ = jax.jit(make_search_step(network, strategy, OPTIMIZERS))(state, *BATCHES[:2])
        for mine, want in (
            (got.params, params),
            (got.arch.alphas, alphas),
            (got.batch_stats, stats),
        ):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), mine, want
            )


def test_a_step_adds_the_regularizers_gradient_to_the_alphas_own():
    """Plain gradient descent; the term differs by step and may not be seen in any reported loss."""
    space = SearchSpace(("max_pool_3x3", "skip_connect"), nodes=1)
    network = Supernet(space, 3, channels=4, cells=3)
    optimizers = OPTIMIZERS._replace(alpha=optax.sgd(1.0))
    plain = STRATEGIES["darts"](space, 10, STEPS)

    def term(arch, step):
        return step * sum(jnp.sum(alphas**3) for alphas in arch.alphas.values())

    state = init_state(network, plain, optimizers, jax.random.key(0), IMAGE)
    alphas = {cell: 1.0 + jnp.arange(4.0).reshape(2, 2) for cell in CELLS}
    state = state.replace(step=jnp.int32(5), arch=state.arch._replace(alphas=alphas))
    (without, told), (added, metrics) = (
        jax.jit(make_search_step(network, strategy, optimizers))(state, *BATCHES[:2])
        for strategy in (plain, plain._replace(regularizer=term))
    )
    for cell in CELLS:
        moved = without.arch.alphas[cell] - added.arch.alphas[cell]
        np.testing.assert_allclose(moved, 5 * 3 * alphas[cell] ** 2, rtol=1e-5)
    assert metrics["val_loss"] == pytest.approx(float(told["val_loss"]), rel=1e-5)
    assert metrics["regularizer"] == pytest.approx(
        5 * sum(float(jnp.sum(a**3)) for a in added.arch.alphas.values()), rel=1e-5
    )
    assert "regularizer" not in told


def test_darts_starts_near_zero_and_prunes_nothing():
    state = start(make("darts"))
    for cell in CELLS:
        assert 0 < np.abs(state.arch.alphas[cell]).max() < 5e-3
        assert state.arch.masks[cell].all()
    assert not bool(make("darts").finished(state.arch))


def test_random_samples_uniformly_two_inputs_a_node():
    strategy = make("random")
    arch = strategy.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 600)
    active = jax.vmap(lambda key: strategy.mixture(arch, jnp.int32(0), key)["normal"].active)(keys)
    assert (active.sum(-1) <= 1).all()
    for target in (2, 3):
        rows = np.asarray(SPACE.incoming(target))
        assert (active[:, rows].sum((1, 2)) == 2).all()
        share = np.asarray(active[:, rows].mean(0))
        np.testing.assert_allclose(share, 2 / len(rows) / 3, atol=0.08)


def test_random_ranks_in_rounds_and_the_best_on_the_whole_half():
    """The few images see the skips of the normal cell, the whole half those of both cells."""
    options = {"samples": 30, "images": 64, "best": 5, "rounds": 2}
    strategy = STRATEGIES["random"](SPACE, EPOCHS, STEPS, **options)
    arch = strategy.init(jax.random.key(0))
    skip = SPACE.candidates.index("skip_connect")
    asked = []

    def skips(mixtures, images=None):
        count = {cell: float(mix.weights[:, skip].sum()) for cell, mix in mixtures.items()}
        score = count["normal"] if images else count["normal"] + count["reduce"]
        asked.append((images, score))
        return score

    best = strategy.derive(arch, 2, jax.random.key(3), skips)
    assert [images for images, _ in asked] == [64] * 60 + [None] * 10
    few = [score for images, score in asked[:60]]
    assert min(few) < max(few)
    whole = [score for images, score in asked[60:]]
    assert skips(one_hot_mixture(best, SPACE)) == max(whole) > min(whole)
    # The finalists of each round are the five with the most skips in the normal cell.
    for i in (0, 1):
        top = sorted(few[30 * i : 30 * (i + 1)], reverse=True)[:5]
        assert sum(whole[5 * i : 5 * (i + 1)]) >= sum(top)


def test_randoms_rounds_are_the_published_ones_at_the_papers_size():
    options = presets.get_config("random").search.strategy
    assert (options.samples, options.images, options.best, options.rounds) == (1000, 640, 10, 3)
    assert presets.get_config("digits,random").search.strategy.samples == 100
