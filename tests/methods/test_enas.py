"""ENAS: its controller, rewards and updates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_space import CELLS, KEY, SPACE

from asap_jax import STRATEGIES, SearchSpace
from asap_jax.methods import bilevel, enas
from asap_jax.networks.spaces import DARTS
from asap_jax.training.feed import Batch

RANGES = enas.Ranges(temperature=5.0, source=1.1, op=1.1 / 2.5, conv_bias=False)


def enas_point(alphas, reward, images=200):
    """A loss whose accuracy on the alpha batch is the reward of the drawn candidates."""

    def loss(params, alphas, stats, batch, key):
        right = jnp.arange(images) < reward(alphas, key) * images
        logits = jnp.where(right[:, None], jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
        return jnp.float32(0.5), (stats, logits)

    batch = Batch(jnp.zeros((images, 1)), jnp.zeros(images, jnp.int32))
    return loss, bilevel.Point({}, alphas, {}, None, jnp.int32(0), batch, batch, KEY)


@pytest.mark.slow
def test_enas_controller_finds_the_best_arm():
    """A bandit whose reward is the share of skips from node 1: REINFORCE alone decides it."""
    space = SearchSpace(("dil_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=1)
    strategy = STRATEGIES["enas"](
        *(space, 4, 3),
        **{"inputs_per_node": 1, "tanh_constant": 5.0, "op_tanh_reduce": 1.0},
        baseline_decay=0.9,
    )
    arch = strategy.init(KEY)

    def reward(alphas, key):
        mixtures = strategy.mixture(arch._replace(alphas=alphas), 0, key)
        return sum(mixtures[cell].active[1, 2] / 2 for cell in CELLS)

    def update(carry, key):
        alphas, state = carry
        loss, point = enas_point(alphas, reward)
        _, gradients = strategy.updates.gradient(loss, point._replace(key=key))
        updates, state = strategy.alpha_optimizer.update(gradients, state, alphas)
        return (optax.apply_updates(alphas, updates), state), None

    @jax.jit
    def expected(alphas):
        return jax.vmap(lambda key: reward(alphas, key))(jax.random.split(KEY, 500)).mean()

    first = float(expected(arch.alphas))
    assert first == pytest.approx(1 / 6, abs=0.06)  # of 6 pairs
    start = arch.alphas, strategy.alpha_optimizer.init(arch.alphas)
    keys = jax.random.split(jax.random.key(1), 200)
    (alphas, _), _ = jax.jit(partial(jax.lax.scan, update))(start, keys)
    assert float(expected(alphas)) > 0.9
    assert float(alphas["baseline"]) == pytest.approx(float(expected(alphas)), abs=0.1)

    def skips(mixtures, images):
        assert images == 160
        return float(sum(mixtures[cell].weights[1, 2] for cell in CELLS))

    found = strategy.derive(arch._replace(alphas=alphas), 2, KEY, skips)
    assert found.normal == found.reduce == ((("skip_connect", 1),),)


@pytest.mark.slow
def test_enas_rewards_are_accuracies_and_entropies_above_the_baseline():
    """The gradient and the baseline of one update, from its two architectures by hand."""
    options = {"architectures": 2, "entropy_weight": 0.1, "baseline_decay": 0.9}
    strategy = STRATEGIES["enas"](SPACE, 4, 3, **options)
    arch = strategy.init(KEY)
    alphas = arch.alphas | {"baseline": jnp.float32(0.3)}

    def reward(alphas, key):
        mixtures = strategy.mixture(arch._replace(alphas=alphas), 0, key)
        return mixtures["normal"].active[:, 2].mean()

    loss, point = enas_point(alphas, reward)
    (value, (_, logits)), got = jax.jit(partial(strategy.updates.gradient, loss))(point)
    assert float(value) == 0.5
    assert logits.shape == (200, 2)
    ranges = enas.Ranges(1.0, 1.1, 1.1 / 2.5, False)
    drawn = partial(enas.draw, space=SPACE, inputs_per_node=2, ranges=ranges)

    @jax.jit
    def one(controller, key):
        log = jax.grad(lambda params: drawn(params, key).log_probability)(controller)
        return log, drawn(controller, key).entropy, reward(alphas, key)

    rewards, want = [], []
    for key in jax.random.split(KEY, 2):
        log, entropy, share = one(alphas["controller"], key)
        rewards.append(float(share) + 0.1 * float(entropy))
        want.append(jax.tree.map(lambda g, r=rewards[-1]: -(r - 0.3) * g, log))
    assert rewards[0] != rewards[1]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *want)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got["controller"], mean
    )
    # The moving average of two equal rewards R: 0.81 b + 0.19 R.
    updates, _ = strategy.alpha_optimizer.update(got, strategy.alpha_optimizer.init(alphas), alphas)
    average = np.mean(rewards)
    assert float(0.3 + updates["baseline"]) == pytest.approx(0.81 * 0.3 + 0.19 * average, rel=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_enas_decisions_by_hand(bias):
    """One node: the LSTM, the attention over its two sources, tanh, temperature and biases."""
    space = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=1)
    params = jax.tree.map(
        lambda a: 4 * a + 0.0, enas.init_controller(space, bias, jax.random.key(2))
    )
    params["op_bias"] = params["op_bias"] / 4 + jnp.asarray([0.0, 1.0, -2.0])
    drawn = enas.draw(
        params, KEY, space=space, inputs_per_node=1, ranges=RANGES._replace(conv_bias=bias)
    )
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def lstm(x, c, h):
        i, f, o, g = np.split(np.concatenate([x, h]) @ p["lstm"], 4)
        c = sigmoid(i) * np.tanh(g) + sigmoid(f) * c
        return c, sigmoid(o) * np.tanh(c)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    c, h = np.zeros((2, 64))
    log_probability = entropy = 0.0
    for cell in CELLS:
        nodes = []
        for _ in range(2):
            c, h = lstm(p["begin"], c, h)
            nodes.append(h @ p["node"])
        c, h = lstm(p["begin"], c, h)
        scores = np.tanh(np.stack(nodes) + h @ p["query"]) @ p["score"]
        of_sources = softmax(1.1 * np.tanh(scores / 5))
        c, h = lstm(np.zeros(64), c, h)  # the embedding of an input node
        logits = 0.44 * np.tanh((h @ p["op"] + p["op_bias"]) / 5)
        if bias and cell == "normal":
            logits += [0.25, -0.25, -0.25]
        of_ops = softmax(logits)
        chosen, expected = drawn.pairs[cell]
        np.testing.assert_allclose(expected, of_sources[:, None] * of_ops, rtol=1e-4)
        [(source, op)] = np.argwhere(chosen)
        log_probability += np.log(of_sources[source] * of_ops[op])
        entropy -= sum(np.sum(each * np.log(each)) for each in (of_sources, of_ops))
        c, h = lstm(p["op_embedding"][op], c, h)
    assert float(drawn.log_probability) == pytest.approx(log_probability, rel=1e-4)
    assert float(drawn.entropy) == pytest.approx(entropy, rel=1e-4)


def test_enas_log_probabilities_are_those_of_its_draws():
    """An operation on each edge, as in NAS-Bench-201: how often each of 4 architectures comes."""
    space = SearchSpace(("none", "skip_connect"), 2, ((0, 1), (1, 2)), "nasbench201")
    params = jax.tree.map(lambda a: 8 * a, enas.init_controller(space, False, KEY))
    ranges = enas.Ranges(1.0, 5.0, 5.0, False)
    one = partial(enas.draw, params, space=space, inputs_per_node=None, ranges=ranges)
    drawn = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    chosen = np.asarray(drawn.pairs["normal"][0])
    assert (chosen.sum(-1) == 1).all()
    code = chosen[:, 0, 1] * 2 + chosen[:, 1, 1]
    logs = np.asarray(drawn.log_probability)
    for i in range(4):
        assert np.ptp(logs[code == i]) < 1e-4
        assert np.exp(logs[code == i][0]) == pytest.approx((code == i).mean(), abs=0.03)
    assert float(-logs.mean()) == pytest.approx(float(drawn.entropy.mean()), abs=0.05)


def test_enas_spreads_its_updates_over_the_epoch_and_never_draws_none():
    strategy = STRATEGIES["enas"](DARTS, 4, 50, updates_per_epoch=30)
    learns = np.asarray(jax.vmap(strategy.learns)(jnp.arange(100)))
    assert learns[:50].sum() == learns[50:].sum() == 30
    assert not (~learns[1:] & ~learns[:-1]).any()  # 2 steps in 5 rest, never two in a row
    every = STRATEGIES["enas"](DARTS, 4, 20, updates_per_epoch=30)
    assert np.asarray(jax.vmap(every.learns)(jnp.arange(40))).all()
    mixtures = jax.jit(jax.vmap(partial(strategy.mixture, strategy.init(KEY), 0)))(
        jax.random.split(KEY, 200)
    )
    for cell in CELLS:
        active = np.asarray(mixtures[cell].active)
        assert not active[:, :, DARTS.candidates.index("none")].any()
        assert active.any(0).sum() > 50
        for target in DARTS.intermediate:
            count = active[:, DARTS.incoming(target)].sum((1, 2))
            assert set(count.tolist()) <= {1, 2}
