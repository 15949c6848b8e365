"""How sure a search is of its cells: margins, when they settled, agreement.

What the end of an epoch shows is kept in `Progress.history`, so that a checkpoint holds it.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.spaces import SKELETONS, SearchSpace

CLEAR = 0.2  # margin from which an edge counts as clearly decided
_CELLS, _MARGINS = "cells", "margins"  # keys of the history


def note(
    history: dict[str, list],
    epoch: int,
    genotype: Genotype,
    weights,
    masks,
    space: SearchSpace,
) -> None:
    """Notes the end of an epoch.

    Args:
      history: `Progress.history`.
      epoch: epochs completed before it.
      genotype: the cells that would be derived now.
      weights: the method's distribution over the candidates, {cell type: [E, O]}; None if it has
        none, and thus no margins.
      masks: of the candidates left, {cell type: [E, O]}.
      space: their edges and candidates.
    """
    cells = history.setdefault(_CELLS, [])  # [epoch, genotype as JSON] of each change
    text = genotype.to_json()
    if not cells or cells[-1][1] != text:
        cells.append([epoch, text])
    if weights is None:
        return
    before = history.get(_MARGINS, [{}])[0]
    derived = np.array(
        [name != "none" or SKELETONS[space.skeleton].derives_none for name in space.candidates]
    )
    history[_MARGINS] = [
        {
            cell: margins(weights[cell], np.asarray(masks[cell]) & derived, before.get(cell))
            for cell in weights
        }
    ]


def margins(weights, masks, before: Sequence[float | None] | None = None) -> list[float | None]:
    """Each edge's margin: its first candidate's lead over the second, as a share of all weights.

    1 if the first has all weight, 0 for a tie. An edge with one candidate left keeps the margin
    from before, since what it had last shows how close the decision was; None if it never had two.

    Args:
      weights, masks: [E, O], of the candidates that may be derived.
      before: margins at the end of the epoch before, [E].
    """
    found: list[float | None] = list(before or [None] * len(weights))
    for edge, (row, mask) in enumerate(zip(np.asarray(weights), np.asarray(masks), strict=True)):
        living = np.sort(row[mask.astype(bool)].astype(np.float64))[::-1]
        if len(living) > 1:
            total = living.sum()
            found[edge] = round(float((living[0] - living[1]) / total), 4) if total > 0 else 0.0
    return found


def of_search(
    history: Mapping[str, list],
    epochs: int,
    genotype: Genotype,
    masks,
    space: SearchSpace,
    stages: int = 1,
) -> dict:
    """What a search shows of its own certainty; {} if no epoch was noted.

    Args:
      history: `Progress.history` at the end.
      epochs: of the stage, all completed.
      genotype: the cells found.
      masks: of the candidates left at the end, {cell type: [E, O]}.
      space: of the last stage.
      stages: number of stages; the history is that of the last one.

    Returns:
      {"edges": number of them in all cell types,
       "decided": those with at most one candidate left,
       "clear": those with a margin of at least `CLEAR`; None for a method without a distribution,
       "margin": the median margin, or None,
       "settled": the epoch since which the cells stayed as they are, counted from 1; None if the
         search returned to cells from before,
       "epochs", "stages": of the (last) stage; of the search,
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
    shares, settled = [], None
    for (begin, cells), end in zip(changes, ends, strict=True):
        # The last epoch is the result itself, unless the search returned to an earlier one.
        count = min(end, last) - max(begin, since)
        shares += [agreement(cells, genotype)] * max(0, count)
    for begin, cells in reversed(changes):
        if cells != genotype:
            break
        settled = begin + 1
    of_edges = history.get(_MARGINS, [{}])[0].values()
    found = [margin for each in of_edges for margin in each if margin is not None]
    return {
        "edges": sum(len(mask) for mask in masks.values()),
        "decided": sum(int((np.asarray(mask).sum(1) <= 1).sum()) for mask in masks.values()),
        "clear": sum(margin >= CLEAR for margin in found) if of_edges else None,
        "margin": statistics.median(found) if found else None,
        "settled": settled,
        "epochs": epochs,
        "stages": stages,
        "agreement": statistics.fmean(shares) if shares else None,
        "chance": by_chance(genotype, space),
    }


def rows(found: Mapping) -> list[tuple[str, str]]:
    """(name, words) for tables, of `of_search` and, as "agreement_of_searches", of `between`."""
    if not found:
        return []
    listed = [("edges with one candidate", f"{found['decided']} of {found['edges']}")]
    if found["clear"] is not None:
        listed.append(("edges with a clear lead", f"{found['clear']} of {found['edges']}"))
    if found["settled"] is not None:
        epochs = f"{found['epochs']}{' of the last stage' * (found['stages'] > 1)}"
        listed.append(("cells unchanged", f"since epoch {found['settled']} of {epochs}"))
    for name, key in (
        ("agreement, last third", "agreement"),
        ("agreement, searches", "agreement_of_searches"),
    ):
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
