"""Cells as Flax modules, for the supernet and for networks built from a genotype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.layers.batch_norm import blend
from asap_jax.layers.ops import (
    OPERATIONS,
    Context,
    Layer,
    candidate,
    draw,
    factorized_reduce,
    relu_conv_norm,
    squeeze_excite,
)
from asap_jax.networks import edge_scan
from asap_jax.networks.genotypes import Node
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.plans import Plan
from asap_jax.networks.spaces import SKELETONS, SearchSpace


def run_layer(module: nn.Module, name: str, layer: Layer, x, context: Context):
    """Applies `layer` with parameters and running statistics stored in `module` under `name`."""
    params, stats = {}, {}
    if layer.weights:
        params = module.param(name, lambda key: draw(layer.weights, key))
    variable = None
    if layer.stats():
        variable = module.variable("batch_stats", name, layer.stats)
        stats = variable.value
    y, batch_stats = layer.apply(params, stats, x, context)
    if variable is not None and context.train:
        variable.value = blend(stats, batch_stats)
    return y


def _preprocess(module, s0, s1, channels, reduction_prev, affine, context):
    """Projects both inputs to the cell's width, and the older one to the size of the newer."""
    bring = factorized_reduce if reduction_prev else relu_conv_norm
    s0 = run_layer(module, "preprocess0", bring(s0.shape[-1], channels, affine), s0, context)
    s1 = run_layer(
        module, "preprocess1", relu_conv_norm(s1.shape[-1], channels, affine), s1, context
    )
    return s0, s1


class SearchCell(nn.Module):
    """A cell whose edges are mixtures of all candidates.

    Parameters and statistics of the edges are stored under `stride1` and `stride2`, each
    {candidate: tree of [edges, ...]}, with edges in the space's order.

    Attributes:
      partial_channels: K; the candidates process the first 1 / K of an edge's channels.
      plan: how the edges are computed.
    """

    space: SearchSpace
    channels: int
    reduction: bool = False
    reduction_prev: bool = False
    partial_channels: int = 1
    plan: Plan = Plan()

    @nn.compact
    def __call__(self, states, mixture: Mixture, context: Context, kernel_gradients=None):
        """Maps the outputs of the previous cells to this cell's output.

        Args:
          states: in the "darts" skeleton (s0, s1), each [N, H, W, C_i], s0 of twice the size after
            a reduction; else a single input map [N, H, W, channels].
          mixture: the mixture of the cell's type.
          context: how to apply the layers.
          kernel_gradients: scalar bool for the cell's kernels, see `Context`; or None.

        Returns:
          "darts": [N, H, W, nodes * channels], half the size for a reduction cell;
          "nasbench201": [N, H, W, channels].
        """
        if self.space.skeleton == "darts":
            learning = context._replace(kernel_gradients=kernel_gradients)
            s0, s1 = states
            states = _preprocess(self, s0, s1, self.channels, self.reduction_prev, False, learning)
        inputs = jnp.stack(states)
        shape = (self.space.nodes, *inputs.shape[1:])
        if self.reduction:
            count, batch, height, width, channels = inputs.shape
            shape = (count + self.space.nodes, batch, height // 2, width // 2, channels)
            nodes = jnp.zeros(shape, inputs.dtype)
        else:
            nodes = jnp.concatenate([inputs, jnp.zeros(shape, inputs.dtype)])
        for stride, indices in self.space.by_stride(self.reduction).items():
            if indices:
                nodes = self._add_edges(
                    stride, indices, inputs, nodes, mixture, context, kernel_gradients
                )
        if self.space.skeleton == "nasbench201":
            return nodes[-1]
        return jnp.concatenate(list(nodes[self.space.inputs :]), -1)

    def _add_edges(self, stride, indices, inputs, nodes, mixture, context, kernel_gradients):
        width = self.channels // self.partial_channels
        normed = SKELETONS[self.space.skeleton].normed_pools
        layers = {name: candidate(name, width, stride, normed) for name in self.space.candidates}
        name = f"stride{stride}"
        params = self.param(name, lambda key: edge_scan.stack_params(layers, len(indices), key))
        stats = self.variable(
            "batch_stats", name, lambda: edge_scan.stack_stats(layers, len(indices))
        )
        dropout, dropped = mixture.skip_dropout if stride == 1 else None, ("skip_connect",)
        whole = mixture.drop_path is not None
        if whole:
            dropout, dropped = mixture.drop_path, self.space.candidates
            dropout = dropout._replace(key=jax.random.fold_in(dropout.key, stride))
        edges = edge_scan.Edges(
            tuple(layers.items()),
            tuple(self.space.edges[e][0] for e in indices),
            tuple(self.space.edges[e][1] for e in indices),
            in_place=stride == 1,
            context=context,
            share=self.partial_channels,
            dropped=() if dropout is None else dropped,
            whole=whole,
        )
        if self.is_initializing():
            return nodes  # shapes are known, so initialization computes nothing
        rows, wide = jnp.asarray(indices), jnp.promote_types(inputs.dtype, jnp.float32)
        edge_weights = None
        if self.partial_channels > 1:
            edge_weights = mixture.edge_weights
            if edge_weights is None:  # an edge without active candidates is absent
                edge_weights = mixture.active.any(-1)
            edge_weights = edge_weights[rows].astype(wide)
        if dropout is not None:
            keys = jax.random.split(dropout.key, len(indices))
            rates = jnp.broadcast_to(dropout.rate, len(indices)).astype(wide)
            dropout = jax.random.key_data(keys), rates
        variables = edge_scan.Variables(
            params,
            stats.value,
            mixture.scaled[rows].astype(wide),
            mixture.active[rows],
            edge_weights,
            dropout,
            None if kernel_gradients is None else jnp.broadcast_to(kernel_gradients, len(indices)),
        )
        cell_type = "reduce" if self.reduction else "normal"
        nodes, new_stats = self.plan.add_edges(edges, indices, variables, inputs, nodes, cell_type)
        if context.train:
            stats.value = lax.stop_gradient(new_stats)
        return nodes


class EvalCell(nn.Module):
    """A cell with only a genotype's operations; parameters are stored under `edge<i>`, in order.

    Attributes:
      nodes, concat: of the genotype's cell type.
      skeleton: the genotype's skeleton.
      convolve: end with ReLU, a 1 x 1 convolution to `channels` and a norm, instead of the plain
        concatenation.
      squeeze: scale the output's channels by a gate whose inner layer is narrower by this factor; 0
        for none.
    """

    nodes: tuple[Node, ...]
    concat: tuple[int, ...]
    channels: int
    reduction: bool = False
    reduction_prev: bool = False
    skeleton: str = "darts"
    convolve: bool = False
    squeeze: int = 0

    @nn.compact
    def __call__(self, states, drop_path, context: Context):
        """Like `SearchCell`; `drop_path` (scalar) is the probability that an edge drops a sample.

        Returns [N, H, W, len(concat) * channels], or [N, H, W, channels] with `convolve`.
        """
        if self.skeleton == "darts":
            s0, s1 = states
            states = _preprocess(self, s0, s1, self.channels, self.reduction_prev, True, context)
        states, inputs, edge = list(states), len(states), 0
        shrink = 2 if self.reduction else 1
        for node in self.nodes:
            total = jnp.zeros_like(states[0][:, ::shrink, ::shrink])
            for op, source in node:
                stride = 2 if self.reduction and source < inputs else 1
                layer = OPERATIONS[op](self.channels, stride, True)
                y = run_layer(self, f"edge{edge}", layer, states[source], context)
                if drop_path is not None and not (op == "skip_connect" and stride == 1):
                    y = _drop_samples(y, drop_path, self.make_rng("drop_path"))
                total += y
                edge += 1
            states.append(total)
        y = jnp.concatenate([states[node] for node in self.concat], -1)
        if self.convolve:
            y = run_layer(self, "output", relu_conv_norm(y.shape[-1], self.channels), y, context)
        if self.squeeze:
            y = run_layer(self, "squeeze", squeeze_excite(y.shape[-1], self.squeeze), y, context)
        return y


def _drop_samples(y, probability, key):
    """Zeroes whole samples of y [N, ...] with `probability`, and scales the others by 1 / keep."""
    keep = jax.random.bernoulli(key, 1 - probability, (y.shape[0], 1, 1, 1))
    return (y * keep / (1 - probability)).astype(y.dtype)
