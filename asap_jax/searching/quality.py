"""What a search of so many steps is worth, as far as it was measured (docs/search_quality.md).

Measured in NAS-Bench-201's space, where the accuracy of every cell is known, by the share of all
cells that are worse than those found: for a draw it is 50 % in the mean.
"""

from typing import NamedTuple

SPACE = "nasbench201"
CLEAR = 2.0  # standard errors above a draw


class Measured(NamedTuple):
    """Searches of one length.

    steps: of each.
    worse: mean share of cells that are worse than those found, in %.
    error: its standard error.
    """

    steps: int
    worse: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether they found better cells than a draw, by more than `CLEAR` standard errors."""
        return self.worse - 50 > CLEAR * self.error


MEASURED: dict[str, tuple[Measured, ...]] = {  # of methods, by ascending steps
    "asap": (Measured(300, 65.5, 14.9), Measured(1000, 92.3, 3.9)),
    "darts": (Measured(300, 55.6, 18.3), Measured(1000, 65.2, 8.0)),
    "gdas": (Measured(300, 68.7, 11.0), Measured(1000, 45.6, 7.9)),
    "drnas": (Measured(300, 74.6, 8.9), Measured(1000, 44.5, 12.4)),
    "beta_darts": (Measured(300, 41.3, 17.7), Measured(1000, 90.3, 3.2)),
    "random": (Measured(300, 57.2, 14.8), Measured(1000, 55.6, 15.7)),
}


def at(method: str, steps: int) -> Measured | None:
    """The longest searches measured that were not longer; None if there are none."""
    known = [each for each in MEASURED.get(method, ()) if each.steps <= steps]
    return known[-1] if known else None


def enough(method: str) -> int | None:
    """The fewest steps from which on all measured searches found clearly better cells than a draw.

    None if the longest did not, or nothing was measured.
    """
    found = None
    for each in reversed(MEASURED.get(method, ())):
        if not each.clear:
            break
        found = each.steps
    return found


def doubt(method: str, steps: int) -> str:
    """Why the cells of a search mean little, in words; "" if they do, or nothing is known."""
    measured, least = MEASURED.get(method, ()), enough(method)
    if least is not None and steps < least:
        return (
            f"{steps:,} steps are few: measured in NAS-Bench-201's space, {method} finds better "
            f"cells than a draw from {least:,} steps on (docs/search_quality.md). With more images "
            "or epochs, and config.search.alpha.learning_rate lower by as much, cells would mean "
            "more"
        )
    if least is None and measured and steps <= measured[-1].steps:
        return (
            f"{steps:,} steps are few: measured in NAS-Bench-201's space, {method} finds no better "
            f"cells than a draw in up to {measured[-1].steps:,} steps (docs/search_quality.md)"
        )
    return ""
