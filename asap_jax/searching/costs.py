"""Expected cost of a cell as a differentiable function of the mixtures (SNAS, eq. 11-13).

A candidate on an edge has three measures, for one image: parameters, multiply-adds and memory
traffic, the number of values its convolutions and pools read and write. An edge's expected cost is
the mean over its candidates, weighted by the mixture.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.layers.ops import OPERATIONS, POOLS, Context, Weight, cost, traffic
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.models import STAGES, Supernet, cell_types


class Constraint(NamedTuple):
    """A cost term in the loss of the alphas.

    weight: its factor, lambda.
    expected: {cell type: Mixture} -> scalar.
    """

    weight: float
    expected: Callable[[Mapping[str, Mixture]], jax.Array]


def measures(name: str, channels: int, stride: int, shape: tuple[int, int]) -> tuple[int, int, int]:
    """(parameters, multiply-adds, memory traffic) of an operation on a map [H, W, channels].

    A pool counts as nine operations per output value, an identity as reading and writing its map;
    `none` costs nothing. Norms and ReLUs are not counted.
    """
    if name == "none":
        return 0, 0, 0
    layer = OPERATIONS[name](channels, stride, False)
    leaves = jax.tree.leaves(layer.weights, is_leaf=lambda leaf: isinstance(leaf, Weight))
    parameters = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    x = jax.ShapeDtypeStruct((1, *shape, channels), jnp.float32)
    params = jax.tree.map(
        lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32),
        dict(layer.weights),
        is_leaf=lambda leaf: isinstance(leaf, Weight),
    )
    stats, context = jax.eval_shape(layer.stats), Context(reference=True)

    def run(params, stats, x):
        return layer.apply(params, stats, x, context)[0]

    out = jax.eval_shape(run, params, stats, x)
    if name in POOLS:
        return parameters, 9 * out.size, x.size + out.size
    moved = traffic(run, params, stats, x)
    return parameters, cost(run, params, stats, x), moved or x.size + out.size


def expected_log_cost(network: Supernet, image_shape) -> Callable:
    """{cell type: Mixture} -> the sum over edges of the mean logarithm of the three measures.

    As in SNAS' code with `--resource_efficient --log_penalty`: for each edge the mean of the logs
    of its expected parameters, multiply-adds and traffic, each at least 1; summed over the edges,
    averaged over the cells of a type, and summed over the types. With the logarithm only relative
    savings count: widths and image sizes only add a constant.

    Args:
      network: the supernet; candidates are counted at full width, regardless of `partial_channels`.
      image_shape: [H, W, C].
    """
    space, tables = network.space, {}
    for kind, channels, shape in _cells(network, image_shape):
        table = np.zeros((3, *space.shape), np.float32)
        for stride, indices in space.by_stride(kind == "reduce").items():
            side = tuple(-(-size // 2) for size in shape) if kind == "reduce" else shape
            entering = shape if stride == 2 else side
            for o, name in enumerate(space.candidates):
                found = measures(name, channels, stride, entering)
                table[:, indices, o] = np.asarray(found, np.float32)[:, None]
        tables.setdefault(kind, []).append(table)
    stacked = {kind: np.stack(found) for kind, found in tables.items()}

    def expected(mixtures):
        total = 0.0
        for kind, table in stacked.items():
            costs = jnp.sum(mixtures[kind].weights * table, -1)  # [cells, 3, E]
            total += jnp.log(jnp.maximum(costs, 1)).mean(1).sum(-1).mean()
        return total

    return expected


def _cells(network, image_shape):
    """(cell type, channels, (H, W) of the input maps) of each cell."""
    channels, shape = network.channels, tuple(image_shape[:2])
    length = network.cells // STAGES
    for i, kind in enumerate(cell_types(network.space.skeleton, network.cells)):
        if kind == "reduce":
            channels *= 2
        elif network.space.skeleton == "nasbench201" and i and i % length == 0:
            channels, shape = 2 * channels, tuple(size // 2 for size in shape)
        yield kind, channels, shape
        if kind == "reduce":
            shape = tuple(-(-size // 2) for size in shape)
