"""Networks of stacked cells: the supernet of a search, and the network built from a genotype."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from asap_jax.cells import EvalCell, SearchCell, run_layer
from asap_jax.genotypes import Genotype
from asap_jax.ops import Context, Layer, chain, conv, cost, dense, norm, relu, stateless
from asap_jax.relaxation import Mixture
from asap_jax.spaces import SearchSpace

STEM_MULTIPLIER = 3


def reductions(cells: int) -> tuple[int, ...]:
    """Positions of the reduction cells: at a third and two thirds (20 -> 6, 13; 8 -> 2, 5)."""
    return tuple(sorted({cells // 3, 2 * cells // 3}))


def _stem(inputs, outputs) -> Layer:
    return chain({"conv": conv(inputs, outputs, (3, 3), (1, 1), (1, 1)), "norm": norm(outputs)})


def _imagenet_stems(inputs, channels) -> tuple[Layer, Layer]:
    def halve(inputs, outputs):
        return conv(inputs, outputs, (3, 3), (2, 2), (1, 1))

    stem0 = chain(
        {
            "conv_1": halve(inputs, channels // 2),
            "norm_1": norm(channels // 2),
            "relu": relu,
            "conv_2": halve(channels // 2, channels),
            "norm_2": norm(channels),
        }
    )
    stem1 = chain({"relu": relu, "conv": halve(channels, channels), "norm": norm(channels)})
    return stem0, stem1


def _two_by_two(x, context):
    """Average-pools any map to 2 x 2.

    On 8 x 8 and 7 x 7 these are DARTS' windows of 5 (stride 3 and 2); other sizes scale with them.
    """

    def windows(size):
        length = -(-5 * size // 8)
        return slice(0, length), slice(size - length, size)

    rows = [
        jnp.stack([x[:, h, w].mean((1, 2)) for w in windows(x.shape[2])], 1)
        for h in windows(x.shape[1])
    ]
    return jnp.stack(rows, 1)


def _auxiliary_head(inputs, num_classes, last_norm) -> Layer:
    layers = {
        "relu_0": relu,
        "pool": stateless(_two_by_two),
        "conv_1": conv(inputs, 128),
        "norm_1": norm(128),
        "relu_1": relu,
        "conv_2": conv(128, 768, (2, 2)),
    }
    if last_norm:
        layers["norm_2"] = norm(768)
    layers |= {
        "relu_2": relu,
        "flatten": stateless(lambda x, context: x[:, 0, 0]),
        "classifier": dense(768, num_classes),
    }
    return chain(layers)


class Supernet(nn.Module):
    """DARTS' search network: a stem, stacked cells of mixed edges, a linear classifier.

    Attributes:
      space: the cell's edges and candidates.
      num_classes: width of the logits.
      channels: width of the first cell's nodes (C); doubled at each reduction.
      cells: number of cells (L); those at `reductions(cells)` halve the maps.
    """

    space: SearchSpace
    num_classes: int
    channels: int = 16
    cells: int = 8

    @nn.compact
    def __call__(self, x, mixtures: Mapping[str, Mixture], context: Context = Context()):
        """Logits [N, num_classes] of images x [N, H, W, 1 or 3]; one mixture per cell type."""
        stem = _stem(x.shape[-1], STEM_MULTIPLIER * self.channels)
        s0 = s1 = run_layer(self, "stem", stem, x, context)
        channels, reduction_prev = self.channels, False
        for i in range(self.cells):
            reduction = i in reductions(self.cells)
            channels *= 2 if reduction else 1
            mixture = mixtures["reduce" if reduction else "normal"]
            cell = SearchCell(self.space, channels, reduction, reduction_prev, name=f"cell{i}")
            s0, s1 = s1, cell(s0, s1, mixture.scaled, mixture.active, context)
            reduction_prev = reduction
        return _classify(self, s1, self.num_classes, context)


def live_parameters(network: Supernet, params, mixtures: Mapping[str, Mixture]):
    """What the mixtures make active: a tree like `params` of bools that broadcast against it."""
    live = jax.tree.map(lambda leaf: jnp.bool_(True), params)
    for i in range(network.cells):
        reduction = i in reductions(network.cells)
        active = mixtures["reduce" if reduction else "normal"].active
        for stride, indices in network.space.by_stride(reduction).items():
            group = live[f"cell{i}"].get(f"stride{stride}", {})
            for o, name in enumerate(network.space.candidates):
                if name in group:
                    rows = active[jnp.asarray(indices), o]
                    group[name] = jax.tree.map(
                        lambda leaf, rows=rows: rows.reshape(-1, *(1,) * (leaf.ndim - 1)),
                        params[f"cell{i}"][f"stride{stride}"][name],
                    )
    return live


class EvalNetwork(nn.Module):
    """The network that is built from a genotype and trained: DARTS' NetworkCIFAR, NetworkImageNet.

    Attributes:
      genotype: the two cells.
      num_classes: width of the logits.
      channels, cells: as in `Supernet` (36 and 20 for CIFAR-10, 48 and 14 for ImageNet).
      stem: "cifar" keeps the image's size, "imagenet" divides it by 8.
      auxiliary: a second classifier after the last reduction, for training only.
      remat: keep only the cells' outputs for the backward pass and compute the rest anew: a
        fraction of the memory, about a third more time. (XLA's CPU compiler undoes it.)
    """

    genotype: Genotype
    num_classes: int
    channels: int = 36
    cells: int = 20
    stem: str = "cifar"
    auxiliary: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x, context: Context = Context(), drop_path=None):
        """Runs the network.

        Args:
          x: [N, H, W, 1 or 3].
          context: how to run the layers.
          drop_path: probability (scalar) that an edge drops a sample; None for no drop-path. Needs
            the random stream "drop_path".

        Returns:
          (logits [N, num_classes], auxiliary logits [N, num_classes] or None). The latter exist in
          training only. The pooled features [N, F] are sown as "features" into the collection
          "intermediates".
        """
        if self.stem == "imagenet":
            stem0, stem1 = _imagenet_stems(x.shape[-1], self.channels)
            s0 = run_layer(self, "stem0", stem0, x, context)
            s1 = run_layer(self, "stem1", stem1, s0, context)
        elif self.stem == "cifar":
            stem = _stem(x.shape[-1], STEM_MULTIPLIER * self.channels)
            s0 = s1 = run_layer(self, "stem", stem, x, context)
        else:
            raise ValueError(f'stem has to be "cifar" or "imagenet", got {self.stem!r}')
        channels, reduction_prev = self.channels, self.stem == "imagenet"
        auxiliary = None
        for i in range(self.cells):
            reduction = i in reductions(self.cells)
            channels *= 2 if reduction else 1
            kind = nn.remat(EvalCell, static_argnums=4) if self.remat else EvalCell
            cell = kind(self.genotype, channels, reduction, reduction_prev, name=f"cell{i}")
            s0, s1 = s1, cell(s0, s1, drop_path, context)
            reduction_prev = reduction
            wanted = self.auxiliary and (context.train or self.is_initializing())
            if wanted and i == 2 * self.cells // 3:
                head = _auxiliary_head(s1.shape[-1], self.num_classes, self.stem == "cifar")
                auxiliary = run_layer(self, "auxiliary_head", head, s1, context)
        return _classify(self, s1, self.num_classes, context), auxiliary


def _classify(module, x, num_classes, context):
    features = x.mean((1, 2))
    module.sow("intermediates", "features", features)
    return run_layer(module, "classifier", dense(x.shape[-1], num_classes), features, context)


def count_parameters(params) -> int:
    """Number of scalars in a tree of parameters; the auxiliary head, a training aid, left out."""
    kept = {name: tree for name, tree in params.items() if name != "auxiliary_head"}
    return sum(leaf.size for leaf in jax.tree.leaves(kept))


def multiply_adds(network: EvalNetwork, image_shape) -> int:
    """Multiply-adds of the convolutions and the classifier for one image [H, W, C]."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.result_type(float))
    context = Context(reference=True)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, context), x)
    return cost(lambda v, x: network.apply(v, x, context)[0], variables, x)
