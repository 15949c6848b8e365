"""PARSEC: importance weights and the gradient of the evidence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import CELLS, KEY

from asap_jax import STRATEGIES, SearchSpace
from asap_jax.methods import Architecture, bilevel
from asap_jax.training.feed import Batch

RNG = np.random.default_rng(0)


PAIR = SearchSpace(("max_pool_3x3", "skip_connect"), nodes=1, edges=((0, 2), (1, 2)))


def parsec_point(strategy, alphas, images, samples_key):
    """A loss whose likelihoods are known: the sum of a table's entries of the sampled candidates.

    omega [2, 2] is added to the normal cell's entries, so its gradient counts what was sampled.
    """
    table = {
        "normal": jnp.asarray([[0.9, 0.2], [0.4, 0.6]]),
        "reduce": jnp.asarray([[0.1, 0.5], [0.3, 0.3]]),
    }
    masks = strategy.init(KEY).masks

    def loss(params, alphas, stats, batch, key):
        arch = Architecture(alphas, masks)
        chosen = {c: m.active for c, m in strategy.mixture(arch, 0, key).items()}
        value = sum(jnp.vdot(chosen[c], table[c]) for c in CELLS) / 10
        value += jnp.vdot(chosen["normal"], params) * batch.images.mean()
        return value, (stats + 1, jnp.ones((len(batch.labels), 2)))

    def batch(size, scale):
        return Batch(jnp.full((size, 1), scale), jnp.zeros(size, jnp.int32))

    point = bilevel.Point(
        jnp.zeros((2, 2)),
        alphas,
        jnp.int32(0),
        None,
        jnp.int32(0),
        batch(3, 2.0),
        batch(images, 0.0),
        samples_key,
    )
    return loss, point, table


def test_parsec_follows_the_gradient_of_the_evidence():
    """Many samples against all 16 architectures: the exact posterior, for both gradients."""
    strategy = STRATEGIES["parsec"](PAIR, 4, 3, samples=20_000)
    alphas = {c: jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32) for c in CELLS}
    images = 20
    loss, point, table = parsec_point(strategy, alphas, images, KEY)

    def evidence(alphas):
        total = 0.0
        for choice in itertools.product((0, 1), repeat=4):
            log = 0.0
            for c, chosen in zip(CELLS, (choice[:2], choice[2:]), strict=True):
                for e, o in enumerate(chosen):
                    log += jax.nn.log_softmax(alphas[c])[e, o] - images * table[c][e, o] / 10
            total += jnp.exp(log)
        return jnp.log(total)

    (_, (stats, _)), got = strategy.updates.gradient(loss, point)
    want = jax.grad(lambda alphas: -evidence(alphas))(alphas)
    assert int(stats) == 20_000  # every sample updates the statistics
    for cell in CELLS:
        np.testing.assert_allclose(got[cell], want[cell], atol=0.02)
        assert np.abs(want[cell]).max() > 0.1
        np.testing.assert_allclose(got[cell].sum(-1), 0, atol=1e-5)
    # A table of sums factorizes: the posterior of an edge is softmax(alpha - n loss).
    posterior = jax.nn.softmax(alphas["normal"] - images * table["normal"] / 10)
    (value, _), gradient = strategy.updates.omega(loss, point)
    np.testing.assert_allclose(gradient, 2.0 * posterior, atol=0.03)
    assert float(value) > 0


@pytest.mark.parametrize("power", [1.0, 0.05])
def test_parsecs_weights_are_the_samples_shares_of_the_likelihood(power):
    strategy = STRATEGIES["parsec"](PAIR, 4, 3, samples=3, likelihood_power=power)
    rng = np.random.default_rng(0)
    alphas = {c: jnp.asarray(rng.normal(size=(2, 2)), jnp.float32) for c in CELLS}
    loss, point, _ = parsec_point(strategy, alphas, 20, jax.random.key(3))
    keys = jax.random.split(point.key, 3)
    losses = [float(loss(point.params, alphas, 0, point.val, key)[0]) for key in keys]
    likelihoods = np.exp(-np.asarray(losses)) ** (20 * power)
    weights = likelihoods / likelihoods.sum()
    assert np.ptp(weights) > 0.01
    arch = strategy.init(KEY)._replace(alphas=alphas)
    drawn = [strategy.mixture(arch, 0, key) for key in keys]
    (value, _), got = strategy.updates.gradient(loss, point)
    assert float(value) == pytest.approx(weights @ losses, rel=1e-5)
    for cell in CELLS:  # d log pi = a - pi
        soft = np.asarray(jax.nn.softmax(alphas[cell]))
        terms = [
            w * (soft - np.asarray(d[cell].active)) for w, d in zip(weights, drawn, strict=True)
        ]
        np.testing.assert_allclose(got[cell], sum(terms), rtol=1e-4, atol=1e-6)
    _, gradient = strategy.updates.omega(loss, point)
    want = sum(
        2.0 * w * np.asarray(d["normal"].active) for w, d in zip(weights, drawn, strict=True)
    )
    np.testing.assert_allclose(gradient, want, rtol=1e-5)
    trained = strategy.trained(arch, 0, point.key)
    for cell in CELLS:
        union = np.any([d[cell].active for d in drawn], 0)
        np.testing.assert_array_equal(trained[cell].active, union)
