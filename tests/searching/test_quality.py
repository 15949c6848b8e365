"""What is expected of a search by its length, and when that is nothing."""

import pytest

from asap_jax.methods import STRATEGIES
from asap_jax.searching import quality
from asap_jax.searching.quality import Measured

KNOWN = {
    "asap": (Measured(100, 80, 1), Measured(200, 60, 6), Measured(400, 62, 5.9)),
    "darts": (Measured(100, 40, 5), Measured(200, 70, 10)),
}


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(quality, "MEASURED", KNOWN)


def test_enough_is_what_all_longer_searches_were_too(known):
    """62 % is 2.03 errors above a draw, 60 % only 1.67; 70 % is exactly 2, which is not more."""
    assert quality.enough("asap") == 400
    assert quality.enough("darts") is quality.enough("gdas") is None


def test_the_longest_search_that_was_not_longer_counts(known):
    assert quality.at("asap", 99) is quality.at("gdas", 500) is None
    assert [quality.at("asap", steps).steps for steps in (100, 399, 400, 9000)] == [
        *(100, 200, 400, 400)
    ]


def test_doubt_names_the_steps_that_would_do(known):
    assert "399 steps are few" in quality.doubt("asap", 399)
    assert "from 400 steps on" in quality.doubt("asap", 399)
    assert quality.doubt("asap", 400) == ""
    assert "no better cells than a draw in up to 200 steps" in quality.doubt("darts", 200)
    assert quality.doubt("darts", 201) == quality.doubt("gdas", 1) == ""  # not measured


def test_what_was_measured_is_of_methods_and_ascends():
    assert quality.MEASURED
    for method, points in quality.MEASURED.items():
        assert method in STRATEGIES
        steps = [point.steps for point in points]
        assert steps == sorted(set(steps))
        assert all(0 < point.worse < 100 and point.error > 0 for point in points)
