"""beta-DARTS: its term in the loss of the alphas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import EDGES, KEY, SPACE, random_alphas

from asap_jax import STRATEGIES

RNG = np.random.default_rng(0)


def test_beta_darts_decays_the_weights_by_the_logsumexp_of_an_edge():
    """By hand, at epoch 30 of 100: w = 15; the gradient is w softmax(alpha) / edges."""
    strategy = STRATEGIES["beta_darts"](SPACE, 100, 4)
    alphas, step = random_alphas(RNG), jnp.int32(4 * 30 + 3)
    arch = strategy.init(KEY)

    def term(alphas):
        return strategy.regularizer(arch._replace(alphas=alphas), step)

    value, gradients = jax.value_and_grad(term)(alphas)
    exponents = {cell: np.exp(np.asarray(a, np.float64)) for cell, a in alphas.items()}
    want = 15 * sum(np.mean(np.log(each.sum(-1))) for each in exponents.values())
    assert float(value) == pytest.approx(want, rel=1e-5)
    for cell, each in exponents.items():
        softmax = each / each.sum(-1, keepdims=True)
        np.testing.assert_allclose(gradients[cell], 15 * softmax / EDGES, rtol=1e-5)


def test_beta_darts_weight_grows_to_50():
    """50 e / 100 in the authors' 100 epochs; the same line in any other number."""
    for epochs in (100, 20):
        strategy = STRATEGIES["beta_darts"](SPACE, epochs, 4)
        for epoch in range(epochs):
            for step in (4 * epoch, 4 * epoch + 3):
                got = strategy.readings(jnp.int32(step))["regularizer_weight"]
                assert float(got) == pytest.approx(50 * epoch / epochs, rel=1e-6)
