"""The heart of the supernet: all mixed edges of a cell in one loop.

The parameters of a candidate are stacked over the edges, and one `lax.scan` walks the edges in
topological order with a `lax.cond` around each candidate. So the compiler sees each candidate once
a cell, and a candidate that is not active costs no time, with no recompilation: a mask saves what
removing it from the graph would save.

The gradient is written here as well. Its only residuals are the cell's node maps; it walks the
edges backwards, recomputes each active candidate and adds up the nodes' cotangents. By autodiff the
scan would keep an input per edge and candidate. The backward pass is made of differentiable
primitives, so second derivatives are taken reverse over reverse.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.ops import Context, Layer, draw, draw_kept


class Edges(NamedTuple):
    """Edges of one stride, static.

    layers: candidate name -> layer, [O].
    sources, targets: node indices, [E], by rising target.
    in_place: the edges lead from nodes of the cell to later ones (stride 1), or from the maps
      that enter it to its nodes (stride 2).
    context: how to run the layers.
    share: the candidates see the first 1 / share of the channels; the others pass by, and all are
      shuffled (PC-DARTS).
    dropped: candidates whose output goes through dropout.
    """

    layers: tuple[tuple[str, Layer], ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    in_place: bool
    context: Context
    share: int = 1
    dropped: tuple[str, ...] = ()


class Variables(NamedTuple):
    """What differs from edge to edge, stacked on the first axis.

    params, stats: {candidate: tree of [E, ...]}; candidates without any are left out.
    weights: [E, O].
    active: [E, O] bool.
    edge_weights: [E], what the channels that pass by are multiplied by; None if share is 1.
    dropout: (key data [E, ...] uint32, rates [E]), or None if nothing is dropped.
    learn: [E] bool, see `ops.Context`; None for True.
    """

    params: Mapping
    stats: Mapping
    weights: jax.Array
    active: jax.Array
    edge_weights: jax.Array | None = None
    dropout: tuple[jax.Array, jax.Array] | None = None
    learn: jax.Array | None = None


def stack_params(layers: Mapping[str, Layer], edges: int, key):
    """{candidate: parameters of its `edges` copies, stacked on the first axis}."""
    return draw(
        {name: layer.weights for name, layer in layers.items() if layer.weights}, key, (edges,)
    )


def stack_stats(layers: Mapping[str, Layer], edges: int):
    """{candidate: running statistics of its `edges` copies, stacked on the first axis}."""
    made = {name: layer.stats() for name, layer in layers.items()}
    return {
        name: jax.tree.map(lambda s: jnp.broadcast_to(s, (edges, *s.shape)), stats)
        for name, stats in made.items()
        if stats
    }


@partial(jax.jit, static_argnums=0)
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_edges(edges: Edges, variables: Variables, inputs, nodes):
    """Adds every edge's mixed operation (eq. 1 and 2) to the node it leads to.

    Args:
      edges: which edges, and how to run them.
      variables: their parameters, statistics, weights and activity.
      inputs: [2, N, H, W, C], the maps that enter the cell; read when not `edges.in_place`.
      nodes: [2 + nodes, N, h, w, C], the node maps so far; read as well when `edges.in_place`.

    Returns:
      (nodes with the edges' outputs added, new statistics).
    """

    def add_edge(nodes, edge):
        v, source, target = edge
        x = (nodes if edges.in_place else inputs)[source]
        y, stats = _mixed(edges, v, _part(edges, x), _part(edges, nodes[target]).shape)
        return nodes.at[target].add(_join(edges, y, v.edge_weights, x)), stats

    return lax.scan(add_edge, nodes, (variables, *_indices(edges)))


def scan_edges_reference(edges: Edges, variables: Variables, inputs, nodes):
    """The same as `scan_edges`, edge by edge, every candidate computed, autodiff."""
    new_stats = []
    for e, (source, target) in enumerate(zip(edges.sources, edges.targets, strict=True)):
        v = jax.tree.map(lambda leaf, e=e: leaf[e], variables)
        x = (nodes if edges.in_place else inputs)[source]
        stats, total = dict(v.stats), 0.0
        for o, (name, layer) in enumerate(edges.layers):
            y, new = layer.apply(
                v.params.get(name, {}), v.stats.get(name, {}), _part(edges, x), edges.context
            )
            total += v.weights[o] * _dropped(edges, name, v, y)
            if new:
                stats[name] = jax.tree.map(
                    lambda n, s, live=v.active[o]: jnp.where(live, n, s), new, stats[name]
                )
        nodes = nodes.at[target].add(_join(edges, total, v.edge_weights, x))
        new_stats.append(stats)
    return nodes, jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_stats)


def _indices(edges):
    return jnp.asarray(edges.sources), jnp.asarray(edges.targets)


def _part(edges, x):
    """The channels of x [..., C] that the candidates see."""
    return x if edges.share == 1 else x[..., : x.shape[-1] // edges.share]


def _join(edges, mixed, edge_weight, x):
    """An edge's output [N, h, w, C]: the mixed channels beside those of x that pass by, shuffled.

    Where the edge halves its map, what passes by is max-pooled 2 x 2.
    """
    if edges.share == 1:
        return mixed
    batch, height, width, channels = mixed.shape
    rest = x[..., channels:]
    if height < x.shape[1]:
        rest = rest.reshape(batch, height, 2, width, 2, -1).max((2, 4))
    y = jnp.concatenate([mixed, edge_weight * rest], -1)
    groups = y.reshape(batch, height, width, edges.share, channels)
    return groups.swapaxes(-1, -2).reshape(y.shape)


def _dropped(edges, name, v, y):
    """y, with the dropout that the candidate has while training."""
    if name not in edges.dropped or not edges.context.train:
        return y
    key_data, rate = v.dropout
    keep = draw_kept(jax.random.wrap_key_data(key_data), rate, y.shape, edges.context)
    return y * keep / (1 - rate)


def _mixed(edges, v, x, shape):
    """One mixed operation: (sum of weight * candidate(x) over the active ones, new statistics)."""
    total, new_stats = jnp.zeros(shape, x.dtype), dict(v.stats)
    for o, (name, layer) in enumerate(edges.layers):

        def compute(params, stats, x, weight, layer=layer, name=name):
            y, new = layer.apply(params, stats, x, edges.context)
            return weight * _dropped(edges, name, v, y), new

        def skip(params, stats, x, weight):
            return jnp.zeros(shape, x.dtype), stats

        params, stats = v.params.get(name, {}), v.stats.get(name, {})
        y, new = lax.cond(v.active[o], compute, skip, params, stats, x, v.weights[o])
        total += y
        if new:
            new_stats[name] = new
    return total, new_stats


def _forward(edges, variables, inputs, nodes):
    result, stats = scan_edges(edges, variables, inputs, nodes)
    return (result, stats), (variables, result if edges.in_place else inputs)


def _backward(edges, residuals, cotangents):
    variables, maps = residuals
    g_nodes, _ = cotangents
    return _pull_back(edges, variables, maps, g_nodes)


@partial(jax.jit, static_argnums=0)  # cells of equal shape, and both passes, share the trace
def _pull_back(edges, variables, maps, g_nodes):
    def pull_edge(g_sources, edge):
        v, source, target = edge
        g, x = (g_sources if edges.in_place else g_nodes)[target], maps[source]
        g_edge_weight, g_passed = None, None
        if edges.share > 1:
            mixed = jnp.zeros(_part(edges, g).shape, g.dtype)  # _join is linear in it
            _, pull = jax.vjp(partial(_join, edges), mixed, v.edge_weights, x)
            g, g_edge_weight, g_passed = pull(g)
        g_params, g_weights, g_x = _mixed_gradient(edges, v, _part(edges, x), g)
        if edges.share > 1:
            g_x = g_passed.at[..., : g_x.shape[-1]].add(g_x)
        return g_sources.at[source].add(g_x), (g_params, g_weights, g_edge_weight)

    start = g_nodes if edges.in_place else jnp.zeros_like(maps)
    g_sources, (g_params, g_weights, g_edge_weights) = lax.scan(
        pull_edge, start, (variables, *_indices(edges)), reverse=True
    )
    # The running statistics enter no training loss; in evaluation they are constants.
    g_variables = Variables(
        g_params,
        jax.tree.map(jnp.zeros_like, variables.stats),
        g_weights,
        None,
        g_edge_weights,
        variables.dropout and (None, jnp.zeros_like(variables.dropout[1])),
        None,
    )
    if edges.in_place:
        return g_variables, None, g_sources
    return g_variables, g_sources, g_nodes


scan_edges.__wrapped__.defvjp(_forward, _backward)


def _mixed_gradient(edges, v, x, g):
    """Gradients of <g, mixed(x)>: (of the parameters, of the weights [O], of x)."""
    g_params, g_weights, g_x = {}, [], jnp.zeros_like(x)
    context = edges.context._replace(learn=v.learn)
    for o, (name, layer) in enumerate(edges.layers):

        def compute(params, stats, x, weight, g, layer=layer, name=name):
            def output(params, x, weight):
                y = layer.apply(params, stats, x, context)[0]
                return weight * _dropped(edges, name, v, y)

            return jax.vjp(output, params, x, weight)[1](g)

        def skip(params, stats, x, weight, g):
            return jax.tree.map(jnp.zeros_like, (params, x, weight))

        params, stats = v.params.get(name, {}), v.stats.get(name, {})
        g_p, g_xo, g_w = lax.cond(v.active[o], compute, skip, params, stats, x, v.weights[o], g)
        g_x += g_xo
        if g_p:
            g_params[name] = g_p
        g_weights.append(g_w)
    return g_params, jnp.stack(g_weights), g_x
