"""Execution plans: how the mixed edges of a supernet are computed. The mathematics is one."""

from typing import NamedTuple

import jax
import numpy as np

from asap_jax.edge_scan import scan_edges, scan_edges_reference
from asap_jax.edges_unrolled import unrolled_edges
from asap_jax.ops import Weight, candidate

PLANS = ("loop", "unrolled")


class Plan(NamedTuple):
    """How a supernet is computed; static under jit.

    name: "loop" walks a cell's edges in one loop and asks of each candidate whether it is active:
      compiled once, small in memory, made for few and slow kernel starts (`edge_scan`). "unrolled"
      computes the live candidates, all edges of a source together, and is compiled anew when there
      are fewer: made for devices that many small kernels would starve (`edges_unrolled`).
    live: for "unrolled", ((cell type, [E][O] bools), ...) as tuples; None for all candidates.
    """

    name: str = "loop"
    live: tuple | None = None

    def add_edges(self, edges, indices, variables, inputs, nodes, cell_type):
        """(nodes with the outputs of the edges added, running statistics); see `scan_edges`.

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
    """The plan for this backend: a CPU starts kernels cheaply and compiles slowly."""
    if name != "auto":
        return name
    return "loop" if jax.default_backend() == "cpu" else "unrolled"


def freeze(masks) -> tuple:
    """`Plan.live` of {cell type: [E, O] bools}."""
    return tuple((cell, tuple(tuple(map(bool, row)) for row in masks[cell])) for cell in masks)


def cost(masks, space) -> int:
    """What computing the candidates of {cell: [E, O]} costs, roughly: 1, and 1 for each kernel.

    Kernels stand for the passes over a map that a candidate makes; where an edge leads from does
    not matter.
    """
    layers = [candidate(name, 2, 1) for name in space.candidates]
    kernels = [
        len(jax.tree.leaves(layer.weights, is_leaf=lambda w: isinstance(w, Weight)))
        for layer in layers
    ]
    costs = 1 + np.asarray(kernels)
    return int(sum((np.asarray(mask) * costs).sum() for mask in masks.values()))
