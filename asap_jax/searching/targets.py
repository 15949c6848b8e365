"""A target for the size of the derived network: parameters or multiply-adds, as trained.

The loss of the alphas gets a term that pushes the expected size towards the target as long as the
cells that would be derived now miss it. When cells are derived, what still misses the target is
exchanged for live candidates of similar weight.

The size of a network is a constant plus what each chosen (edge, candidate) adds over all cells.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.layers.ops import OPERATIONS, Context, Weight, cost
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.models import STAGES, EvalNetwork, cell_types, count_parameters
from asap_jax.networks.models import multiply_adds as multiply_adds_of
from asap_jax.networks.spaces import SKELETONS, SearchSpace

TOLERANCE = 0.05  # relative
KINDS = ("parameters", "multiply-adds")
_Chosen = set[tuple[str, int, int]]  # (cell type, edge, candidate)


class Target(NamedTuple):
    """A size that the derived network should have.

    kind: one of `KINDS`.
    value: the size.
    base: the size of the network without the operations of its cells.
    tables: {cell type: [E, O]}, what a candidate on an edge adds, over all cells of the type.
    inputs: edges that a node of the derived cell keeps, or None for all.
    weight: of the term in the alphas' loss.
    space: the edges and candidates.
    """

    kind: str
    value: float
    base: float
    tables: Mapping[str, np.ndarray]
    inputs: int | None
    weight: float
    space: SearchSpace

    def size(self, genotype: Genotype) -> float:
        """The size of the network built from a genotype of the space."""
        return self.base + _sum(self.tables, _chosen(genotype, self.space))

    def misses(self, size: float) -> float:
        """log(size / value): 0 on target, positive above it."""
        return math.log(size / self.value)

    def ratio(self, mixtures: Mapping[str, Mixture]) -> jax.Array:
        """Size over target of the cells that the strongest candidates would give now."""
        total = jnp.float32(self.base)
        for weights, table in self._shares(mixtures):
            best = weights.argmax(-1)
            strength = jnp.take_along_axis(weights, best[:, None], 1)[:, 0]
            sizes = jnp.take_along_axis(table, best[:, None], 1)[:, 0]
            for node in self._incoming():
                kept = jnp.argsort(-strength[node])[: self.inputs]
                total += sizes[node][kept].sum()
        return total / self.value

    def penalty(self, mixtures: Mapping[str, Mixture]) -> jax.Array:
        """The term in the alphas' loss: weight * log(ratio) * log(expected size).

        Its gradient is that of the expected size, in proportion to how far the cells that would be
        derived now are from the target: downwards if they are too large, upwards if too small.
        """
        expected = jnp.float32(self.base)
        for weights, table in self._shares(mixtures):
            sizes = (weights * table).sum(-1)
            for node in self._incoming():
                share = 1 if self.inputs is None else min(1.0, self.inputs / len(node))
                expected += share * sizes[node].sum()
        return self.weight * lax.stop_gradient(jnp.log(self.ratio(mixtures))) * jnp.log(expected)

    def _shares(self, mixtures) -> Iterator[tuple[jax.Array, jax.Array]]:
        """For each cell type, [E, O]: the candidates' weights, which sum to 1; their sizes."""
        named = np.array([name != "none" for name in self.space.candidates])
        for cell, table in self.tables.items():
            weights = jnp.abs(mixtures[cell].weights)  # strengths can be negative
            if not SKELETONS[self.space.skeleton].derives_none:
                weights = weights * named
            total = weights.sum(-1, keepdims=True)
            yield weights / jnp.maximum(total, 1e-12), jnp.asarray(table, jnp.float32)

    def _incoming(self) -> list[np.ndarray]:
        return [np.asarray(self.space.incoming(node)) for node in self.space.intermediate]

    def fit(self, genotype: Genotype, weights: Mapping, masks: Mapping) -> Genotype:
        """Exchanges operations until the size is within `TOLERANCE` of the target.

        An exchange replaces one operation of a node by another live candidate, on the same edge or
        on one that the node does not use. Where edges may stay empty, it may also drop or add one.
        Each time, of the exchanges that bring the size closer the one is made that loses least, in
        log weight per progress; if none does, of the pairs of them. The size stays off the target
        where no pair helps either.

        Args:
          genotype: the derived cells.
          weights: {cell type: [E, O]}, how strong a candidate is.
          masks: {cell type: [E, O] bool}, live candidates.
        """
        chosen = _chosen(genotype, self.space)
        strength = {c: np.log(np.maximum(np.abs(np.asarray(w)), 1e-9)) for c, w in weights.items()}
        live = {cell: np.asarray(mask) for cell, mask in masks.items()}
        size = self.size(genotype)
        while abs(self.misses(size)) > math.log1p(TOLERANCE):
            exchanges = list(self._exchanges(chosen, live))
            best = self._best(exchanges, size, strength)
            if not best:
                break
            for removed, added in best:
                chosen = (chosen - set(removed)) | set(added)
                size += _sum(self.tables, added) - _sum(self.tables, removed)
        return _genotype(chosen, genotype, self.space)

    def _best(self, exchanges, size: float, strength) -> list[tuple[tuple, tuple]]:
        """The best exchange or pair of exchanges, see `fit`; empty if none brings `size` closer."""
        grows = np.array(
            [_sum(self.tables, new) - _sum(self.tables, old) for old, new in exchanges]
        )
        loses = np.array([_sum(strength, old) - _sum(strength, new) for old, new in exchanges])
        places = [next((c, self.space.edges[e][1]) for c, e, _ in (*a, *b)) for a, b in exchanges]
        distinct = np.array([[one != other for other in places] for one in places], bool)
        for size_after, lost, allowed in (
            (size + grows, loses, np.ones(len(exchanges), bool)),
            (size + np.add.outer(grows, grows), np.add.outer(loses, loses), distinct),
        ):
            if not size_after.size:
                break
            progress = abs(self.misses(size)) - np.abs(np.log(size_after / self.value))
            helps = allowed & (progress > 1e-9)
            if helps.any():
                price = np.where(helps, np.maximum(lost, 0) / np.where(helps, progress, 1), np.inf)
                index = np.unravel_index(np.argmin(price), price.shape)
                return [exchanges[i] for i in index]
        return []

    def _exchanges(self, chosen: _Chosen, live) -> Iterator[tuple[tuple, tuple]]:
        """(removed, added) places of the allowed exchanges, in a fixed order."""
        space, empties = self.space, SKELETONS[self.space.skeleton].derives_none
        named = [o for o, name in enumerate(space.candidates) if name != "none"]
        for cell in space.cell_types:
            for node in space.intermediate:
                edges = space.incoming(node)
                used = sorted((e, o) for c, e, o in chosen if c == cell and e in edges)
                full = {e for e, _ in used}
                for e, o in used:
                    for other in edges:
                        if other != e and (other in full or empties):
                            continue
                        for op in named:
                            new = (cell, other, op)
                            if live[cell][other, op] and new not in chosen:
                                yield ((cell, e, o),), (new,)
                    if empties and len(used) > 1:
                        yield ((cell, e, o),), ()
                for e in edges if empties else ():
                    for op in named if e not in full else ():
                        if live[cell][e, op]:
                            yield (), ((cell, e, op),)


def make_target(
    kind: str,
    value: float,
    weight: float,
    inputs: int | None,
    space: SearchSpace,
    build: Callable[[Genotype], EvalNetwork],
    image_shape,
) -> Target:
    """Measures a target's tables on the network that is trained.

    Args:
      kind, value, weight, inputs, space: see `Target`.
      build: genotype -> the network that is trained.
      image_shape: [H, W, C] of the images.

    Raises:
      ValueError: no cell of the space has about that size; says which sizes there are.
    """
    simplest = _simplest(space, inputs)
    network = build(simplest)
    tables = _tables(kind, space, network, image_shape)
    target = Target(kind, float(value), 0.0, tables, inputs, weight, space)
    if kind == "parameters":
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        variables = jax.eval_shape(
            lambda x: network.init(jax.random.key(0), x, Context(reference=True)), images
        )
        whole = count_parameters(variables["params"])
    else:
        whole = multiply_adds_of(network, image_shape)
    target = target._replace(base=whole - target.size(simplest))
    least, most = (target.base + _extreme(target, pick) for pick in (min, max))
    if not least * (1 - TOLERANCE) <= value <= most * (1 + TOLERANCE):
        raise ValueError(
            f"networks of this space and config.train have {least:,.0f} to {most:,.0f} {kind}, got "
            f"{value:,.0f}: choose another target, or change config.train.channels or cells"
        )
    return target


def _extreme(target: Target, pick: Callable) -> float:
    """The smallest or largest size that a cell's operations add."""
    space, total = target.space, 0.0
    empties = SKELETONS[space.skeleton].derives_none
    named = [o for o, name in enumerate(space.candidates) if name != "none"]
    for cell in space.cell_types:
        for node in space.intermediate:
            sizes = sorted(
                (pick(target.tables[cell][e, named]) for e in space.incoming(node)),
                reverse=pick is max,
            )
            count = len(sizes) if target.inputs is None else target.inputs
            count = 1 if empties and pick is min else count
            total += sum(sizes[:count])
    return total


def _tables(kind, space, network: EvalNetwork, image_shape) -> dict[str, np.ndarray]:
    """{cell type: [E, O]}: what each candidate adds, summed over the cells of its type."""
    tables = {cell: np.zeros(space.shape) for cell in space.cell_types}
    for cell, channels, shape in _cells(network, image_shape):
        for stride, edges in space.by_stride(cell == "reduce").items():
            entering = shape
            if cell == "reduce" and stride == 1:
                entering = tuple(-(-side // 2) for side in shape)
            for o, name in enumerate(space.candidates):
                if name != "none":
                    tables[cell][edges, o] += _measured(kind, name, channels, stride, entering)
    return tables


def _measured(kind, name, channels, stride, shape) -> int:
    layer = OPERATIONS[name](channels, stride, True)
    leaves = jax.tree.leaves(layer.weights, is_leaf=lambda leaf: isinstance(leaf, Weight))
    if kind == "parameters":
        return sum(math.prod(leaf.shape) for leaf in leaves)
    params = jax.tree.map(
        lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32),
        dict(layer.weights),
        is_leaf=lambda leaf: isinstance(leaf, Weight),
    )
    x, context = jax.ShapeDtypeStruct((1, *shape, channels), jnp.float32), Context(reference=True)
    stats = jax.eval_shape(layer.stats)
    return cost(lambda p, s, x: layer.apply(p, s, x, context)[0], params, stats, x)


def _cells(network: EvalNetwork, image_shape) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(cell type, channels, (H, W) of its input maps) of each cell of the network."""
    channels, shape = network.channels, tuple(image_shape[:2])
    for _ in range(3 if network.stem == "imagenet" else 0):
        shape = tuple(-(-side // 2) for side in shape)
    skeleton = network.genotype.skeleton
    for i, kind in enumerate(cell_types(skeleton, network.cells)):
        if kind == "reduce":
            channels *= 2
        elif skeleton == "nasbench201" and i and i % (network.cells // STAGES) == 0:
            channels, shape = 2 * channels, tuple(side // 2 for side in shape)
        yield kind, channels, shape
        if kind == "reduce":
            shape = tuple(-(-side // 2) for side in shape)


def _sum(tables, places) -> float:
    return sum(tables[cell][e, o] for cell, e, o in places)


def _chosen(genotype: Genotype, space: SearchSpace) -> _Chosen:
    return {
        (cell, space.edges.index((source, target)), space.candidates.index(op))
        for cell in space.cell_types
        for target, node in enumerate(genotype.cells[cell][0], space.inputs)
        for op, source in node
    }


def _genotype(chosen: _Chosen, before: Genotype, space: SearchSpace) -> Genotype:
    """The genotype of the chosen places; nodes that did not change are as in `before`."""

    def nodes(cell):
        for target, node in enumerate(before.cells[cell][0], space.inputs):
            now = tuple(
                (space.candidates[o], space.edges[e][0])
                for c, e, o in sorted(chosen)
                if c == cell and space.edges[e][1] == target
            )
            yield node if set(node) == set(now) else now

    cells = {cell: tuple(nodes(cell)) for cell in space.cell_types}
    reduce = cells.get("reduce", before.reduce)
    return dataclasses.replace(before, normal=cells["normal"], reduce=reduce)


def _simplest(space: SearchSpace, inputs: int | None) -> Genotype:
    """Cells with the same operation on the first edges of each node."""
    op = next(name for name in space.candidates if name != "none")
    node = [
        tuple((op, space.edges[e][0]) for e in space.incoming(target)[:inputs])
        for target in space.intermediate
    ]
    concat = tuple(space.intermediate)
    if "reduce" not in space.cell_types:
        return Genotype(tuple(node), concat[-1:], skeleton=space.skeleton)
    return Genotype(tuple(node), concat, tuple(node), concat, space.skeleton)
