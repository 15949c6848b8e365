"""Optimizers against PyTorch's rules, unrolled by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asap_jax.training import optim

RNG = np.random.default_rng(0)
SHAPES = {"a": (3, 2), "b": (4,)}


def trees(steps):
    params = {k: RNG.normal(size=s) for k, s in SHAPES.items()}
    return params, [{k: 10 * RNG.normal(size=s) for k, s in SHAPES.items()} for _ in range(steps)]


def run(optimizer, params, gradients):
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    live = jax.tree.map(lambda p: jnp.bool_(True), params)
    for g in gradients:
        params, state = optim.update_where(
            optimizer, live, jax.tree.map(jnp.asarray, g), state, params
        )
    return params


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
    """Clip to norm 5 (without PyTorch's 1e-6), torch.optim.SGD(momentum=0.9, weight_decay=3e-4)."""
    with jax.enable_x64(True):
        params, gradients = trees(4)
        got = run(optim.sgd(lambda step: 0.025 / (1 + step), nesterov=nesterov), params, gradients)
    buffers = {k: np.zeros(s) for k, s in SHAPES.items()}
    for step, g in enumerate(gradients):
        norm = np.sqrt(sum((v**2).sum() for v in g.values()))
        for k in params:
            d = g[k] * min(1, 5 / norm) + 3e-4 * params[k]
            buffers[k] = 0.9 * buffers[k] + d
            d = d + 0.9 * buffers[k] if nesterov else buffers[k]
            params[k] = params[k] - 0.025 / (1 + step) * d
    for k in params:
        np.testing.assert_allclose(got[k], params[k], rtol=1e-12)


def test_adam():
    """torch.optim.Adam(lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-3): coupled decay."""
    with jax.enable_x64(True):
        params, gradients = trees(4)
        got = run(optim.adam(), params, gradients)
    first = {k: np.zeros(s) for k, s in SHAPES.items()}
    second = {k: np.zeros(s) for k, s in SHAPES.items()}
    for t, g in enumerate(gradients, 1):
        for k in params:
            d = g[k] + 1e-3 * params[k]
            first[k] = 0.5 * first[k] + 0.5 * d
            second[k] = 0.999 * second[k] + 0.001 * d**2
            step = first[k] / (1 - 0.5**t)
            params[k] = params[k] - 1e-3 * step / (np.sqrt(second[k] / (1 - 0.999**t)) + 1e-8)
    for k in params:
        np.testing.assert_allclose(got[k], params[k], rtol=1e-9)


@pytest.mark.parametrize("optimizer", [optim.sgd(lambda step: 0.1), optim.adam()])
def test_dead_entries_and_their_momenta_stay(optimizer):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(4)}
    gradients = jax.tree.map(jnp.ones_like, params)
    everything = jax.tree.map(lambda p: jnp.bool_(True), params)
    half = {"a": jnp.asarray([[True], [False], [True]]), "b": jnp.bool_(False)}
    before, state = optim.update_where(
        optimizer, everything, gradients, optimizer.init(params), params
    )
    after, new_state = optim.update_where(optimizer, half, gradients, state, before)
    np.testing.assert_array_equal(after["b"], before["b"])
    np.testing.assert_array_equal(after["a"][1], before["a"][1])
    assert (after["a"][0] != before["a"][0]).all()
    shape = jax.tree.structure(params)
    like_params = lambda t: jax.tree.structure(t) == shape  # noqa: E731
    pairs = zip(*(jax.tree.leaves(s, is_leaf=like_params) for s in (state, new_state)), strict=True)
    checked = 0
    for old, new in pairs:
        if like_params(old):
            np.testing.assert_array_equal(new["b"], old["b"])
            np.testing.assert_array_equal(new["a"][1], old["a"][1])
            assert (new["a"][0] != old["a"][0]).any()
            checked += 1
    assert checked >= 1


def test_adam_counts_the_steps_of_each_entry():
    """An entry that is live in every seventh step moves as if PyTorch stepped it alone."""
    gradients = RNG.normal(size=(60, 2))
    live = np.stack([np.arange(60) % 7 == 6, np.ones(60, bool)], 1)
    optimizer = optim.adam(0.01, weight_decay=0.0)
    with jax.enable_x64(True):
        params = jnp.zeros(2)
        state = optimizer.init(params)
        for g, on in zip(gradients, live, strict=True):
            params, state = optim.update_where(
                optimizer, jnp.asarray(on), jnp.asarray(g), state, params
            )
    for entry, final in enumerate(np.asarray(params)):
        value, first, second = 0.0, 0.0, 0.0
        for t, g in enumerate(gradients[live[:, entry], entry], 1):
            first, second = 0.5 * first + 0.5 * g, 0.999 * second + 0.001 * g**2
            value -= 0.01 * first / (1 - 0.5**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        assert final == pytest.approx(value, rel=1e-9)
