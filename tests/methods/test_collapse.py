"""Signs of a collapsing search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax import GENOTYPES, Genotype
from asap_jax.host import loop
from asap_jax.methods import collapse
from asap_jax.searching import evidence, measures
from asap_jax.searching.evidence import Evidence

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("spectrum", [(-7.0, 4.0, 1.0, 0.2, 0.0), (5.0, -3.0, 1.0, 1.0, 0.1)])
def test_dominant_eigenvalue_of_a_known_quadratic(spectrum):
    """1/2 x' A x + b' x, over a tree; the sign is returned as well."""
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


def points_back(values, every=2, first=0, **options):
    epochs = range(first, first + every * len(values), every)
    return collapse.points_back_to(values, epochs, **options)


def test_the_eigenvalue_grows_when_robust_darts_says_so():
    """Measured in epochs 0, 2, 4, ...: in epoch 22 the middle of the earlier window is epoch 10."""
    assert points_back([1.0] * 12) is None
    # Means of 5: 1.0 four measurements ago; now (1 + 4 x) / 5, above 1.3 from x = 1.375 on.
    assert points_back([1.0] * 8 + [1.37] * 4) is None
    assert points_back([1.0] * 8 + [1.38] * 4) == 10
    assert points_back([1.0] * 10 + [1.38] * 4) == 14
    assert points_back([-1.0] * 8 + [3.0] * 4) is None  # growth of a negative one does not count
    # Grace epochs do not count: everything shifts by them.
    assert points_back([1.0] * 8 + [1.38] * 4, first=7) == 17


def test_robust_darts_never_returns_to_the_first_ten_epochs():
    growing = [1.3**i for i in range(25)]
    told = [points_back(growing[: n + 1]) for n in range(25)]
    assert told[:11] == [None] * 11  # up to epoch 20
    assert told[11:] == [2 * n - 12 for n in range(11, 25)]  # 22 -> 10, as in the authors' code
    assert points_back(growing[:9], start=0) == 4
    assert points_back(growing[:9], every=1, start=0) == 2


def test_warnings():
    skips = tuple((("skip_connect", 0), ("skip_connect", 1)) for _ in range(3))
    mixed = ((("sep_conv_3x3", 0), ("skip_connect", 1)),)
    concat = (2, 3, 4, 5)
    collapsed = Genotype(skips + mixed, concat, skips + mixed, concat)
    assert collapse.warnings(GENOTYPES["ASAP"], {"gap": 0.29}, None, True) == {}  # 5 of 8 skips
    assert collapse.warnings(collapsed, {}, None, False).keys() == {"skips"}
    assert "7 of the 8" in collapse.warnings(collapsed, {}, None, False)["skips"]
    assert collapse.warnings(GENOTYPES["ASAP"], {"gap": 0.42}, None, False) == {}
    said = collapse.warnings(GENOTYPES["ASAP"], {"gap": 0.42}, None, True)
    assert "42 points" in said["gap"]
    said = collapse.warnings(GENOTYPES["ASAP"], {}, 10, False)
    assert said.keys() == {"eigenvalue"}
    assert "the cells of epoch 11" in said["eigenvalue"]


def test_a_search_records_the_signs_and_warns_once(capsys):
    config = tiny()
    config.data.update({"train_examples": 60, "test_examples": 20})
    config.search.update({"epochs": 2, "batch_size": 15})
    config.search.candidates = ("skip_connect", "max_pool_3x3")
    config.search.strategy.threshold = 0.01
    config.search.alpha.learning_rate = 1e-30  # ties go to the first: all skips
    config.search.watch.update({"images": 16, "eigenvalue": True, "eigenvalue_every": 1})
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


def test_the_last_epoch_may_have_too_many_skips_too():
    """Also of a search that is finished; what an earlier stage ended with counts."""
    found = Evidence(early_stop=False, eigenvalue_from=10, max_skips=2)
    progress = loop.Progress(epoch=3)
    assert not found.consider(progress, None, 2, lambda: {"top2": "cells"})
    assert not progress.ended
    following = loop.Progress(ended="finished")
    following.history.update({key: progress.history[key] for key in evidence.CARRIED[1:]})
    said = found.consider(following, None, 3, lambda: {"top2": "others"})
    assert said == "the search ends here, with the cells of epoch 4: 3 skips, more than 2"
    assert following.ended == "stopped"
    assert following.history["returned"] == [3, {"top2": "cells"}]


def test_skips_end_nothing_unless_a_number_is_given():
    found = Evidence(early_stop=False, eigenvalue_from=10, max_skips=-1)
    progress = loop.Progress()
    assert not any(found.consider(progress, None, skips, dict) for skips in (0, 8))
    assert not progress.ended and not progress.history


def test_a_search_stops_at_too_many_skips_with_the_cells_of_before(monkeypatch):
    """The skips of the epochs in which the alphas learn by hand, at most 2 allowed."""
    config = tiny()
    config.data.update({"train_examples": 60, "test_examples": 20})
    config.search.update({"epochs": 14, "batch_size": 30, "max_skips": 2})
    config.search.candidates = ("skip_connect", "max_pool_3x3")
    config.search.strategy.update({"threshold": 0.01, "initial_temperature": 2.0})
    config.search.watch.images = 0
    counts, derived, seen = iter([3, 2, 1, 3]), [], []  # the first 3 has no fewer before it
    consider = Evidence.consider

    def by_hand(self, progress, back, skips, cells):
        def note():
            derived.append(cells())
            return derived[-1]

        return consider(self, progress, back, next(counts), note)

    monkeypatch.setattr(Evidence, "consider", by_hand)
    found = asap_jax.search(config, on_epoch=seen.append)
    assert found.search["ended"] == "stopped"
    assert sum(record["alphas_learned"] > 0 for record in seen) == 4
    assert len(derived) == 2
    assert found.genotype == Genotype.from_json(derived[-1][config.search.edges])


def test_a_search_stops_at_the_sign_with_the_cells_it_points_back_to(monkeypatch):
    """Ten eigenvalues by hand, growing from the seventh epoch on; the tenth is the sign."""
    config = tiny()
    config.data.update({"train_examples": 60, "test_examples": 20})
    config.search.update({"epochs": 14, "batch_size": 30})
    config.search.candidates = ("skip_connect", "max_pool_3x3")
    config.search.strategy.update({"threshold": 0.01, "initial_temperature": 2.0})
    config.search.watch.update(
        {"images": 0, "eigenvalue": True, "eigenvalue_every": 1, "eigenvalue_from": 0}
    )
    config.search.early_stop = True
    values = iter([1.0] * 6 + [1.4] * 20)
    told = lambda *parts: lambda state, held: jnp.float32(0)  # noqa: E731
    monkeypatch.setattr(measures, "eigenvalue", told)
    note = Evidence.note_eigenvalue
    cells = []

    def by_hand(self, progress, value, current):
        back = note(self, progress, next(values), current)
        cells.append((progress.epoch, progress.history["eigenvalue_cells"][-1]))
        return back

    monkeypatch.setattr(Evidence, "note_eigenvalue", by_hand)
    seen = []
    found = asap_jax.search(config, on_epoch=seen.append)
    grace = sum("eigenvalue" not in record for record in seen)
    assert grace > 0
    assert len(seen) == grace + 10 < 14
    assert cells[0][0] == grace
    back = dict(cells)[grace + 3]
    assert found.genotype == Genotype.from_json(back[config.search.edges])
