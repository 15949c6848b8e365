"""Options of the training step: class weights, pieces of a batch, moving average, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asap_jax import Context, EvalNetwork, Genotype
from asap_jax.training.feed import Batch
from asap_jax.training.losses import cross_entropy
from asap_jax.training.train_step import init_state, make_train_step

CELL = ((("dil_conv_3x3", 0), ("skip_connect", 1)),)
NETWORK = EvalNetwork(Genotype(CELL, (2,), CELL, (2,)), 3, channels=4, cells=3)
RNG = np.random.default_rng(0)
BATCH = Batch(jnp.asarray(RNG.normal(size=(8, 8, 8, 1)), jnp.float32), jnp.arange(8) % 3)
OPTIMIZER = optax.sgd(1.0)  # a step is minus the gradient


def start(average=False):
    return init_state(NETWORK, OPTIMIZER, jax.random.key(0), (8, 8, 1), average)


def take(state, batch, network=NETWORK, **options):
    return jax.jit(make_train_step(network, OPTIMIZER, **options))(state, batch)


def gradient(before, after):
    return jax.tree.map(jnp.subtract, before.params, after.params)


def assert_close(got, want, **tolerance):
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def test_weighted_cross_entropy_is_pytorchs():
    logits, labels = RNG.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 2, 1, 2])
    weights = np.array([3.0, 1.0, 0.5], np.float32)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(chances[np.arange(6), labels])
    want = (weights[labels] * losses).sum() / weights[labels].sum()
    assert cross_entropy(logits, labels, weights) == pytest.approx(want, rel=1e-5)
    assert cross_entropy(logits, labels) == pytest.approx(losses.mean(), rel=1e-5)
    smooth = 0.9 * losses + 0.1 * -np.log(chances).mean(-1)
    assert cross_entropy(logits, labels, smoothing=0.1) == pytest.approx(smooth.mean(), rel=1e-5)


def test_class_weights_reach_the_gradient():
    state = start()
    plain, _ = take(state, BATCH)
    even, _ = take(state, BATCH, class_weights=np.ones(3))
    assert_close(even.params, plain.params)
    # A class of weight 0 is the same as one left out of the loss.
    weighted, metrics = take(state, BATCH, class_weights=np.array([1.0, 1.0, 0.0]))
    logits, _ = jax.jit(
        lambda: NETWORK.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            BATCH.images,
            Context(train=True),
            mutable=["batch_stats"],
        )
    )()
    kept = BATCH.labels < 2
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[0], BATCH.labels)
    assert metrics["train_loss"] == pytest.approx(float(losses[kept].mean()), rel=1e-4)
    assert not np.allclose(
        weighted.params["classifier"]["bias"], plain.params["classifier"]["bias"]
    )


def test_a_batch_in_pieces_averages_their_gradients():
    """Each piece has its own batch statistics; the running ones are updated by each in turn."""
    state = start()
    both, metrics = take(state, BATCH, accumulate=2)
    halves = [
        jax.tree.map(lambda x, s=s: x[s], BATCH) for s in (slice(0, None, 2), slice(1, None, 2))
    ]
    first, first_metrics = take(state, halves[0])
    second, second_metrics = take(state.replace(batch_stats=first.batch_stats), halves[1])
    want = jax.tree.map(lambda a, b: (a + b) / 2, gradient(state, first), gradient(state, second))
    assert_close(gradient(state, both), want)
    assert_close(both.batch_stats, second.batch_stats)
    for key in metrics:
        mean = (first_metrics[key] + second_metrics[key]) / 2
        assert metrics[key] == pytest.approx(float(mean), rel=1e-4)
    assert int(both.step) == 1


def test_the_moving_average_begins_low_and_is_what_is_kept():
    state = start(average=True)
    options = {"average": 0.15}
    first, _ = take(state, BATCH, **options)
    second, _ = take(first, BATCH, **options)
    assert_close(  # decay min(0.15, 1/10), then min(0.15, 2/11)
        first.average["params"],
        jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, state.params, first.params),
    )
    assert_close(
        second.average["batch_stats"],
        jax.tree.map(
            lambda old, new: 0.15 * old + 0.85 * new,
            first.average["batch_stats"],
            second.batch_stats,
        ),
    )
    assert second.variables is second.average
    plain, _ = take(start(), BATCH)
    assert_close(plain.params, first.params)
    assert plain.variables["params"] is plain.params


def test_remat_changes_no_number():
    state = start()
    plain, _ = take(state, BATCH, drop_path=lambda step: 0.3)
    again, _ = take(state, BATCH, NETWORK.clone(remat=True), drop_path=lambda step: 0.3)
    assert_close(again.params, plain.params)
    assert_close(again.batch_stats, plain.batch_stats)
