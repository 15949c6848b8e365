"""The heart of the supernet: all mixed edges of a cell in one loop.

The parameters of a candidate are stacked over the edges, and one `lax.scan` walks the edges, source
by source, with a gate around each candidate. So the compiler sees each candidate once a cell, and a
candidate that is not active costs no time, with no recompilation: a mask saves what removing it
from the graph would save. A candidate without parameters is the same on all edges of a source: it
is computed once, at the first of them, and added to all their targets.

The gradient is written here as well. Its only residuals are the cell's node maps and the
statistics of the batch norms; it walks the edges backwards, recomputes each active candidate and
adds up the nodes' cotangents. By autodiff the scan would keep an input per edge and candidate.

A gate is a loop of one turn or none, which works on its operands in place, where a `lax.cond`
copies them or makes zeros to add. Such a gate has no gradient of its own: where gradients are
differentiated again (`Context.twice`), it is a `lax.cond` around each candidate of each edge, and
the norms' statistics are computed again.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.batch_norm import blend
from asap_jax.ops import Context, Layer, draw, draw_kept


class Edges(NamedTuple):
    """Edges of one stride, static.

    layers: (candidate name, layer), [O].
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
      (nodes with the edges' outputs added, the running statistics after it).
    """
    return _forward(edges, variables, inputs, nodes)[0]


def scan_edges_reference(edges: Edges, variables: Variables, inputs, nodes):
    """The same as `scan_edges`, edge by edge, every candidate computed, autodiff."""
    new_stats = []
    for e, (source, target) in enumerate(zip(edges.sources, edges.targets, strict=True)):
        v = jax.tree.map(lambda leaf, e=e: leaf[e], variables)
        x = (nodes if edges.in_place else inputs)[source]
        stats, total = dict(v.stats), 0.0
        for o, (name, layer) in enumerate(edges.layers):
            y, new = layer.apply(
                v.params.get(name, {}), v.stats.get(name, {}), part(edges, x), edges.context
            )
            total += weighted(v.weights[o], dropped(edges, name, v.dropout, y))
            if new and edges.context.train:
                stats[name] = jax.tree.map(
                    lambda n, s, live=v.active[o]: jnp.where(live, n, s),
                    blend(stats[name], new),
                    stats[name],
                )
        nodes = nodes.at[target].add(join(edges, total, v.edge_weights, x))
        new_stats.append(stats)
    return nodes, jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_stats)


class _Walk(NamedTuple):
    """The order in which the edges are walked, and the edges that leave one source together.

    order: [E], edges by rising source: a node's inputs are complete before it is read.
    first: [E] bool, whether an edge is the first of its source, in that order.
    group: [E, K], the edges of the same source, in that order, the last repeated to fill the row.
    member: [E, K] bool, False where the row is filled up.
    """

    order: np.ndarray
    first: np.ndarray
    group: np.ndarray
    member: np.ndarray


def _walk(edges) -> _Walk:
    sources = np.asarray(edges.sources)
    order = np.argsort(sources, kind="stable")
    groups = [np.flatnonzero(sources == source) for source in sources[order]]
    width = max(map(len, groups))
    return _Walk(
        order,
        np.asarray([group[0] == e for group, e in zip(groups, order, strict=True)]),
        np.stack([group[np.minimum(np.arange(width), len(group) - 1)] for group in groups]),
        np.stack([np.arange(width) < len(group) for group in groups]),
    )


def shared(edges: Edges) -> tuple[int, ...]:
    """Indices of the candidates that give the same map on all edges of a source.

    They have no parameters, no dropout, and if they have statistics, these are the batch's.
    """
    context = edges.context
    if edges.share > 1 or context.twice:
        return ()
    return tuple(
        o
        for o, (name, layer) in enumerate(edges.layers)
        if not layer.weights and name not in edges.dropped and (context.train or not layer.stats())
    )


class _Group(NamedTuple):
    """What the first edge of a source does for all of them: [K], or [K, O]."""

    first: jax.Array
    targets: jax.Array
    weights: jax.Array
    active: jax.Array


def _walked(edges, variables):
    """The loop's operands, in the order of the walk: (variables, source, target, group)."""
    walk = _walk(edges)
    targets = np.asarray(edges.targets)
    group = _Group(
        jnp.asarray(walk.first),
        jnp.asarray(targets[walk.group]),
        variables.weights[walk.group],
        variables.active[walk.group] & walk.member[..., None],
    )
    ordered = jax.tree.map(lambda leaf: leaf[walk.order], variables)
    sources = jnp.asarray(np.asarray(edges.sources)[walk.order])
    return ordered, sources, jnp.asarray(targets[walk.order]), group


def _gate(edges, active, compute, operands, carry):
    """compute(operands, carry) if active, else carry as it is."""
    if edges.context.twice:
        return lax.cond(active, compute, lambda operands, carry: carry, operands, carry)

    def turn(i, carry):
        # The barrier ties the operands to the turn: else the compiler would compute what depends
        # on them alone ahead of the loop, whether it turns or not.
        _, tied = lax.optimization_barrier((i, operands))
        return compute(tied, carry)

    return lax.fori_loop(0, active.astype(jnp.int32), turn, carry)


def part(edges, x):
    """The channels of x [..., C] that the candidates see."""
    return x if edges.share == 1 else x[..., : x.shape[-1] // edges.share]


def weighted(weight, y):
    """The product, in the precision of the map y."""
    return (weight * y).astype(y.dtype)


def join(edges, mixed, edge_weight, x):
    """An edge's output [N, h, w, C]: the mixed channels beside those of x that pass by, shuffled.

    Where the edge halves its map, what passes by is max-pooled 2 x 2.
    """
    if edges.share == 1:
        return mixed
    batch, height, width, channels = mixed.shape
    rest = x[..., channels:]
    if height < x.shape[1]:
        rest = rest.reshape(batch, height, 2, width, 2, -1).max((2, 4))
    y = jnp.concatenate([mixed, (edge_weight * rest).astype(mixed.dtype)], -1)
    groups = y.reshape(batch, height, width, edges.share, channels)
    return groups.swapaxes(-1, -2).reshape(y.shape)


def dropped(edges, name, dropout, y):
    """y, with the dropout that the candidate has while training."""
    if name not in edges.dropped or not edges.context.train:
        return y
    key_data, rate = dropout
    keep = draw_kept(jax.random.wrap_key_data(key_data), rate, y.shape, edges.context)
    return (y * keep / (1 - rate)).astype(y.dtype)


def _forward(edges, variables, inputs, nodes):
    once, train = shared(edges), edges.context.train

    def add_edge(nodes, operands):
        v, source, target, group = operands
        x = (nodes if edges.in_place else inputs)[source]
        x_part, stats = part(edges, x), dict(v.stats)

        def add_shared(o, layer, operands, carry):
            x, stats = operands
            y, found = layer.apply({}, stats, x, edges.context)
            nodes = carry[0]
            for k in range(group.targets.size):
                nodes = _gate(
                    edges,
                    group.active[k, o],
                    lambda y, nodes, k=k: nodes.at[group.targets[k]].add(
                        weighted(group.weights[k, o], y)
                    ),
                    y,
                    nodes,
                )
            return nodes, found

        def add_own(o, name, layer, operands, carry):
            x, params, stats, dropout = operands
            y, found = layer.apply(params, stats, x, edges.context)
            return carry[0] + weighted(v.weights[o], dropped(edges, name, dropout, y)), found

        for o in once:
            name, layer = edges.layers[o]
            before = v.stats.get(name, {})
            nodes, stats[name] = _gate(
                edges,
                group.first & group.active[:, o].any(),
                partial(add_shared, o, layer),
                (x_part, before),
                (nodes, before),
            )
        at_target = nodes[target]
        total = at_target if edges.share == 1 else jnp.zeros_like(part(edges, at_target))
        for o, (name, layer) in enumerate(edges.layers):
            if o not in once:
                before = v.stats.get(name, {})
                total, stats[name] = _gate(
                    edges,
                    v.active[o],
                    partial(add_own, o, name, layer),
                    (x_part, v.params.get(name, {}), before, v.dropout),
                    (total, before),
                )
        if edges.share == 1:
            nodes = nodes.at[target].set(total)
        else:
            nodes = nodes.at[target].add(join(edges, total, v.edge_weights, x))
        return nodes, {name: found for name, found in stats.items() if found}

    nodes, found = lax.scan(add_edge, nodes, _walked(edges, variables))
    found = _by_edge(edges, found)
    stats = variables.stats
    if train:
        stats = _where_active(edges, variables.active, blend(stats, found), stats)
    maps = nodes if edges.in_place else inputs
    return (nodes, stats), (variables._replace(stats=found), maps)


def _by_edge(edges, found):
    """{candidate: statistics of the batch [E, ...]} in the edges' own order."""
    walk = _walk(edges)
    place = np.argsort(walk.order)  # of each edge in the walk
    at_first = place[walk.group[place, 0]]  # of its source's first edge
    once = {edges.layers[o][0] for o in shared(edges)}
    return {
        name: jax.tree.map(lambda leaf, rows=at_first if name in once else place: leaf[rows], tree)
        for name, tree in found.items()
    }


def _where_active(edges, active, new, old):
    names = [name for name, _ in edges.layers]

    def choose(name):
        def where(n, o):
            return jnp.where(active[:, names.index(name)].reshape(-1, *(1,) * (n.ndim - 1)), n, o)

        return jax.tree.map(where, new[name], old[name])

    return {name: choose(name) for name in new}


def _backward(edges, residuals, cotangents):
    variables, maps = residuals
    g_nodes, _ = cotangents
    return _pull_back(edges, variables, maps, g_nodes)


@partial(jax.jit, static_argnums=0)  # cells of equal shape, and both passes, share the trace
def _pull_back(edges, variables, maps, g_nodes):
    """Cotangents of the variables, the inputs and the nodes; `variables.stats` are the batch's."""
    once = shared(edges)

    def pull_edge(g_sources, operands):
        v, source, target, group = operands
        g_nodes_now = g_sources if edges.in_place else g_nodes
        g, x = g_nodes_now[target], maps[source]
        x_part = part(edges, x)
        g_x, g_edge_weight, g_passed = jnp.zeros_like(x_part), None, None
        if edges.share > 1:
            mixed = jnp.zeros(part(edges, g).shape, g.dtype)  # join is linear in it
            _, pull = jax.vjp(partial(join, edges), mixed, v.edge_weights, x)
            g, g_edge_weight, g_passed = pull(g)
        context = edges.context._replace(learn=v.learn, known=not edges.context.twice)

        def pull_shared(o, layer, operands, carry):
            x, stats = operands
            g_x, g_weights = carry

            def gather(k, operands, carry):
                y, g_nodes = operands
                g_y, g_weights = carry
                g_k = g_nodes[group.targets[k]]
                g_weights = g_weights.at[k].set(jnp.sum(y * g_k, dtype=g_weights.dtype))
                return g_y + weighted(group.weights[k, o], g_k), g_weights

            y, pull = jax.vjp(lambda x: layer.apply({}, stats, x, context)[0], x)
            carry = jnp.zeros_like(y), g_weights
            for k in range(group.targets.size):
                carry = _gate(
                    edges, group.active[k, o], partial(gather, k), (y, g_nodes_now), carry
                )
            g_y, g_weights = carry
            return g_x + pull(g_y)[0], g_weights

        def pull_own(o, name, layer, operands, carry):
            x, params, stats, dropout, g = operands

            def output(params, x, weight):
                y = layer.apply(params, stats, x, context)[0]
                return weighted(weight, dropped(edges, name, dropout, y))

            g_params, g_part, g_weight = jax.vjp(output, params, x, v.weights[o])[1](g)
            return carry[0] + g_part, g_params, g_weight

        g_params, g_weights, g_shared = {}, [], []
        for o, (name, layer) in enumerate(edges.layers):
            params, stats = v.params.get(name, {}), v.stats.get(name, {})
            if o in once:
                g_x, g_group = _gate(
                    edges,
                    group.first & group.active[:, o].any(),
                    partial(pull_shared, o, layer),
                    (x_part, stats),
                    (g_x, jnp.zeros(group.targets.shape, v.weights.dtype)),
                )
                g_shared.append(g_group)
                continue
            g_x, g_p, g_w = _gate(
                edges,
                v.active[o],
                partial(pull_own, o, name, layer),
                (x_part, params, stats, v.dropout, g),
                (g_x, jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(v.weights[o])),
            )
            g_weights.append(g_w)
            if g_p:
                g_params[name] = g_p
        if edges.share > 1:
            g_x = g_passed.at[..., : g_x.shape[-1]].add(g_x)
        return g_sources.at[source].add(g_x), (g_params, g_weights, g_shared, g_edge_weight)

    start = g_nodes if edges.in_place else jnp.zeros_like(maps)
    walk = _walk(edges)
    g_sources, (g_params, g_weights, g_shared, g_edge_weights) = lax.scan(
        pull_edge, start, _walked(edges, variables), reverse=True
    )
    place = np.argsort(walk.order)
    own, of_group = iter(g_weights), iter(g_shared)
    columns = [
        jnp.zeros(len(place), variables.weights.dtype).at[walk.group].add(next(of_group))
        if o in once
        else next(own)[place]
        for o in range(len(edges.layers))
    ]
    # The running statistics enter no training loss; in evaluation they are constants.
    g_variables = Variables(
        jax.tree.map(lambda leaf: leaf[place], g_params),
        jax.tree.map(jnp.zeros_like, variables.stats),
        jnp.stack(columns, -1),
        None,
        g_edge_weights if g_edge_weights is None else g_edge_weights[place],
        variables.dropout and (None, jnp.zeros_like(variables.dropout[1])),
        None,
    )
    if edges.in_place:
        return g_variables, None, g_sources
    return g_variables, g_sources, g_nodes


scan_edges.__wrapped__.defvjp(_forward, _backward)
