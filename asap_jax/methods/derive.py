"""Derives a genotype from alphas and masks, on the host."""

import jax
import numpy as np

from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.genotypes import Genotype, Node
from asap_jax.networks.spaces import SKELETONS, SearchSpace

EDGES = {"top2": 2, "all": None}  # config name -> inputs a node keeps


def strongest(
    alphas, masks, space: SearchSpace, inputs_per_node: int | None, edge_weights=None
) -> Genotype:
    """Each edge's strongest unpruned candidate, for the strongest edges of each node.

    An edge is ranked by its candidate's weight in the softmax over all N alphas at T = 1, where a
    pruned candidate still counts with its frozen alpha. `none` is never chosen; if the skeleton
    derives `none`, an edge on which it is strongest is dropped. Ties go to the lower index. With
    `inputs_per_node` 2 this is DARTS' rule; None keeps every edge.

    Args:
      alphas, masks: {cell type: [E, O]}.
      space: their edges and candidates.
      inputs_per_node: edges that a node keeps, or None for all.
      edge_weights: {cell type: [E]}, factors of the edges' ranks; None for none (PC-DARTS).

    Raises:
      ValueError: an alpha is not finite.
    """
    _check_finite(alphas)

    def ranked(cell):
        weights = masked_softmax(alphas[cell], np.ones_like(masks[cell]))
        return weights if edge_weights is None else weights * edge_weights[cell][:, None]

    return of_weights({c: ranked(c) for c in space.cell_types}, masks, space, inputs_per_node)


def of_weights(weights, masks, space: SearchSpace, inputs_per_node: int | None) -> Genotype:
    """Like `strongest`, with weights {cell type: [E, O]} instead of alphas.

    Raises:
      ValueError: a weight is not finite.
    """
    _check_finite(weights)
    cells = {
        cell: _cell(np.asarray(weights[cell]), masks[cell], space, inputs_per_node)
        for cell in space.cell_types
    }
    return _genotype(cells, space)


def strongest_pairs(alphas, masks, space: SearchSpace, pairs_per_node: int) -> Genotype:
    """Each node's strongest (operation, source) pairs, whatever their sources.

    This is the rule of GDAS' code in DARTS' space: two of a node's inputs may come from one source
    through two operations. Ranked as in `strongest`; `none` is never chosen, ties go to the lower
    index.
    """

    def nodes(cell):
        weights = masked_softmax(alphas[cell], np.ones_like(masks[cell]))
        living = np.where(np.asarray(jax.device_get(masks[cell])), np.asarray(weights), -np.inf)
        for target in space.intermediate:
            pairs = [
                (e, o)
                for e in space.incoming(target)
                for o, name in enumerate(space.candidates)
                if name != "none" and np.isfinite(living[e, o])
            ]
            kept = sorted(pairs, key=lambda pair: -living[pair])[:pairs_per_node]
            yield tuple((space.candidates[o], space.edges[e][0]) for e, o in sorted(kept))

    return _genotype({cell: tuple(nodes(cell)) for cell in space.cell_types}, space)


def most_probable(alphas, space: SearchSpace) -> Genotype:
    """Every edge's strongest candidate, for all edges except those that choose `none`.

    Raises:
      ValueError: an alpha is not finite.
    """
    _check_finite(alphas)

    def chosen(cell):
        choice = np.asarray(alphas[cell]).argmax(-1)
        return np.eye(len(space.candidates), dtype=bool)[choice]

    return all_living({cell: chosen(cell) for cell in space.cell_types}, space)


def all_living(masks, space: SearchSpace) -> Genotype:
    """All unpruned candidates, none or several per edge, except `none`.

    Args:
      masks: {cell type: [E, O] bool}.
      space: their edges and candidates.
    """

    def nodes(mask):
        return tuple(
            tuple(
                (name, space.edges[e][0])
                for e in space.incoming(target)
                for o, name in enumerate(space.candidates)
                if mask[e, o] and name != "none"
            )
            for target in space.intermediate
        )

    masks = jax.device_get(masks)
    return _genotype({cell: nodes(np.asarray(masks[cell])) for cell in space.cell_types}, space)


def _check_finite(weights) -> None:
    if not all(np.isfinite(each).all() for each in jax.device_get(jax.tree.leaves(weights))):
        raise ValueError(
            "no cells follow from weights that are not finite: the search has diverged, so lower "
            "its learning rates"
        )


def skips(genotype: Genotype) -> dict[str, int]:
    """{cell type: number of skip connections}."""
    return {
        cell: sum(op == "skip_connect" for node in nodes for op, _ in node)
        for cell, (nodes, _) in genotype.cells.items()
    }


def _genotype(cells, space) -> Genotype:
    """Combines the cells; a "darts" cell outputs all its nodes, a "nasbench201" cell its last."""
    concat = tuple(space.intermediate)
    if "reduce" not in SKELETONS[space.skeleton].cell_types:
        return Genotype(cells["normal"], concat[-1:], skeleton=space.skeleton)
    return Genotype(cells["normal"], concat, cells["reduce"], concat, space.skeleton)


def _cell(weights, mask, space, inputs_per_node) -> tuple[Node, ...]:
    named = np.array([name != "none" for name in space.candidates])
    living = np.where(np.asarray(jax.device_get(mask)), weights, -np.inf)
    if SKELETONS[space.skeleton].derives_none:
        nothing = ~named[living.argmax(-1)]
        living = np.where(nothing[:, None], -np.inf, living)
    eligible = np.where(named, living, -np.inf)
    choice, strength = eligible.argmax(-1), eligible.max(-1)
    nodes = []
    for target in space.intermediate:
        incoming = [e for e in space.incoming(target) if np.isfinite(strength[e])]
        kept = sorted(incoming, key=lambda e: -strength[e])[:inputs_per_node]
        nodes.append(tuple((space.candidates[choice[e]], space.edges[e][0]) for e in sorted(kept)))
    return tuple(nodes)
