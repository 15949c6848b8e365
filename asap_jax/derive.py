"""From alphas and masks to a genotype, on the host."""

import jax
import numpy as np

from asap_jax.genotypes import Genotype, Node
from asap_jax.relaxation import masked_softmax
from asap_jax.spaces import CELL_TYPES, SearchSpace

EDGES = {"top2": 2, "all": None}  # config name -> inputs a node keeps


def strongest(alphas, masks, space: SearchSpace, inputs_per_node: int | None) -> Genotype:
    """Each edge's strongest living candidate; of each node's edges the strongest few.

    An edge is ranked by its candidate's weight in the softmax over all N alphas at T = 1, where a
    pruned candidate still counts with the alpha it was frozen at. `none` is never chosen. Ties go
    to the lower index. With `inputs_per_node` 2 this is DARTS' rule; None keeps every edge.

    Args:
      alphas, masks: {cell type: [E, O]}.
      space: the edges and candidates they stand for.
      inputs_per_node: edges a node keeps, or None for all.
    """
    cells = {cell: _cell(alphas[cell], masks[cell], space, inputs_per_node) for cell in CELL_TYPES}
    concat = tuple(range(2, space.nodes + 2))
    return Genotype(cells["normal"], concat, cells["reduce"], concat)


def most_probable(alphas, space: SearchSpace) -> Genotype:
    """Every edge's strongest candidate, and all edges, but for those that choose `none`."""

    def chosen(cell):
        choice = np.asarray(alphas[cell]).argmax(-1)
        return np.eye(len(space.candidates), dtype=bool)[choice]

    return all_living({cell: chosen(cell) for cell in CELL_TYPES}, space)


def all_living(masks, space: SearchSpace) -> Genotype:
    """Whatever candidates live, none or several an edge; `none` is left out.

    Args:
      masks: {cell type: [E, O] bool}.
      space: the edges and candidates they stand for.
    """

    def nodes(mask):
        return tuple(
            tuple(
                (name, space.edges[e][0])
                for e in space.incoming(target)
                for o, name in enumerate(space.candidates)
                if mask[e, o] and name != "none"
            )
            for target in range(2, space.nodes + 2)
        )

    masks = {cell: np.asarray(jax.device_get(mask)) for cell, mask in masks.items()}
    concat = tuple(range(2, space.nodes + 2))
    return Genotype(nodes(masks["normal"]), concat, nodes(masks["reduce"]), concat)


def _cell(alphas, mask, space, inputs_per_node) -> tuple[Node, ...]:
    weights = np.asarray(masked_softmax(alphas, np.ones_like(mask)))
    named = np.array([name != "none" for name in space.candidates])
    eligible = np.where(np.asarray(jax.device_get(mask)) & named, weights, -np.inf)
    choice, strength = eligible.argmax(-1), eligible.max(-1)
    nodes = []
    for target in range(2, space.nodes + 2):
        incoming = [e for e in space.incoming(target) if np.isfinite(strength[e])]
        kept = sorted(incoming, key=lambda e: -strength[e])[:inputs_per_node]
        nodes.append(tuple((space.candidates[choice[e]], space.edges[e][0]) for e in sorted(kept)))
    return tuple(nodes)
