"""Search spaces: a cell's edges, the candidates on each, and how cells are stacked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from asap_jax.layers.ops import OPERATIONS, Layer, register


@dataclass(frozen=True)
class Skeleton:
    """How a network is built from its cells.

    Attributes:
      inputs: number of input nodes of a cell; the intermediate nodes follow them.
      cell_types: cell types with their own alphas.
      normed_pools: in the supernet, pooling candidates are followed by a norm without parameters.
      derives_none: whether an edge whose strongest candidate is `none` is dropped; otherwise it
        takes the strongest of the other candidates.
    """

    inputs: int
    cell_types: tuple[str, ...]
    normed_pools: bool
    derives_none: bool


SKELETONS = {
    # Cells read the outputs of the two previous cells and concatenate their nodes; two of them
    # halve the maps, by edges of stride 2 from the input nodes (Zoph et al., 2018; DARTS).
    "darts": Skeleton(2, ("normal", "reduce"), True, False),
    # Cells read the previous cell, their last node is their output; residual blocks halve the maps
    # (Dong and Yang, 2020, arXiv:2001.00326).
    "nasbench201": Skeleton(1, ("normal",), False, True),
}


@dataclass(frozen=True)
class SearchSpace:
    """A cell as a directed acyclic graph.

    The first nodes are the cell's inputs (two in the "darts" skeleton: the outputs of the two
    previous cells); the intermediate nodes follow.

        SearchSpace(
            {"sep_conv_3x3": OPERATIONS["sep_conv_3x3"], "ghost": my_ghost_module},
            nodes=2,
            edges=((0, 2), (1, 2), (1, 3), (2, 3)),
        )

    Attributes:
      candidates: names in `ops.OPERATIONS`, [O]; their order is the order of the alphas. A dict
        {name: operation} registers unknown ones, see `ops.register`.
      nodes: number of intermediate nodes.
      edges: (source, target) pairs, [E], by ascending target; by default every earlier node feeds
        every later one.
      skeleton: name in `SKELETONS`: the network that the cells form.
    """

    candidates: tuple[str, ...]
    nodes: int = 4
    edges: tuple[tuple[int, int], ...] = ()
    skeleton: str = "darts"

    def __post_init__(self):
        if self.nodes < 1:
            raise ValueError(f"a cell has at least one intermediate node, got nodes={self.nodes}")
        if self.skeleton not in SKELETONS:
            raise ValueError(
                f"skeleton has to be one of {', '.join(SKELETONS)}, got {self.skeleton!r}"
            )
        own = _operations(self.candidates)
        object.__setattr__(self, "candidates", tuple(self.candidates))
        edges = self.edges or [
            (source, target) for target in self.intermediate for source in range(target)
        ]
        object.__setattr__(self, "edges", tuple((int(s), int(t)) for s, t in edges))
        for name in self.candidates:
            if name not in OPERATIONS and name not in own:
                raise ValueError(
                    f"unknown candidate {name!r}: the known operations are "
                    f"{', '.join(OPERATIONS)}; pass your own as a dict of name -> operation"
                )
        distinct = set(self.candidates)
        if len(distinct) < max(2, len(self.candidates)) or distinct == {"none"}:
            raise ValueError(
                f"candidates have to be at least two different operations, got {self.candidates}"
            )
        if len(set(self.edges)) < len(self.edges):
            raise ValueError(f"two edges lead from one node to the same other: got {self.edges}")
        targets = [target for _, target in self.edges]
        if targets != sorted(targets) or set(targets) != set(self.intermediate):
            raise ValueError(
                f"edges have to be sorted by target and reach each node {self.inputs}.."
                f"{self.inputs + self.nodes - 1}: got {self.edges}"
            )
        if any(not 0 <= source < target for source, target in self.edges):
            raise ValueError(
                f"an edge has to lead from an earlier node to a later: got {self.edges}"
            )
        for name, operation in own.items():
            register(name, operation)

    @property
    def inputs(self) -> int:
        """Number of input nodes of a cell."""
        return SKELETONS[self.skeleton].inputs

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Cell types with their own alphas."""
        return SKELETONS[self.skeleton].cell_types

    @property
    def intermediate(self) -> range:
        """Indices of the intermediate nodes."""
        return range(self.inputs, self.inputs + self.nodes)

    @property
    def shape(self) -> tuple[int, int]:
        """[E, O], the shape of a cell type's alphas."""
        return len(self.edges), len(self.candidates)

    def incoming(self, target: int) -> list[int]:
        """Indices of the edges into node `target`, in order."""
        return [e for e, (_, t) in enumerate(self.edges) if t == target]

    def by_stride(self, reduction: bool) -> dict[int, list[int]]:
        """{stride: indices of its edges}, in the order in which a cell visits them."""
        every = range(len(self.edges))
        if not reduction:
            return {1: list(every)}
        entering = [e for e in every if self.edges[e][0] < self.inputs]
        return {2: entering, 1: [e for e in every if e not in entering]}


def _operations(
    candidates: Sequence[str] | Mapping[str, Callable[[int, int, bool], Layer]],
) -> dict[str, Callable[[int, int, bool], Layer]]:
    """The operations of candidates given as a dict, by name; none of plain names."""
    return dict(candidates) if isinstance(candidates, Mapping) else {}


ASAP = SearchSpace(
    (
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
    )
)

DARTS = SearchSpace(
    (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    )
)

NASBENCH201 = SearchSpace(
    ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    nodes=3,
    skeleton="nasbench201",
)

SPACES = {"asap": ASAP, "darts": DARTS, "nasbench201": NASBENCH201}
