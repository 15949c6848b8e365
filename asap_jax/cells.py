"""Cells as Flax modules: of the supernet, and of the network built from a genotype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asap_jax import edge_scan
from asap_jax.genotypes import Genotype
from asap_jax.ops import (
    OPERATIONS,
    Context,
    Layer,
    candidate,
    draw,
    factorized_reduce,
    relu_conv_norm,
)
from asap_jax.spaces import SearchSpace


def run_layer(module: nn.Module, name: str, layer: Layer, x, context: Context):
    """Runs `layer` with parameters and running statistics that `module` holds under `name`."""
    params, stats = {}, {}
    if layer.weights:
        params = module.param(name, lambda key: draw(layer.weights, key))
    variable = None
    if layer.stats():
        variable = module.variable("batch_stats", name, layer.stats)
        stats = variable.value
    y, new_stats = layer.apply(params, stats, x, context)
    if variable is not None and context.train:
        variable.value = new_stats
    return y


def _preprocess(module, s0, s1, channels, reduction_prev, affine, context):
    """Brings both inputs of a cell to its width, and the older one to the size of the newer."""
    bring = factorized_reduce if reduction_prev else relu_conv_norm
    s0 = run_layer(module, "preprocess0", bring(s0.shape[-1], channels, affine), s0, context)
    s1 = run_layer(
        module, "preprocess1", relu_conv_norm(s1.shape[-1], channels, affine), s1, context
    )
    return s0, s1


class SearchCell(nn.Module):
    """A cell whose edges are mixtures of all candidates.

    Parameters and statistics of the edges stand under `stride1` and `stride2`, each
    {candidate: tree of [edges, ...]}, the edges in the space's order.
    """

    space: SearchSpace
    channels: int
    reduction: bool
    reduction_prev: bool

    @nn.compact
    def __call__(self, s0, s1, weights, active, context: Context):
        """Maps the outputs of the two cells before to this cell's.

        Args:
          s0, s1: [N, H, W, C_0], [N, H, W, C_1]; s0 of twice the size after a reduction.
          weights, active: [E, O], see `relaxation.Mixture`.
          context: how to run the layers.

        Returns:
          [N, H, W, nodes * channels], or half the size if this is a reduction cell.
        """
        s0, s1 = _preprocess(self, s0, s1, self.channels, self.reduction_prev, False, context)
        inputs = jnp.stack([s0, s1])
        if self.reduction:
            batch, height, width, channels = s0.shape
            shape = (self.space.nodes + 2, batch, height // 2, width // 2, channels)
            nodes = jnp.zeros(shape, s0.dtype)
        else:
            nodes = jnp.concatenate([inputs, jnp.zeros((self.space.nodes, *s0.shape), s0.dtype)])
        for stride, indices in self.space.by_stride(self.reduction).items():
            if indices:
                nodes = self._add_edges(stride, indices, inputs, nodes, weights, active, context)
        return jnp.concatenate(list(nodes[2:]), -1)

    def _add_edges(self, stride, indices, inputs, nodes, weights, active, context):
        layers = {name: candidate(name, self.channels, stride) for name in self.space.candidates}
        name = f"stride{stride}"
        params = self.param(name, lambda key: edge_scan.stack_params(layers, len(indices), key))
        stats = self.variable(
            "batch_stats", name, lambda: edge_scan.stack_stats(layers, len(indices))
        )
        edges = edge_scan.Edges(
            tuple(layers.items()),
            tuple(self.space.edges[e][0] for e in indices),
            tuple(self.space.edges[e][1] for e in indices),
            in_place=stride == 1,
            context=context,
        )
        if self.is_initializing():
            return nodes  # the shapes are known: nothing to compute for a start
        rows = jnp.asarray(indices)
        variables = edge_scan.Variables(
            params, stats.value, weights[rows].astype(inputs.dtype), active[rows]
        )
        scan = edge_scan.scan_edges_reference if context.reference else edge_scan.scan_edges
        nodes, new_stats = scan(edges, variables, inputs, nodes)
        if context.train:
            stats.value = lax.stop_gradient(new_stats)
        return nodes


class EvalCell(nn.Module):
    """A cell with just the operations of a genotype; parameters stand under `edge<i>`, in order."""

    genotype: Genotype
    channels: int
    reduction: bool
    reduction_prev: bool

    @nn.compact
    def __call__(self, s0, s1, drop_path, context: Context):
        """As `SearchCell`; `drop_path` is the probability that an edge drops a sample (scalar).

        Returns [N, H, W, len(concat) * channels].
        """
        s0, s1 = _preprocess(self, s0, s1, self.channels, self.reduction_prev, True, context)
        nodes, concat = self.genotype.normal, self.genotype.normal_concat
        if self.reduction:
            nodes, concat = self.genotype.reduce, self.genotype.reduce_concat
        shrink = 2 if self.reduction else 1
        states, edge = [s0, s1], 0
        for node in nodes:
            total = jnp.zeros_like(s0[:, ::shrink, ::shrink])
            for op, source in node:
                stride = 2 if self.reduction and source < 2 else 1
                layer = OPERATIONS[op](self.channels, stride, True)
                y = run_layer(self, f"edge{edge}", layer, states[source], context)
                if drop_path is not None and not (op == "skip_connect" and stride == 1):
                    y = _drop_samples(y, drop_path, self.make_rng("drop_path"), context)
                total += y
                edge += 1
            states.append(total)
        return jnp.concatenate([states[node] for node in concat], -1)


def _drop_samples(y, probability, key, context):
    """Zeroes whole samples of y [N, ...] with `probability`, and scales the others by 1 / keep."""
    samples, first = y.shape[0], 0
    if context.axis_name is not None:  # every device draws the whole batch's and takes its part
        first = lax.axis_index(context.axis_name) * samples
        samples = samples * lax.axis_size(context.axis_name)
    keep = jax.random.bernoulli(key, 1 - probability, (samples, 1, 1, 1))
    keep = lax.dynamic_slice_in_dim(keep, first, y.shape[0])
    return y * keep / (1 - probability)
