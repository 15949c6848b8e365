"""Execution plans: ways to compute the mixed edges of a supernet, all mathematically equal."""

from typing import NamedTuple

import jax
import numpy as np

from asap_jax.layers.ops import Weight, candidate
from asap_jax.networks.edge_scan import scan_edges, scan_edges_reference
from asap_jax.networks.edges_unrolled import unrolled_edges

PLANS = ("loop", "unrolled")


class Plan(NamedTuple):
    """How a supernet is computed; static under jit.

    name: "loop" visits a cell's edges in one loop and gates each candidate by whether it is active:
      compiled once, low in memory, suited to few, expensive kernels (`edge_scan`). "unrolled"
      computes only the live candidates, all edges of a source together, and is recompiled when
      there are fewer: suited to devices where many small kernels are slow (`edges_unrolled`).
    live: for "unrolled", ((cell type, [E][O] bools), ...) as tuples; None for all candidates.
    """

    name: str = "loop"
    live: tuple | None = None

    def add_edges(self, edges, indices, variables, inputs, nodes, cell_type):
        """(nodes with the edges' outputs added, updated running statistics); see `scan_edges`.

        `indices` are the edges' rows in the space.
        """
        if edges.context.reference:
            return scan_edges_reference(edges, variables, inputs, nodes)
        if self.name == "loop":
            return scan_edges(edges, variables, inputs, nodes)
        live = [(True,) * len(edges.layers)] * len(indices)
        if self.live is not None:
            live = [dict(self.live)[cell_type][e] for e in indices]
        return unrolled_edges(edges, live, variables, inputs, nodes)


def choose(name: str = "auto") -> str:
    """The plan for this backend; a CPU launches kernels cheaply and compiles slowly."""
    if name != "auto":
        return name
    return "loop" if jax.default_backend() == "cpu" else "unrolled"


def freeze(masks) -> tuple:
    """`Plan.live` from {cell type: [E, O] bools}."""
    return tuple((cell, tuple(tuple(map(bool, row)) for row in masks[cell])) for cell in masks)


def cost(masks, space) -> int:
    """Rough cost of computing the candidates of {cell: [E, O]}: 1 each, plus 1 per kernel.

    Kernels approximate a candidate's passes over a map; an edge's source does not matter.
    """
    layers = [candidate(name, 2, 1) for name in space.candidates]
    kernels = [
        len(jax.tree.leaves(layer.weights, is_leaf=lambda w: isinstance(w, Weight)))
        for layer in layers
    ]
    costs = 1 + np.asarray(kernels)
    return int(sum((np.asarray(mask) * costs).sum() for mask in masks.values()))
