"""The expected cost of cells."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asap_jax import STRATEGIES, Context, SearchSpace, Supernet
from asap_jax.configs import presets
from asap_jax.host.errors import UserError
from asap_jax.networks.mixture import Dropout, Mixture
from asap_jax.networks.spaces import DARTS, NASBENCH201
from asap_jax.runs import inputs
from asap_jax.searching import costs, stages
from asap_jax.searching.search_step import Optimizers, init_state, make_search_step, step_keys
from asap_jax.training import optim
from asap_jax.training.feed import Batch

SPACE = SearchSpace(("none", "sep_conv_3x3", "skip_connect"), nodes=2)
NETWORK = Supernet(SPACE, 3, channels=4, cells=3)


@pytest.mark.parametrize(
    ("name", "stride", "want"),
    [
        # By hand, C = 16 on 32 x 32: parameters, multiply-adds, values read and written.
        ("none", 1, (0, 0, 0)),
        ("skip_connect", 1, (0, 0, 2 * 16 * 1024)),
        ("max_pool_3x3", 1, (0, 9 * 16 * 1024, 2 * 16 * 1024)),
        ("avg_pool_3x3", 2, (0, 9 * 16 * 256, 5 * 16 * 256)),
        ("sep_conv_3x3", 1, (800, 800 * 1024, 8 * 16 * 1024 + 800)),
        ("sep_conv_5x5", 2, (1312, 1312 * 256, 11 * 16 * 256 + 1312)),
        ("dil_conv_3x3", 1, (400, 400 * 1024, 4 * 16 * 1024 + 400)),
    ],
)
def test_measures_are_those_of_snas_code(name, stride, want):
    assert costs.measures(name, 16, stride, (32, 32)) == want


def one_hot(op):
    weights = jnp.zeros(DARTS.shape).at[:, DARTS.candidates.index(op)].set(1.0)
    return dict.fromkeys(DARTS.cell_types, Mixture(weights, weights > 0))


def test_the_expected_cost_of_one_operation_everywhere():
    """sep_conv_3x3: six normal cells of 14 edges; two reductions with 8 edges of stride 2."""
    expected = costs.expected_log_cost(Supernet(DARTS, 10, 16, 8), (32, 32, 3))

    def log_of(channels, side, stride):
        found = costs.measures("sep_conv_3x3", channels, stride, (side, side))
        return np.mean(np.log(found))

    normal = [(16, 32)] * 2 + [(32, 16)] * 2 + [(64, 8)] * 2
    want = np.mean([14 * log_of(c, s, 1) for c, s in normal])
    reduce = (32, 32), (64, 16)
    want += np.mean([8 * log_of(c, s, 2) + 6 * log_of(c, s // 2, 1) for c, s in reduce])
    assert float(expected(one_hot("sep_conv_3x3"))) == pytest.approx(want, rel=1e-5)
    assert float(expected(one_hot("none"))) == 0
    ranked = "none skip_connect max_pool_3x3 dil_conv_3x3 sep_conv_3x3 sep_conv_5x5"
    found = [float(expected(one_hot(op))) for op in ranked.split()]
    assert found == sorted(found)


def test_a_nasbench201_networks_cells_are_counted_stage_by_stage():
    found = list(costs._cells(Supernet(NASBENCH201, 10, 16, 6), (32, 32, 3)))
    assert found == [("normal", c, (s, s)) for c, s in ((16, 32), (32, 16), (64, 8)) for _ in "ab"]


@pytest.mark.parametrize(
    "name",
    ["snas", *(pytest.param(name, marks=pytest.mark.slow) for name in ("darts", "gdas", "parsec"))],
)
def test_a_step_adds_the_costs_gradient_to_the_alphas_own(name):
    """Plain gradient descent: steps with and without the cost differ by the cost's gradient."""
    strategy = STRATEGIES[name](SPACE, 4, 3)
    optimizers = Optimizers(optim.sgd(optax.constant_schedule(0.05)), optax.sgd(1.0))
    state = init_state(NETWORK, strategy, optimizers, jax.random.key(0), (8, 8, 1))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    batch = Batch(images, jnp.asarray(rng.integers(0, 3, 4)))
    expected = costs.expected_log_cost(NETWORK, (8, 8, 1))
    (plain, _), (weighed, metrics) = (
        jax.jit(make_search_step(NETWORK, strategy, optimizers, constraint=each))(
            state, batch, batch
        )
        for each in (None, costs.Constraint(0.5, expected))
    )
    key = step_keys(state.key, 0).alpha

    def cost(alphas):
        return expected(strategy.mixture(state.arch._replace(alphas=alphas), jnp.int32(0), key))

    want = jax.grad(cost)(state.arch.alphas)
    for cell in SPACE.cell_types:
        moved = plain.arch.alphas[cell] - weighed.arch.alphas[cell]
        np.testing.assert_allclose(moved, 0.5 * want[cell], rtol=1e-3, atol=1e-5)
        assert np.abs(want[cell]).max() > 0.01
    assert np.isfinite(metrics["cost"])


@pytest.mark.slow
def test_a_step_drops_paths_by_a_key_apart_from_the_samples():
    """SNAS' single pass: the loss is that of the same sample with these samples dropped."""
    strategy = STRATEGIES["snas"](SPACE, 4, 3)
    optimizers = Optimizers(optim.sgd(optax.constant_schedule(0.05)), optax.sgd(1.0))
    state = init_state(NETWORK, strategy, optimizers, jax.random.key(0), (8, 8, 1))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    batch = Batch(images, jnp.asarray(rng.integers(0, 3, 4)))
    step = jax.jit(make_search_step(NETWORK, strategy, optimizers, drop_path=0.3))
    _, metrics = step(state, batch, batch)
    key = step_keys(state.key, 0).alpha

    @jax.jit
    def loss(rate):
        mixtures = {
            cell: mix._replace(drop_path=Dropout(jax.random.fold_in(key, 0x0D), rate))
            for cell, mix in strategy.mixture(state.arch, jnp.int32(0), key).items()
        }
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits, _ = NETWORK.apply(
            variables, images, mixtures, Context(train=True), mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    assert float(metrics["train_loss"]) == pytest.approx(float(loss(0.3)), rel=1e-4)
    assert abs(float(loss(0.0)) - float(loss(0.3))) > 1e-3


def test_the_cost_alone_makes_cheap_cells():
    expected = costs.expected_log_cost(Supernet(DARTS, 10, 16, 8), (32, 32, 3))
    alphas = jnp.zeros(DARTS.shape)

    def cost(alphas):
        weights = jax.nn.softmax(alphas)
        return expected(dict.fromkeys(DARTS.cell_types, Mixture(weights, weights > 0)))

    descend = jax.jit(lambda alphas: alphas - 0.5 * jax.grad(cost)(alphas))
    for _ in range(200):
        alphas = descend(alphas)
    assert (alphas.argmax(-1) == DARTS.candidates.index("none")).all()


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("random", "cost_weight", 0.01, "random has no alphas"),
        ("nap", "early_stop", True, "nap has no distribution"),
        ("p_darts", "drop_path", 0.3, "the strategy p_darts has dropout of its own"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(name, key, value, message):
    config = presets.get_config(f"tiny,{name}")
    config.search[key] = value
    with pytest.raises(UserError, match=message):
        stages.check(config.search, inputs.load_data(config))
