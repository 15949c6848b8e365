"""The core of the supernet: all mixed edges of a cell in one loop.

The parameters of a candidate are stacked over the edges, and one `lax.scan` visits the edges,
source by source, with a gate around each candidate. The compiler thus sees each candidate once per
cell, and inactive candidates cost no time, without recompilation: masking a candidate saves as much
as removing it from the graph. A candidate without parameters is the same on all edges of a source:
it is computed once, at the first of them, and added to all their targets. Likewise a source's map
is read once, and its cotangent added once.

The gradient is custom. Its only residuals are the cell's node maps and the batch norm statistics;
it visits the edges in reverse, recomputes each active candidate and accumulates the nodes'
cotangents. With autodiff the scan would keep one input per edge and candidate.

A gate is a loop with one iteration or none, which updates its operands in place, whereas `lax.cond`
copies them or adds zeros. Such a gate has no gradient: if gradients are differentiated again
(`Context.twice`), it is a `lax.cond` around each candidate of each edge, and the norms' statistics
are recomputed.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.layers.batch_norm import blend
from asap_jax.layers.ops import Context, Layer, draw


class Edges(NamedTuple):
    """Edges of one stride, static.

    layers: (candidate name, layer), [O].
    sources, targets: node indices, [E], by ascending target.
    in_place: True if the edges connect nodes of the cell (stride 1), False if they connect the
      cell's input maps to its nodes (stride 2).
    context: how to apply the layers.
    share: the candidates process the first 1 / share of the channels; the others bypass them, and
      all are shuffled (PC-DARTS).
    dropped: candidates whose output has dropout.
    whole: drop whole samples, the same for all candidates of an edge, instead of values.
    """

    layers: tuple[tuple[str, Layer], ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    in_place: bool
    context: Context
    share: int = 1
    dropped: tuple[str, ...] = ()
    whole: bool = False


class Variables(NamedTuple):
    """Per-edge variables, stacked on the first axis.

    params, stats: {candidate: tree of [E, ...]}; candidates without any are omitted.
    weights: [E, O].
    active: [E, O] bool.
    edge_weights: [E], factors of the bypassing channels; None if share is 1.
    dropout: (key data [E, ...] uint32, rates [E]), or None without dropout.
    kernel_gradients: [E] bool, see `ops.Context`; None means True.
    """

    params: Mapping
    stats: Mapping
    weights: jax.Array
    active: jax.Array
    edge_weights: jax.Array | None = None
    dropout: tuple[jax.Array, jax.Array] | None = None
    kernel_gradients: jax.Array | None = None


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
    """Adds every edge's mixed operation (eq. 1 and 2) to its target node.

    Args:
      edges: the edges, and how to run them.
      variables: their parameters, statistics, weights and activity.
      inputs: [inputs, N, H, W, C], the cell's input maps; read if not `edges.in_place`.
      nodes: [inputs + nodes, N, h, w, C], the node maps so far; also read if `edges.in_place`.

    Returns:
      (nodes with the edges' outputs added, updated running statistics).
    """
    return _forward(edges, variables, inputs, nodes)[0]


def scan_edges_reference(edges: Edges, variables: Variables, inputs, nodes):
    """Same as `scan_edges`, edge by edge with every candidate computed, and autodiff."""
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


class _Step(NamedTuple):
    """One loop step. K edges leave its source; rows are padded by repeating the last one.

    edge, source, target: scalars, its row and its nodes.
    first, last: bool, whether it is the first or last edge that leaves its source.
    group, targets: [K], rows and targets of the edges that leave its source.
    due: [O] bool, True at the first of those for candidates active on any of them.
    active: [K, O] bool, the edges on which each candidate is active.
    """

    edge: jax.Array
    source: jax.Array
    target: jax.Array
    first: jax.Array
    last: jax.Array
    group: jax.Array
    targets: jax.Array
    due: jax.Array
    active: jax.Array


def _walk(edges, active) -> _Step:
    """All steps, [E] on the first axis, by ascending source: a node is complete when read."""
    sources, targets = np.asarray(edges.sources), np.asarray(edges.targets)
    order = np.argsort(sources, kind="stable")
    leaving = [np.flatnonzero(sources == source) for source in sources[order]]
    width = max(map(len, leaving))
    group = np.stack([rows[np.minimum(np.arange(width), len(rows) - 1)] for rows in leaving])
    member = np.stack([np.arange(width) < len(rows) for rows in leaving])
    active = active[group] & member[..., None]
    first = np.asarray([rows[0] for rows in leaving]) == order
    last = np.asarray([rows[-1] for rows in leaving]) == order
    due = active.any(1) & first[:, None]
    # Unsigned, since each use of a signed index checks whether it is negative.
    edge, source, target, group_rows, group_targets = (
        jnp.asarray(rows, jnp.uint32)
        for rows in (order, sources[order], targets[order], group, targets[group])
    )
    return _Step(
        edge,
        source,
        target,
        jnp.asarray(first),
        jnp.asarray(last),
        group_rows,
        group_targets,
        due,
        active,
    )


def shared(edges: Edges) -> tuple[int, ...]:
    """Indices of the candidates that give the same map on all edges of a source.

    They have no parameters and no dropout, and any statistics are the batch's.
    """
    context = edges.context
    if edges.share > 1 or context.twice:
        return ()
    return tuple(
        o
        for o, (name, layer) in enumerate(edges.layers)
        if not layer.weights and name not in edges.dropped and (context.train or not layer.stats())
    )


def _gate(edges, active, compute, operands, carry):
    """compute(operands, carry) if active, else carry unchanged."""
    if edges.context.twice:
        return lax.cond(active, compute, lambda operands, carry: carry, operands, carry)

    def turn(state):
        wanted, carry = state
        # The barrier ties the operands to the iteration; otherwise the compiler would hoist
        # computations that depend only on them out of the loop, even if it does not iterate.
        _, tied = lax.optimization_barrier((wanted, operands))
        return jnp.bool_(False), compute(tied, carry)

    return lax.while_loop(lambda state: state[0], turn, (active, carry))[1]


def part(edges, x):
    """The channels of x [..., C] that the candidates process."""
    return x if edges.share == 1 else x[..., : x.shape[-1] // edges.share]


def weighted(weight, y):
    """The product, in the dtype of the map y."""
    return (weight * y).astype(y.dtype)


def join(edges, mixed, edge_weight, x):
    """An edge's output [N, h, w, C]: the mixed channels and the bypassing ones of x, shuffled.

    If the edge halves its map, the bypassing channels are max-pooled 2 x 2.
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
    """Applies the candidate's dropout to y in training."""
    if name not in edges.dropped or not edges.context.train:
        return y
    key_data, rate = dropout
    shape = (y.shape[0], *(1,) * (y.ndim - 1)) if edges.whole else y.shape
    keep = jax.random.bernoulli(jax.random.wrap_key_data(key_data), 1 - rate, shape)
    return (y * keep / (1 - rate)).astype(y.dtype)


# Slices with lax instead of `.at`, which would check each index against the bounds.


def _get(tree, row):
    """Row `row` of every array."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), tree)


def _set(tree, row, values):
    return jax.tree.map(
        lambda leaf, value: lax.dynamic_update_index_in_dim(leaf, value, row, 0), tree, values
    )


def _add(leaf, row, value):
    return _set(leaf, row, _get(leaf, row) + value)


def _set_weight(weights, edge, o, value):
    return lax.dynamic_update_slice(weights, value[None, None], (edge, jnp.uint32(o)))


def _forward(edges, variables, inputs, nodes):
    once, train = shared(edges), edges.context.train

    def blended(running, name, edge, found):
        """Blends the statistics that a candidate found on one edge into the running ones."""
        if not train or not found:
            return running
        return _set(running, edge, blend(_get(variables.stats[name], edge), found))

    def noted(batch, edge, found):
        """Stores the batch statistics for the backward pass."""
        return _set(batch, edge, found) if train and found else batch

    def add_edge(carry, step):
        nodes, x, stats = carry
        maps = nodes if edges.in_place else inputs
        x = _gate(edges, step.first, lambda source, x: _get(maps, source), step.source, x)
        x_part = part(edges, x)
        v = _get(variables, step.edge)

        def add_shared(o, name, layer, operands, carry):
            x, before = operands
            y, found = layer.apply({}, before, x, edges.context)

            def add_to(k, carry):
                edge = step.group[k]

                def add(y, carry):
                    nodes, running = carry
                    nodes = _add(nodes, step.targets[k], weighted(variables.weights[edge, o], y))
                    return nodes, blended(running, name, edge, found)

                return _gate(edges, step.active[k, o], add, y, carry)

            nodes, (running, batch) = carry
            nodes, running = lax.fori_loop(0, step.group.size, add_to, (nodes, running))
            return nodes, (running, noted(batch, step.edge, found))

        def add_own(o, name, layer, operands, carry):
            x, params, before, dropout = operands
            total, (running, batch) = carry
            y, found = layer.apply(params, before, x, edges.context)
            y = weighted(v.weights[o], dropped(edges, name, dropout, y))
            total = _add(total, step.target, y) if edges.share == 1 else total + y
            running = blended(running, name, step.edge, found)
            return total, (running, noted(batch, step.edge, found))

        stats = dict(stats)
        for o in once:
            name, layer = edges.layers[o]
            nodes, stats[name] = _gate(
                edges,
                step.due[o],
                partial(add_shared, o, name, layer),
                (x_part, v.stats.get(name, {})),
                (nodes, stats[name]),
            )
        total = nodes if edges.share == 1 else jnp.zeros_like(part(edges, nodes[0]))
        for o, (name, layer) in enumerate(edges.layers):
            if o not in once:
                total, stats[name] = _gate(
                    edges,
                    v.active[o],
                    partial(add_own, o, name, layer),
                    (x_part, v.params.get(name, {}), v.stats.get(name, {}), v.dropout),
                    (total, stats[name]),
                )
        if edges.share == 1:
            nodes = total
        else:
            nodes = _add(nodes, step.target, join(edges, total, v.edge_weights, x))
        return (nodes, x, stats), None

    x = jnp.zeros_like((nodes if edges.in_place else inputs)[0])
    stats = {name: (variables.stats.get(name, {}),) * 2 for name, _ in edges.layers}
    (nodes, _, stats), _ = lax.scan(add_edge, (nodes, x, stats), _walk(edges, variables.active))
    running, batch = ({name: stats[name][i] for name in variables.stats} for i in range(2))
    maps = nodes if edges.in_place else inputs
    return (nodes, running), (variables._replace(stats=batch), maps)


def _backward(edges, residuals, cotangents):
    variables, maps = residuals
    g_nodes, _ = cotangents
    return _pull_back(edges, variables, maps, g_nodes)


@partial(jax.jit, static_argnums=0)  # cells of equal shape and both passes share the trace
def _pull_back(edges, variables, maps, g_nodes):
    """Cotangents of variables, inputs and nodes; `variables.stats` are the batch statistics."""
    once = shared(edges)

    def pull_edge(carry, step):
        g_sources, x, g_x, g_params, g_weights, g_edge_weights = carry
        v = _get(variables, step.edge)
        g_nodes_now = g_sources if edges.in_place else g_nodes
        g = _get(g_nodes_now, step.target)
        x, g_x = _gate(  # in reverse, a source's last edge comes first
            edges,
            step.last,
            lambda source, carry: (_get(maps, source), jnp.zeros_like(g_x)),
            step.source,
            (x, g_x),
        )
        x_part = part(edges, x)
        if edges.share > 1:
            mixed = jnp.zeros(part(edges, g).shape, g.dtype)  # join is linear in it
            _, pull = jax.vjp(partial(join, edges), mixed, v.edge_weights, x)
            g, g_edge_weight, g_passed = pull(g)
            g_x += g_passed
            g_edge_weights = _set(g_edge_weights, step.edge, g_edge_weight)
        context = edges.context._replace(
            kernel_gradients=v.kernel_gradients, known=not edges.context.twice
        )

        def pull_shared(o, layer, operands, carry):
            x, stats = operands
            g_x, g_weights = carry
            y, pull = jax.vjp(lambda x: layer.apply({}, stats, x, context)[0], x)

            def gather(k, carry):
                edge = step.group[k]

                def add(operands, carry):
                    y, g_nodes = operands
                    g_y, g_weights = carry
                    g_k = _get(g_nodes, step.targets[k])
                    product = jnp.sum(y * g_k, dtype=g_weights.dtype)
                    g_y += weighted(variables.weights[edge, o], g_k)
                    return g_y, _set_weight(g_weights, edge, o, product)

                return _gate(edges, step.active[k, o], add, (y, g_nodes_now), carry)

            carry = jnp.zeros_like(y), g_weights
            g_y, g_weights = lax.fori_loop(0, step.group.size, gather, carry)
            return g_x + pull(g_y)[0], g_weights

        def pull_own(o, name, layer, operands, carry):
            x, params, stats, dropout, g = operands
            g_x, g_weights, g_params = carry

            def output(params, x, weight):
                y = layer.apply(params, stats, x, context)[0]
                return weighted(weight, dropped(edges, name, dropout, y))

            found, g_part, g_weight = jax.vjp(output, params, x, v.weights[o])[1](g)
            g_weights = _set_weight(g_weights, step.edge, o, g_weight)
            if edges.share > 1:
                g_part = jnp.pad(g_part, [(0, 0)] * 3 + [(0, g_x.shape[-1] - g_part.shape[-1])])
            return g_x + g_part, g_weights, _set(g_params, step.edge, found)

        g_params = dict(g_params)
        for o, (name, layer) in enumerate(edges.layers):
            params, stats = v.params.get(name, {}), v.stats.get(name, {})
            if o in once:
                g_x, g_weights = _gate(
                    edges,
                    step.due[o],
                    partial(pull_shared, o, layer),
                    (x_part, stats),
                    (g_x, g_weights),
                )
                continue
            g_x, g_weights, g_own = _gate(
                edges,
                v.active[o],
                partial(pull_own, o, name, layer),
                (x_part, params, stats, v.dropout, g),
                (g_x, g_weights, g_params.get(name, {})),
            )
            if g_own:
                g_params[name] = g_own
        g_sources = _gate(
            edges,
            step.first,
            lambda g_x, g_sources: _add(g_sources, step.source, g_x),
            g_x,
            g_sources,
        )
        return (g_sources, x, g_x, g_params, g_weights, g_edge_weights), None

    nothing = jax.tree.map(jnp.zeros_like, variables._replace(active=None, kernel_gradients=None))
    start = g_nodes if edges.in_place else jnp.zeros_like(maps)
    x = jnp.zeros_like(maps[0])
    carry = start, x, x, dict(nothing.params), nothing.weights, nothing.edge_weights
    (g_sources, _, _, *gradients), _ = lax.scan(
        pull_edge, carry, _walk(edges, variables.active), reverse=True
    )
    g_params, g_weights, g_edge_weights = gradients
    # Running statistics do not enter the training loss; in evaluation they are constants.
    g_variables = nothing._replace(
        params=g_params,
        weights=g_weights,
        edge_weights=g_edge_weights,
        dropout=variables.dropout and (None, nothing.dropout[1]),
    )
    if edges.in_place:
        return g_variables, None, g_sources
    return g_variables, g_sources, g_nodes


# jax.jit does not declare __wrapped__.
scan_edges.__wrapped__.defvjp(_forward, _backward)  # pyright: ignore[reportAttributeAccessIssue]
