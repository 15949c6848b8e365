"""The signs of a collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax import GENOTYPES, Genotype, collapse

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("spectrum", [(-7.0, 4.0, 1.0, 0.2, 0.0), (5.0, -3.0, 1.0, 1.0, 0.1)])
def test_dominant_eigenvalue_of_a_known_quadratic(spectrum):
    """1/2 x' A x + b' x, over a tree; the sign comes along."""
    basis, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    matrix = jnp.asarray(basis @ np.diag(spectrum) @ basis.T, jnp.float32)
    linear = jnp.asarray(RNG.normal(size=5), jnp.float32)

    def loss(tree):
        x = jnp.concatenate([tree["a"].ravel(), tree["b"]])
        return x @ matrix @ x / 2 + linear @ x

    tree = {"a": jnp.ones((2, 1)), "b": jnp.zeros(3)}
    value, count = jax.jit(
        lambda key: collapse.dominant_eigenvalue(loss, tree, key, iterations=200, tolerance=1e-6)
    )(jax.random.key(0))
    assert float(value) == pytest.approx(spectrum[0], rel=1e-3)
    assert 3 < count < 200


def test_dominant_eigenvalue_of_a_flat_loss_is_zero():
    value, _ = collapse.dominant_eigenvalue(lambda x: x.sum(), jnp.ones(4), jax.random.key(0))
    assert value == 0


def test_the_eigenvalue_grows_when_robust_darts_says_so():
    level = [1.0] * 9
    assert not collapse.eigenvalue_grows(level)
    assert not collapse.eigenvalue_grows([1.0] * 4 + [2.0] * 4)  # too short to tell
    # Means of 5: 1.0 four epochs ago; now (1 + 4 x) / 5, above 1.3 from x = 1.375 on.
    assert not collapse.eigenvalue_grows([1.0] * 5 + [1.37] * 4)
    assert collapse.eigenvalue_grows([1.0] * 5 + [1.38] * 4)
    assert not collapse.eigenvalue_grows([-1.0] * 5 + [3.0] * 4)  # no growth of a negative one


def test_warnings():
    skips = tuple((("skip_connect", 0), ("skip_connect", 1)) for _ in range(3))
    mixed = ((("sep_conv_3x3", 0), ("skip_connect", 1)),)
    concat = (2, 3, 4, 5)
    collapsed = Genotype(skips + mixed, concat, skips + mixed, concat)
    assert collapse.warnings(GENOTYPES["ASAP"], {"gap": 0.29}, {}, True) == {}  # 5 of 8 are skips
    assert collapse.warnings(collapsed, {}, {}, False).keys() == {"skips"}
    assert "7 of the 8" in collapse.warnings(collapsed, {}, {}, False)["skips"]
    assert collapse.warnings(GENOTYPES["ASAP"], {"gap": 0.42}, {}, False) == {}
    said = collapse.warnings(GENOTYPES["ASAP"], {"gap": 0.42}, {}, True)
    assert "42 points" in said["gap"]
    grown = {"eigenvalue": [1.0] * 5 + [2.0] * 4}
    assert collapse.warnings(GENOTYPES["ASAP"], {}, grown, False).keys() == {"eigenvalue"}


def test_a_search_records_the_signs_and_warns_once(capsys):
    config = tiny()
    config.data.update({"train_examples": 60, "test_examples": 20})
    config.search.update({"epochs": 2, "batch_size": 15})
    config.search.candidates = ("skip_connect", "max_pool_3x3")
    config.search.strategy.threshold = 0.01
    config.search.alpha.learning_rate = 1e-30  # ties go to the first: all skips
    config.search.watch.update({"images": 16, "eigenvalue": True})
    seen = []
    asap_jax.search(config, on_epoch=seen.append)
    assert len(seen) == 2
    for record in seen:
        cells = [record["entropy_normal"], record["entropy_reduce"]]
        assert record["entropy"] == pytest.approx(np.mean(cells), rel=1e-5)
        assert 0 <= record["derived_accuracy"] <= 1
        gap = record["supernet_accuracy"] - record["derived_accuracy"]
        assert record["gap"] == pytest.approx(gap)
        assert record["supernet_accuracy"] * 16 == int(record["supernet_accuracy"] * 16)
        assert np.isfinite(record["eigenvalue"])
        assert record["eigenvalue"] != 0
        assert record["skips_normal"] == record["skips_reduce"] == 8
    said = [line for line in capsys.readouterr().out.splitlines() if "warning:" in line]
    assert len([line for line in said if "skip connections" in line]) == 1
