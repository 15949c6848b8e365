"""What all methods have in common: distributions, and options that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_space import CELLS, KEY, SPACE, random_alphas

from asap_jax import STRATEGIES
from asap_jax.networks.spaces import ASAP

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["snas", "gdas", "edas", "parsec"])
def test_a_sampling_methods_distribution_is_the_softmax_of_its_alphas(name):
    strategy = STRATEGIES[name](SPACE, 10, 5)
    arch = strategy.init(KEY)._replace(alphas=random_alphas(RNG))
    mixtures = strategy.mixture(arch, jnp.int32(3), KEY)
    found = strategy.distribution(arch, mixtures)
    for cell in CELLS:
        want = jax.nn.softmax(arch.alphas[cell])
        np.testing.assert_allclose(found[cell].weights, want, rtol=1e-6)
        assert found[cell].active.all()
        assert np.abs(mixtures[cell].weights - want).max() > 0.1


def test_what_is_not_normalised_or_has_no_alphas_has_no_distribution():
    without = {n for n in STRATEGIES if STRATEGIES[n](ASAP, 10, 5).distribution is None}
    assert without == {"nap", "dso_nas", "enas", "random", "evolution"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("darts", {"order": "third"}, "order has to be one of first, second, exact"),
        ("darts_plus", {"skips": 0}, "one of them above 0"),
        ("darts_plus", {"stable_epochs": 3}, "fewer than two of the candidates .* have weights"),
        ("beta_darts", {"weight": -1.0}, "weight has to be 0 or more"),
        ("drnas", {"keep": (2,)}, "keep has one entry less"),
        ("drnas", {"partial_channels": (2, 1), "keep": (4,)}, "keep has to fall"),
        ("drnas", {"partial_channels": (0,)}, "have to be at least 1"),
        ("drnas", {"grace": 1.0}, "grace has to lie"),
        ("drnas", {"kl": -1.0}, "kl has to be 0 or more"),
        ("evolution", {"sample": 0}, "sample has to be at least 1"),
        ("evolution", {"cycles": 99}, "cycles counts the first population of 100"),
        ("snas", {"final_temperature": 2.0}, "final_temperature"),
        ("gdas", {"final_temperature": 0.0}, "final_temperature"),
        ("magnitude", {"power": 2}, "power has to be 1 or 3"),
        ("accum_grad", {"start": 1.0}, "start has to lie"),
        ("nap", {"relaxation": "softmax"}, "relaxation has to be"),
        ("nap", {"sparsity": 1.0}, "sparsity has to lie"),
        ("asap_pac", {"delta": 0.0}, "delta has to lie"),
        ("dso_nas", {"gamma": 0.0}, "gamma and learning_rate have to be above 0"),
        ("dso_nas", {"momentum": 1.0}, "momentum has to lie"),
        ("dso_nas", {"grace": 1.0}, "grace has to lie"),
        ("dso_nas", {"prune_every": 0}, "prune_every has to be at least 1"),
        ("enas", {"architectures": 0}, "architectures has to be at least 1"),
        ("enas", {"inputs_per_node": 0}, "inputs_per_node has to be at least 1"),
        ("enas", {"temperature": 0.0}, "temperature has to be above 0"),
        ("enas", {"baseline_decay": 1.0}, "baseline_decay has to lie"),
        ("enas", {"entropy_weight": -1.0}, "entropy_weight has to be 0 or more"),
        ("parsec", {"samples": 0}, "samples has to be at least 1"),
        ("parsec", {"likelihood_power": 0.0}, "likelihood_power has to be above 0"),
        ("pc_darts", {"partial_channels": 0}, "partial_channels has to be"),
        ("pc_darts", {"grace": 1.0}, "grace has to lie"),
        ("p_darts", {"keep": (2,)}, "keep has one entry less"),
        ("p_darts", {"keep": (2, 3)}, "keep has to fall"),
        ("p_darts", {"keep": (2, 2), "skip_dropout": (0, 0, 1.0)}, "skip_dropout has to lie"),
        ("p_darts", {"keep": (2, 2), "grace": 1.0}, "grace has to lie"),
        ("p_darts", {"keep": (2, 2), "max_skips": -1}, "have to be 0 or more"),
        ("asap_pac", {"gradient_bound": 0.0}, "gradient_bound has to be"),
        ("magnitude", {"start_epoch": 4}, "start_epoch is 4, but .* last of the 4 epochs"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        STRATEGIES[name](SPACE, 4, 3, **options)
