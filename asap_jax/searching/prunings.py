"""Notes which candidate of which edge is pruned in which step of a search."""

import numpy as np

from asap_jax.host.loop import Progress

METRIC = "masks"  # of a step: {cell type: [E, O]}, taken out before the metrics are logged


class Prunings:
    """Compares the masks after each step with those before it.

    The prunings are kept in `Progress.history`, and therefore in checkpoints: a resumed search
    knows all of them.
    """

    def __init__(self, masks):
        """`masks` are those at the start of the stage, {cell type: [E, O]}."""
        self._start, self._left = masks, None
        self.latest: list[tuple[str, int, int]] = []  # (cell, edge, candidate) of the last step

    def note(self, progress: Progress, metrics: dict) -> None:
        """Takes the masks out of the metrics of a step that `progress` does not count yet."""
        masks = {cell: np.asarray(mask, bool) for cell, mask in metrics.pop(METRIC).items()}
        if self._left is None:
            self._left = self._known(progress, masks)
        self.latest = [
            (cell, edge, candidate)
            for cell, mask in masks.items()
            for edge, candidate in np.argwhere(self._left[cell] & ~mask).tolist()
        ]
        place = progress.epoch + 1, progress.step + 1
        progress.history.setdefault("pruned", []).extend([*place, *each] for each in self.latest)
        self._left = masks

    def _known(self, progress, masks) -> dict:
        """The masks before this process' first step."""
        if "pruned" not in progress.history and (progress.epoch or progress.step):
            return masks  # a checkpoint of a version that noted no prunings
        left = {cell: np.array(mask, bool) for cell, mask in self._start.items()}
        for _, _, cell, edge, candidate in progress.history.get("pruned", []):
            left[cell][edge, candidate] = False
        return left


def of_epoch(progress: Progress) -> list[list]:
    """[step, cell type, edge, candidate] of each pruning in the epoch that just ended."""
    noted = progress.history.get("pruned", [])
    return [pruning for epoch, *pruning in noted if epoch == progress.epoch + 1]
