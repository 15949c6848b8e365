"""Networks of stacked cells: the supernet of a search, and networks built from a genotype."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from asap_jax.layers.ops import (
    Context,
    Layer,
    chain,
    conv,
    cost,
    dense,
    norm,
    pointwise,
    relu,
    stateless,
)
from asap_jax.networks.cells import EvalCell, SearchCell, run_layer
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.plans import Plan
from asap_jax.networks.spaces import SearchSpace

STEM_MULTIPLIER = 3
STEMS = ("cifar", "imagenet")
OUTPUTS = ("concat", "conv")
SQUEEZES = ("", "early", "every")
STAGES = 3  # of a "nasbench201" network, separated by residual reductions


def reductions(cells: int) -> tuple[int, ...]:
    """Positions of the reduction cells: at a third and two thirds (20 -> 6, 13; 8 -> 2, 5)."""
    return tuple(sorted({cells // 3, 2 * cells // 3}))


def side_multiple(cells: int, stem: str = "cifar") -> int:
    """The number an image's sides must be a multiple of, so that every halved map is even.

    The reductions halve the maps; the ImageNet stems do so three times before them.
    """
    return 2 ** (len(reductions(cells)) + 3 * (stem == "imagenet"))


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


def _in_precision(x, context):
    return x if context.dtype is None else x.astype(context.dtype)


def _two_by_two(x, context):
    """Average-pools any map to 2 x 2.

    On 8 x 8 and 7 x 7 maps these are DARTS' windows of 5 (stride 3 and 2); other sizes scale.
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


def cell_types(skeleton: str, cells: int) -> tuple[str, ...]:
    """The type of each cell, in order."""
    if skeleton == "nasbench201":
        return ("normal",) * cells
    return tuple("reduce" if i in reductions(cells) else "normal" for i in range(cells))


class Supernet(nn.Module):
    """The search network: a stem, stacked cells of mixed edges, a linear classifier.

    Attributes:
      space: the cell's edges and candidates, and the skeleton that the cells form.
      num_classes: width of the logits.
      channels: width of the first cell's nodes (C); doubled at each reduction.
      cells: number of cells (L). In the "darts" skeleton those at `reductions(cells)` halve the
        maps; "nasbench201" requires a multiple of 3, not counting its residual blocks.
      partial_channels: K; each edge's candidates process 1 / K of its channels (PC-DARTS).
      plan: how the edges are computed, see `plans`.
    """

    space: SearchSpace
    num_classes: int
    channels: int = 16
    cells: int = 8
    partial_channels: int = 1
    plan: Plan = Plan()

    @nn.compact
    def __call__(
        self,
        x,
        mixtures: Mapping[str, Mixture],
        context: Context = Context(),
        kernel_gradients=None,
    ):
        """Applies the network.

        Args:
          x: [N, H, W, 1 or 3].
          mixtures: one per cell type.
          context: how to apply the layers.
          kernel_gradients: scalar bool, may be traced; if False, the gradients of the cells'
            weights may be wrong, see `Context`. None means True.

        Returns:
          Logits [N, num_classes].
        """
        x = _in_precision(x, context)
        if self.channels % self.partial_channels:
            raise ValueError(
                f"the supernet's {self.channels} channels cannot be divided by partial_channels, "
                f"{self.partial_channels}"
            )

        def cell(i, kind, states, channels, reduction_prev=False):
            mixture = mixtures[kind]
            for field in ("skip_dropout", "drop_path"):
                dropout = getattr(mixture, field)
                if dropout is not None:
                    dropout = dropout._replace(key=jax.random.fold_in(dropout.key, i))
                    mixture = mixture._replace(**{field: dropout})
            module = SearchCell(
                self.space,
                channels,
                kind == "reduce",
                reduction_prev,
                self.partial_channels,
                self.plan,
                name=f"cell{i}",
            )
            return module(states, mixture, context, kernel_gradients)

        if self.space.skeleton == "nasbench201":
            x = _residual_stages(self, x, context, cell)
        else:
            stem = _stem(x.shape[-1], STEM_MULTIPLIER * self.channels)
            s1 = run_layer(self, "stem", stem, x, context)
            *_, x = _stacked_cells(self, s1, s1, "darts", False, cell)
        return _classify(self, x, self.num_classes, context)


def _stacked_cells(network, s0, s1, skeleton, reduction_prev, cell):
    """Yields the outputs of DARTS' stack of cells, each of which reads the previous two."""
    channels = network.channels
    for i, kind in enumerate(cell_types(skeleton, network.cells)):
        channels *= 2 if kind == "reduce" else 1
        s0, s1 = s1, cell(i, kind, (s0, s1), channels, reduction_prev)
        reduction_prev = kind == "reduce"
        yield s1


def _residual_stages(network, x, context, cell):
    """NAS-Bench-201's network without classifier: three stacks of cells, residual reductions."""
    if network.cells % STAGES:
        raise ValueError(
            f"a nasbench201 network has {STAGES} stages of equal length: cells has to be a "
            f"multiple of {STAGES}, got {network.cells}"
        )
    channels, length = network.channels, network.cells // STAGES
    x = run_layer(network, "stem", _stem(x.shape[-1], channels), x, context)
    for i in range(network.cells):
        if i and i % length == 0:
            block = _residual_reduction(channels, 2 * channels)
            x = run_layer(network, f"reduction{i // length}", block, x, context)
            channels *= 2
        x = cell(i, "normal", (x,), channels)
    last = chain({"norm": norm(channels), "relu": relu})
    return run_layer(network, "last", last, x, context)


def _residual_reduction(inputs, outputs) -> Layer:
    """Two 3x3 ReLU-Conv-BN, the first of stride 2, plus an average pool and a 1x1 convolution."""
    long = chain(
        {
            "relu_a": relu,
            "conv_a": conv(inputs, outputs, (3, 3), (2, 2), (1, 1)),
            "norm_a": norm(outputs),
            "relu_b": relu,
            "conv_b": conv(outputs, outputs, (3, 3), (1, 1), (1, 1)),
            "norm_b": norm(outputs),
        }
    )
    short = pointwise(inputs, outputs)

    def apply(params, stats, x, context):
        y, stats = long.apply(params, stats, x, context)
        batch, height, width, channels = x.shape
        pooled = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        return y + short.apply(params["shortcut"], {}, pooled, context)[0], stats

    return Layer({**long.weights, "shortcut": short.weights}, long.stats, apply)


def live_parameters(network: Supernet, params, mixtures: Mapping[str, Mixture]):
    """Parameters active in the mixtures: a tree like `params` of bools that broadcast to it."""
    live = jax.tree.map(lambda leaf: jnp.bool_(True), params)
    for i, kind in enumerate(cell_types(network.space.skeleton, network.cells)):
        active = mixtures[kind].active
        for stride, indices in network.space.by_stride(kind == "reduce").items():
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
    """The network built from a genotype for training.

    In the "darts" skeleton this is DARTS' NetworkCIFAR or NetworkImageNet, in "nasbench201" the
    benchmark's network (16 channels and 15 cells there).

    Attributes:
      genotype: the cells, and the skeleton that they form.
      num_classes: width of the logits.
      channels, cells: as in `Supernet` (36 and 20 for CIFAR-10, 48 and 14 for ImageNet).
      stem: "cifar" keeps the image's size, "imagenet" divides it by 8 ("darts" only).
      output: how a cell combines its nodes: "concat", or "conv" to add ReLU, a 1 x 1 convolution to
        the cell's channels and a norm ("darts" only).
      squeeze: cells with squeeze-and-excitation on their output: "" none, "early" those up to the
        second reduction, as in XNAS' public code, "every" all of them. The gates' inner layers are
        4 times narrower at the first cells' width, 8 times after ("darts" only).
      auxiliary: a second classifier after the last reduction, for training only ("darts" only).
      remat: keep only the cells' outputs for the backward pass and recompute the rest: a fraction
        of the memory for about a third more time. (XLA's CPU compiler undoes it.)
    """

    genotype: Genotype
    num_classes: int
    channels: int = 36
    cells: int = 20
    stem: str = "cifar"
    auxiliary: bool = False
    remat: bool = False
    output: str = "concat"
    squeeze: str = ""

    @nn.compact
    def __call__(self, x, context: Context = Context(), drop_path=None):
        """Applies the network.

        Args:
          x: [N, H, W, 1 or 3].
          context: how to apply the layers.
          drop_path: probability (scalar) that an edge drops a sample; None for no drop-path.
            Requires the rng stream "drop_path".

        Returns:
          (logits [N, num_classes], auxiliary logits [N, num_classes] or None). Auxiliary logits
          exist only in training. The pooled features [N, F] are sown as "features" into the
          collection "intermediates".
        """
        x = _in_precision(x, context)
        kind = nn.remat(EvalCell, static_argnums=3) if self.remat else EvalCell
        skeleton = self.genotype.skeleton

        def cell(i, cell_type, states, channels, reduction_prev=False):
            nodes, concat = self.genotype.cells[cell_type]
            reduction = cell_type == "reduce"
            gated = i < {"": 0, "early": 2 * self.cells // 3 + 1, "every": self.cells}[self.squeeze]
            narrower = 4 if channels == self.channels else 8
            module = kind(
                nodes,
                concat,
                channels,
                reduction,
                reduction_prev,
                skeleton,
                convolve=self.output == "conv",
                squeeze=narrower if gated else 0,
                name=f"cell{i}",
            )
            return module(states, drop_path, context)

        for name, known in (("stem", STEMS), ("output", OUTPUTS), ("squeeze", SQUEEZES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} has to be one of {known}, got {getattr(self, name)!r}")
        if skeleton == "nasbench201":
            if self.auxiliary or self.squeeze or (self.stem, self.output) != ("cifar", "concat"):
                raise ValueError(
                    "a nasbench201 network has no auxiliary head, one kind of stem, and cells that "
                    "end in their last node"
                )
            x = _residual_stages(self, x, context, cell)
            return _classify(self, x, self.num_classes, context), None
        if self.stem == "imagenet":
            stem0, stem1 = _imagenet_stems(x.shape[-1], self.channels)
            s0 = run_layer(self, "stem0", stem0, x, context)
            s1 = run_layer(self, "stem1", stem1, s0, context)
        else:
            stem = _stem(x.shape[-1], STEM_MULTIPLIER * self.channels)
            s0 = s1 = run_layer(self, "stem", stem, x, context)
        auxiliary = None
        wanted = self.auxiliary and (context.train or self.is_initializing())
        for i, x in enumerate(
            _stacked_cells(self, s0, s1, skeleton, self.stem == "imagenet", cell)
        ):
            if wanted and i == 2 * self.cells // 3:
                head = _auxiliary_head(x.shape[-1], self.num_classes, self.stem == "cifar")
                auxiliary = run_layer(self, "auxiliary_head", head, x, context)
        return _classify(self, x, self.num_classes, context), auxiliary


def _classify(module, x, num_classes, context):
    features = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
    module.sow("intermediates", "features", features)
    return run_layer(module, "classifier", dense(x.shape[-1], num_classes), features, context)


def count_parameters(params) -> int:
    """Number of scalars in a tree of parameters, without the auxiliary head."""
    kept = {name: tree for name, tree in params.items() if name != "auxiliary_head"}
    return sum(leaf.size for leaf in jax.tree.leaves(kept))


def multiply_adds(network: EvalNetwork, image_shape) -> int:
    """Multiply-adds of the convolutions and the classifier for one image [H, W, C]."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.result_type(float))
    context = Context(reference=True)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, context), x)
    return cost(lambda v, x: network.apply(v, x, context)[0], variables, x)
