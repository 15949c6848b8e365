"""How sure a search is of its cells: margins, when they settled, agreement.

What the end of an epoch shows is kept in `Progress.history`, so that a checkpoint holds it.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.spaces import SearchSpace

CLEAR = 0.2  # margin from which an edge counts as clearly decided
_CELLS, _MARGINS = "cells", "margins"  # keys of the history


def note(history: dict[str, list], epoch: int, genotype: Genotype, weights, masks) -> None:
    """Notes the end of an epoch.

    Args:
      history: `Progress.history`.
      epoch: epochs completed before it.
      genotype: the cells that would be derived now.
      weights: of the mixtures, {cell type: [E, O]}.
      masks: of the candidates left, {cell type: [E, O]}.
    """
    cells = history.setdefault(_CELLS, [])  # [epoch, genotype as JSON] of each change
    text = genotype.to_json()
    if not cells or cells[-1][1] != text:
        cells.append([epoch, text])
    before = history.get(_MARGINS, [{}])[0]
    history[_MARGINS] = [
        {cell: margins(weights[cell], masks[cell], before.get(cell)) for cell in weights}
    ]


def margins(weights, masks, before: Sequence[float | None] | None = None) -> list[float | None]:
    """Each edge's margin: its first candidate's lead over the second, as a share of all weights.

    1 if the first has all weight, 0 for a tie. An edge with one candidate left keeps the margin
    from before, since what it had last shows how close the decision was; None if it never had two.

    Args:
      weights, masks: [E, O]; only the size of a weight counts, not its sign.
      before: margins at the end of the epoch before, [E].
    """
    found: list[float | None] = list(before or [None] * len(weights))
    for edge, (row, mask) in enumerate(zip(np.asarray(weights), np.asarray(masks), strict=True)):
        living = np.sort(np.abs(row[mask.astype(bool)]).astype(np.float64))[::-1]
        if len(living) > 1:
            total = living.sum()
            found[edge] = round(float((living[0] - living[1]) / total), 4) if total > 0 else 0.0
    return found


def of_search(
    history: Mapping[str, list], epochs: int, genotype: Genotype, masks, space: SearchSpace
) -> dict:
    """What a search shows of its own certainty; {} if no epoch was noted.

    Args:
      history: `Progress.history` at the end.
      epochs: of the stage, all completed.
      genotype: the cells found.
      masks: of the candidates left at the end, {cell type: [E, O]}.
      space: of the last stage.

    Returns:
      {"edges": number of them in all cell types,
       "decided": those with one candidate left,
       "clear": those with a margin of at least `CLEAR`,
       "margin": their median,
       "settled": the epoch since which the cells stayed as they are, counted from 1,
       "epochs": of the stage,
       "agreement": of the cells of the last third of the epochs with those found, the mean over
         the epochs in which the alphas learned; None if that was a single one,
       "chance": agreement of two cells drawn at random}.
    """
    if _CELLS not in history:
        return {}
    changes = [(epoch, Genotype.from_json(text)) for epoch, text in history[_CELLS]]
    first, last = changes[0][0], epochs - 1
    since = max(first, last - (last - first + 1) // 3)
    ends = [epoch for epoch, _ in changes[1:]] + [last + 1]
    shares, settled = [], last + 1
    for (begin, cells), end in zip(changes, ends, strict=True):
        # The last epoch is the result itself, unless the search returned to an earlier one.
        count = min(end, last) - max(begin, since)
        shares += [agreement(cells, genotype)] * max(0, count)
    for begin, cells in reversed(changes):
        if cells != genotype:
            break
        settled = begin + 1
    found = [m for each in history[_MARGINS][0].values() for m in each if m is not None]
    return {
        "edges": sum(len(mask) for mask in masks.values()),
        "decided": sum(int((np.asarray(mask).sum(1) == 1).sum()) for mask in masks.values()),
        "clear": sum(margin >= CLEAR for margin in found),
        "margin": statistics.median(found) if found else None,
        "settled": settled,
        "epochs": epochs,
        "agreement": statistics.fmean(shares) if shares else None,
        "chance": by_chance(genotype, space),
    }


def rows(found: Mapping) -> list[tuple[str, str]]:
    """(name, words) for tables, of `of_search` and, under "searches", of `between`."""
    if not found:
        return []
    listed = [
        ("edges decided", f"{found['decided']} of {found['edges']}, {found['clear']} clearly"),
        ("cells unchanged", f"since epoch {found['settled']} of {found['epochs']}"),
    ]
    for name, key in (("agreement, last third", "agreement"), ("agreement, searches", "searches")):
        if found.get(key) is not None:
            share, chance = 100 * found[key], 100 * found["chance"]
            listed.append((name, f"{share:.0f} % (by chance {chance:.0f} %)"))
    return listed


def agreement(first: Genotype, second: Genotype) -> float:
    """The share of the operations that two genotypes have in common, at the same places."""
    one, other = _inputs(first), _inputs(second)
    most = max(one.total(), other.total())
    return (one & other).total() / most if most else 1.0


def between(genotypes: Sequence[Genotype]) -> float | None:
    """Mean agreement over all pairs; None of fewer than two."""
    pairs = list(itertools.combinations(genotypes, 2))
    return statistics.fmean(agreement(*pair) for pair in pairs) if pairs else None


def by_chance(genotype: Genotype, space: SearchSpace) -> float:
    """Expected agreement of two random cells that keep as many inputs a node as this genotype.

    The sources and the operations of each are drawn uniformly. A node's k of n edges have k^2 / n
    in common, and each of those has the same of O operations once in O.
    """
    choices = len([name for name in space.candidates if name != "none"])
    common, kept = 0.0, 0
    for nodes, _ in genotype.cells.values():
        for target, node in zip(space.intermediate, nodes, strict=True):
            common += len(node) ** 2 / (len(space.incoming(target)) * choices)
            kept += len(node)
    return common / kept if kept else 1.0


def _inputs(genotype: Genotype) -> Counter:
    return Counter(
        (cell, target, operation, source)
        for cell, (nodes, _) in genotype.cells.items()
        for target, node in enumerate(nodes)
        for operation, source in node
    )
