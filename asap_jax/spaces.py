"""Search spaces: which edges a cell has, and which candidates stand on each."""

from dataclasses import dataclass

from asap_jax.ops import OPERATIONS


def _dense_edges(nodes: int) -> tuple[tuple[int, int], ...]:
    return tuple((source, target) for target in range(2, nodes + 2) for source in range(target))


@dataclass(frozen=True)
class SearchSpace:
    """A cell as a directed acyclic graph.

    Nodes 0 and 1 are the outputs of the two cells before; the intermediate nodes follow. The cell's
    output is the concatenation of all intermediate nodes. In a reduction cell the edges that leave
    nodes 0 and 1 have stride 2.

    Attributes:
      candidates: names in `ops.OPERATIONS`, [O]; their order is the order of the alphas.
      nodes: number of intermediate nodes.
      edges: (source, target) pairs, [E], by rising target; by default every earlier node feeds
        every later one.
    """

    candidates: tuple[str, ...]
    nodes: int = 4
    edges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if not self.edges:
            object.__setattr__(self, "edges", _dense_edges(self.nodes))
        for name in self.candidates:
            if name not in OPERATIONS:
                raise ValueError(
                    f"unknown candidate {name!r}: the known operations are "
                    f"{', '.join(OPERATIONS)}; add your own to asap_jax.ops.OPERATIONS"
                )
        distinct = set(self.candidates)
        if len(distinct) < max(2, len(self.candidates)) or distinct == {"none"}:
            raise ValueError(
                f"candidates have to be at least two different operations, got {self.candidates}"
            )
        targets = [target for _, target in self.edges]
        if targets != sorted(targets) or set(targets) != set(range(2, self.nodes + 2)):
            raise ValueError(
                f"edges have to be sorted by target and reach each node 2..{self.nodes + 1}: "
                f"got {self.edges}"
            )
        if any(not 0 <= source < target for source, target in self.edges):
            raise ValueError(
                f"an edge has to lead from an earlier node to a later: got {self.edges}"
            )

    def incoming(self, target: int) -> list[int]:
        """Indices of the edges into node `target`, in order."""
        return [e for e, (_, t) in enumerate(self.edges) if t == target]

    def by_stride(self, reduction: bool) -> dict[int, list[int]]:
        """{stride: indices of the edges that have it}; in the order in which a cell walks them."""
        every = range(len(self.edges))
        if not reduction:
            return {1: list(every)}
        entering = [e for e in every if self.edges[e][0] < 2]
        return {2: entering, 1: [e for e in every if e not in entering]}


CELL_TYPES = ("normal", "reduce")

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

SPACES = {"asap": ASAP, "darts": DARTS}
