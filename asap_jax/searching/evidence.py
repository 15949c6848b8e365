"""Ends a search where it collapses, and returns the cells of an epoch before that.

What was measured and which cells to return are kept in `Progress.history`, so that a checkpoint
holds them.
"""

from collections.abc import Callable
from typing import NamedTuple

from asap_jax.host.loop import Progress
from asap_jax.methods import collapse

CARRIED = ("warned", "few_skips")  # from stage to stage, in `Progress.history`

# {edge rule: genotype that the current state gives, as JSON}, derived only where it is noted.
Cells = Callable[[], dict[str, str]]


class Evidence(NamedTuple):
    """What ends a search early.

    early_stop: whether RobustDARTS' criterion does (`collapse.points_back_to`).
    eigenvalue_from: epochs after the first measurement before which it points back to nothing.
    max_skips: so many skips the normal cell may have; negative for any number.
    """

    early_stop: bool
    eigenvalue_from: int
    max_skips: int

    def note_eigenvalue(self, progress: Progress, value: float, cells: Cells) -> int | None:
        """Records it with the current cells; returns the epoch to return to, or None."""
        history = progress.history
        for name, new in (
            ("eigenvalue", value),
            ("eigenvalue_epochs", progress.epoch),
            ("eigenvalue_cells", cells()),
        ):
            history.setdefault(name, []).append(new)
        values, epochs = history["eigenvalue"], history["eigenvalue_epochs"]
        return collapse.points_back_to(values, epochs, self.eigenvalue_from)

    def consider(self, progress: Progress, back: int | None, skips: int, cells: Cells) -> str:
        """Ends the search where it collapses; returns words that say so, or "".

        That is at RobustDARTS' criterion, or once the normal cell has more than `max_skips` skips
        after it had fewer (at most so many) since the alphas learn.

        Args:
          progress: the epoch that just ended, in which the alphas learned.
          back: the epoch that the eigenvalue points back to, or None.
          skips: of the normal cell that the current state gives.
          cells: those of the current state.
        """
        history, limit = progress.history, self.max_skips
        if back is not None and self.early_stop:
            index, reason = history["eigenvalue_epochs"].index(back), "eigenvalue"
            returned = [back, history["eigenvalue_cells"][index]]
        elif skips > limit >= 0 and "few_skips" in history:
            returned, reason = list(history["few_skips"]), f"{skips} skips, more than {limit}"
        else:
            if skips <= limit:
                history["few_skips"] = [progress.epoch, cells()]
            return ""
        progress.ended, history["returned"] = "stopped", returned
        return f"the search ends here, with the cells of epoch {returned[0] + 1}: {reason}"
