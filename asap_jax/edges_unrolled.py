"""The mixed edges of a cell without a loop: for devices that a loop of small kernels would starve.

Source by source, a candidate's edges are computed as one batch, with the parameters on the batch
axis; a candidate without parameters once for all of them. Which candidates there are is static, so
the compiler sees, and the device computes, just these; a search that has pruned enough compiles
anew. The gradient is autodiff's, each candidate recomputed in the backward pass: what is kept are
the node maps.
"""

from functools import partial

import jax
import jax.numpy as jnp

from asap_jax.batch_norm import blend
from asap_jax.edge_scan import Edges, Variables, dropped, join, part, shared, weighted


def unrolled_edges(edges: Edges, live, variables: Variables, inputs, nodes):
    """The same as `edge_scan.scan_edges`.

    Args:
      edges, variables, inputs, nodes: as there. An active candidate has to be a live one.
      live: [E][O] bool, static: the candidates that are computed.
    """
    if variables.learn is not None:
        edges = edges._replace(context=edges.context._replace(learn=variables.learn[0]))
    nodes = list(nodes)
    stats = dict(variables.stats)
    weights = jnp.where(variables.active, variables.weights, 0)
    for source in sorted(set(edges.sources)):
        leaving = [e for e, s in enumerate(edges.sources) if s == source]
        x = (nodes if edges.in_place else inputs)[source]
        totals = dict.fromkeys(leaving, 0.0)
        for o, (name, layer) in enumerate(edges.layers):
            rows = [e for e in leaving if live[e][o]]
            if not rows:
                continue
            if o in shared(edges):
                y, found = _apply_once(edges, layer, variables.stats.get(name, {}), part(edges, x))
                outputs = [y] * len(rows)
            else:
                chosen = jax.tree.map(lambda leaf, rows=jnp.asarray(rows): leaf[rows], variables)
                outputs, found = _apply_to_each(edges, name, layer, chosen, part(edges, x))
            for e, y in zip(rows, outputs, strict=True):
                totals[e] += weighted(weights[e, o], y)
            if found and edges.context.train:
                stats[name] = _update(stats[name], found, jnp.asarray(rows), variables.active[:, o])
        for e in leaving:
            target = edges.targets[e]
            mixed = totals[e] + jnp.zeros_like(part(edges, nodes[target]))
            edge_weight = None if edges.share == 1 else variables.edge_weights[e]
            nodes[target] += join(edges, mixed, edge_weight, x)
    return jnp.stack(nodes), stats


def _apply_once(edges, layer, stats, x):
    first = jax.tree.map(lambda leaf: leaf[0], stats)
    return jax.checkpoint(lambda x: layer.apply({}, first, x, edges.context))(x)


def _apply_to_each(edges, name, layer, chosen, x):
    """(outputs [K, N, h, w, C], statistics [K, ...]) of a candidate on K edges."""

    def apply(x, params, stats, dropout):
        y, found = layer.apply(params, stats, x, edges.context)
        return dropped(edges, name, dropout, y), found

    each = jax.checkpoint(apply)
    operands = (chosen.params.get(name, {}), chosen.stats.get(name, {}), chosen.dropout)
    if len(chosen.weights) == 1:
        y, found = each(x, *jax.tree.map(lambda leaf: leaf[0], operands))
        return y[None], jax.tree.map(lambda leaf: leaf[None], found)
    return jax.vmap(partial(each, x))(*operands)


def _update(running, found, rows, active):
    """The running statistics [E, ...] with those of `rows` blended in, where active [E]."""

    def update(old, new):
        alive = active[rows].reshape(-1, *(1,) * (old.ndim - 1))
        return old.at[rows].set(jnp.where(alive, blend(old[rows], new), old[rows]))

    return jax.tree.map(update, running, found)
