"""Operations: pure functions over plain dictionaries of parameters.

A `Layer` describes its parameters, creates its running statistics and applies itself. `OPERATIONS`
maps a candidate's name to the function that builds its layer, following the conventions of DARTS
(PyTorch): ReLU-Conv-BN, convolutions without bias, weights drawn from U(-1, 1) / sqrt(fan_in). To
add an operation, register it:

    def sep_conv_9x9(channels, stride, affine):
        return separable(channels, 9, stride, affine)

    register("sep_conv_9x9", sep_conv_9x9)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.layers import convolution, depthwise, pooling
from asap_jax.layers.batch_norm import batch_norm
from asap_jax.layers.windows import Window


class Context(NamedTuple):
    """How a layer is applied; static under jit.

    train: normalize by batch statistics, which layers then return instead of running statistics.
    known: the given statistics are those of this batch, from a previous pass, see `batch_norm`.
    twice: the gradients will be differentiated again.
    reference: plain XLA implementations instead of custom primitives (same numbers, slower on CPU).
    dtype: of the feature maps, as a string; None keeps their dtype. With "bfloat16", parameters,
      statistics, mixture weights and logits keep their own dtype.
    folded: fold depthwise and pointwise kernels into one dense kernel, equal up to rounding. For
      programs that run only a few times on a GPU: a separate depthwise convolution needs less
      compute there, but its first run takes 0.2 s, since cuDNN compiles it.
    kernel_gradients: scalar bool or None; if False, the backward pass may return zeros for them.
      Traced, so it cannot be part of a static context.
    """

    train: bool = False
    known: bool = False
    twice: bool = False
    reference: bool = False
    dtype: str | None = None
    folded: bool = False
    kernel_gradients: jax.Array | None = None


class Weight(NamedTuple):
    """An uninitialized parameter: drawn from U(-1, 1) / sqrt(fan_in), or filled."""

    shape: tuple[int, ...]
    fan_in: int | None = None
    fill: float = 0.0


class Block(NamedTuple):
    """A part of a layer, from a feature map to a norm without parameters.

    norm: name of the norm's statistics.
    window: window of the convolution of ReLU(x) that is normalized; None for a block without a
      kernel.
    kernel: the layer's parameters -> that convolution's dense kernel [size, size, C, C'].
    function: (x, context) -> the map to normalize, for a block without a kernel, which must be its
      layer's only block. It receives x without ReLU.
    """

    norm: str
    window: Window | None = None
    kernel: Callable | None = None
    function: Callable | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """A part of a network; compared and hashed by identity, so that it can be a static argument.

    weights: (nested) dictionary of `Weight`, {} if there are none.
    stats: () -> dictionary of running statistics, {} if there are none.
    apply: (params, stats, x [N, H, W, C], context) -> (y, stats): in training the batch statistics,
      to be blended into the running ones (`batch_norm.blend`) by the caller; else unchanged.
    blocks: the chain of blocks that `apply` is equivalent to; () if there is none. A plan may
      compute the layer from them, so a layer whose `apply` is replaced needs blocks=() too.
    """

    weights: Mapping
    stats: Callable
    apply: Callable
    blocks: tuple[Block, ...] = ()

    def __post_init__(self):
        if len(self.blocks) > 1 and any(block.kernel is None for block in self.blocks):
            raise ValueError("a block without a kernel has to be its layer's only one")


def draw(weights: Mapping, key, copies: tuple[int, ...] = ()):
    """Draws parameters for `weights`, each with the leading axes `copies`.

    Drawn by NumPy on the host in one callback: compiling hundreds of random draws would take longer
    than a search's first epochs. Also works under jit and `jax.eval_shape`.
    """
    leaves, treedef = jax.tree.flatten(dict(weights), is_leaf=lambda w: isinstance(w, Weight))

    def on_host(key_data):
        rng = np.random.default_rng(np.asarray(key_data))
        return [_value(rng, weight, copies).astype(np.float32) for weight in leaves]

    shapes = [jax.ShapeDtypeStruct((*copies, *weight.shape), jnp.float32) for weight in leaves]
    values = jax.pure_callback(on_host, shapes, jax.random.key_data(key))
    dtype = jnp.result_type(float)  # float64 if x64 is enabled
    return treedef.unflatten([value.astype(dtype) for value in values])


def _value(rng, weight, copies):
    shape = (*copies, *weight.shape)
    if weight.fan_in is None:
        return np.full(shape, weight.fill)
    return rng.uniform(-1, 1, shape) * weight.fan_in**-0.5


def fit(weights, x):
    """Casts weights to the dtype of maps of lower precision."""
    return weights.astype(x.dtype) if x.dtype.itemsize < 4 else weights


def stateless(function: Callable) -> Layer:
    """A layer without parameters or statistics, from function(x, context) -> y."""
    return Layer({}, dict, lambda params, stats, x, context: (function(x, context), stats))


def chain(layers: Mapping[str, Layer]) -> Layer:
    """A sequence of layers, with parameters and statistics keyed by the layers' names."""

    def make_stats():
        made = {name: layer.stats() for name, layer in layers.items()}
        return {name: stats for name, stats in made.items() if stats}

    def apply(params, stats, x, context):
        new_stats = dict(stats)
        for name, layer in layers.items():
            x, new = layer.apply(params.get(name, {}), stats.get(name, {}), x, context)
            if new:
                new_stats[name] = new
        return x, new_stats

    weights = {name: layer.weights for name, layer in layers.items() if layer.weights}
    return Layer(weights, make_stats, apply)


def conv(inputs, outputs, kernel=(1, 1), stride=(1, 1), padding=(0, 0)) -> Layer:
    """Dense convolution without bias, kernel [kh, kw, inputs, outputs]."""

    def apply(params, stats, x, context):
        form = convolution.conv_reference if context.reference else convolution.conv
        return form(x, fit(params["kernel"], x), stride, padding), stats

    fan_in = kernel[0] * kernel[1] * inputs
    return Layer({"kernel": Weight((*kernel, inputs, outputs), fan_in)}, dict, apply)


def pointwise(inputs, outputs) -> Layer:
    """1 x 1 convolution without bias as one matrix product, kernel [inputs, outputs]."""

    def apply(params, stats, x, context):
        flat, kernel = x.reshape(-1, inputs), fit(params["kernel"], x)
        if context.reference:
            y = flat @ kernel
        else:
            y = convolution.product(flat, kernel, context.kernel_gradients)
        return y.reshape(*x.shape[:-1], outputs), stats

    return Layer({"kernel": Weight((inputs, outputs), inputs)}, dict, apply)


def depthwise_conv(channels, kernel, stride=1, dilation=1) -> Layer:
    """Depthwise convolution without bias, kernel [k, k, channels]."""

    def apply(params, stats, x, context):
        weights = fit(params["kernel"], x)
        if context.reference:
            return depthwise.depthwise_conv_reference(x, weights, stride, dilation), stats
        wanted = context.kernel_gradients
        return depthwise.depthwise_conv(x, weights, stride, dilation, wanted), stats

    return Layer({"kernel": Weight((kernel, kernel, channels), kernel**2)}, dict, apply)


def norm(channels, affine=True) -> Layer:
    """Batch normalization; `scale` and `bias` [channels] if affine."""

    weights = {"scale": Weight((channels,), fill=1.0), "bias": Weight((channels,))}

    def make_stats():
        return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}

    def apply(params, stats, x, context):
        return batch_norm(
            x,
            stats,
            train=context.train,
            known=context.known,
            **params,
        )

    return Layer(weights if affine else {}, make_stats, apply)


def dense(inputs, outputs) -> Layer:
    """Linear layer with bias on [N, inputs], kernel [inputs, outputs]."""

    def apply(params, stats, x, context):
        return x @ params["kernel"] + params["bias"], stats

    weights = {"kernel": Weight((inputs, outputs), inputs), "bias": Weight((outputs,), inputs)}
    return Layer(weights, dict, apply)


relu = stateless(lambda x, context: jax.nn.relu(x))


def relu_conv_norm(inputs, outputs, affine=True) -> Layer:
    """ReLU, 1 x 1 convolution, norm: adapts a cell's inputs to its width."""
    return chain({"relu": relu, "conv": pointwise(inputs, outputs), "norm": norm(outputs, affine)})


def factorized_reduce(inputs, outputs, affine=True) -> Layer:
    """ReLU, two parallel 1 x 1 convolutions of stride 2 (one offset by a pixel), norm.

    Requires maps of even height and width; others raise ValueError.
    """
    if outputs % 2:
        raise ValueError(
            f"factorized_reduce halves the map with two convolutions of {outputs}/2 channels each: "
            "the number of channels has to be even"
        )
    halves = pointwise(inputs, outputs // 2)
    bn = norm(outputs, affine)

    def apply(params, stats, x, context):
        if x.shape[1] % 2 or x.shape[2] % 2:
            raise ValueError(
                f"a reduction cell halves its maps and met one of {x.shape[1]}x{x.shape[2]}: "
                "choose an image size that stays even at each reduction (a multiple of 4 for two)"
            )
        x = jax.nn.relu(x)
        y_1, _ = halves.apply(params["conv_1"], {}, x[:, ::2, ::2], context)
        y_2, _ = halves.apply(params["conv_2"], {}, x[:, 1::2, 1::2], context)
        y = jnp.concatenate([y_1, y_2], -1)
        y, new = bn.apply(params.get("norm", {}), stats["norm"], y, context)
        return y, {"norm": new}

    def both(params):
        """One kernel with 2 x 2 taps, of which each half of the outputs uses one."""
        half = outputs // 2
        first, second = (params[name]["kernel"][None, None] for name in ("conv_1", "conv_2"))
        nothing = jnp.zeros((), first.dtype)
        return lax.pad(first, nothing, ((0, 1, 0), (0, 1, 0), (0, 0, 0), (0, half, 0))) + lax.pad(
            second, nothing, ((1, 0, 0), (1, 0, 0), (0, 0, 0), (half, 0, 0))
        )

    weights = {"conv_1": halves.weights, "conv_2": halves.weights}
    if affine:
        weights["norm"] = bn.weights
    blocks = () if affine else (Block("norm", Window(2, 2), both),)
    return Layer(weights, lambda: {"norm": bn.stats()}, apply, blocks)


def squeeze_excite(channels, factor) -> Layer:
    """Scales each channel by a gate in (0, 1) computed from the means of all channels.

    Two linear maps without bias, with a ReLU in between and a sigmoid after, the inner one narrower
    by `factor` (Hu et al., 2018, arXiv:1709.01507).
    """
    inner = max(1, channels // factor)
    squeeze, excite = pointwise(channels, inner), pointwise(inner, channels)

    def apply(params, stats, x, context):
        gate, _ = squeeze.apply(params["squeeze"], {}, x.mean((1, 2)), context)
        gate, _ = excite.apply(params["excite"], {}, jax.nn.relu(gate), context)
        return x * jax.nn.sigmoid(gate)[:, None, None], stats

    return Layer({"squeeze": squeeze.weights, "excite": excite.weights}, dict, apply)


def _separable_block(window: Window, suffix="") -> Block:
    """Depthwise and pointwise as one dense kernel, since nothing non-linear lies between them."""

    def kernel(params):
        depthwise = params["depthwise" + suffix]["kernel"]
        return depthwise[..., None] * params["pointwise" + suffix]["kernel"]

    return Block("norm" + suffix, window, kernel)


def _of_blocks(layers, blocks, affine) -> Layer:
    """The chain of `layers`, which can also be computed block by block (`Context.folded`)."""
    plain = chain(layers)

    def apply(params, stats, x, context):
        if not context.folded:
            return plain.apply(params, stats, x, context)
        new_stats = dict(stats)
        for block in blocks:
            x = convolution.convolve(jax.nn.relu(x), fit(block.kernel(params), x), block.window)
            given = params.get(block.norm, {}), stats[block.norm]
            x, new_stats[block.norm] = layers[block.norm].apply(*given, x, context)
        return x, new_stats

    return replace(plain, apply=apply, blocks=() if affine else blocks)


def separable(channels, kernel, stride, affine) -> Layer:
    """ReLU, depthwise, pointwise, norm; twice, the second time with stride 1."""
    layers = {
        "relu_1": relu,
        "depthwise_1": depthwise_conv(channels, kernel, stride),
        "pointwise_1": pointwise(channels, channels),
        "norm_1": norm(channels, affine),
        "relu_2": relu,
        "depthwise_2": depthwise_conv(channels, kernel),
        "pointwise_2": pointwise(channels, channels),
        "norm_2": norm(channels, affine),
    }
    padding = kernel // 2
    blocks = (
        _separable_block(Window(kernel, stride, 1, padding), "_1"),
        _separable_block(Window(kernel, 1, 1, padding), "_2"),
    )
    return _of_blocks(layers, blocks, affine)


def dilated(channels, kernel, stride, affine) -> Layer:
    """ReLU, depthwise with dilation 2, pointwise, norm."""
    layers = {
        "relu": relu,
        "depthwise": depthwise_conv(channels, kernel, stride, dilation=2),
        "pointwise": pointwise(channels, channels),
        "norm": norm(channels, affine),
    }
    block = _separable_block(Window(kernel, stride, 2, kernel - 1))
    return _of_blocks(layers, (block,), affine)


def _pool(form, reference):
    def build(channels, stride, affine):
        return stateless(lambda x, context: (reference if context.reference else form)(x, stride))

    return build


def _skip_connect(channels, stride, affine):
    if stride == 1:
        return stateless(lambda x, context: x)
    return factorized_reduce(channels, channels, affine)


def _none(channels, stride, affine):
    return stateless(lambda x, context: jnp.zeros_like(x[:, ::stride, ::stride]))


def _conv_7x1_1x7(channels, stride, affine):
    return chain(
        {
            "relu": relu,
            "conv_1x7": conv(channels, channels, (1, 7), (1, stride), (0, 3)),
            "conv_7x1": conv(channels, channels, (7, 1), (stride, 1), (3, 0)),
            "norm": norm(channels, affine),
        }
    )


def _relu_conv_norm(kernel):
    def build(channels, stride, affine):
        padding = kernel // 2
        layer = conv(channels, channels, (kernel,) * 2, (stride,) * 2, (padding,) * 2)
        block = Block(
            "norm", Window(kernel, stride, 1, padding), lambda params: params["conv"]["kernel"]
        )
        layers = {"relu": relu, "conv": layer, "norm": norm(channels, affine)}
        return replace(chain(layers), blocks=() if affine else (block,))

    return build


def _with_kernel(build, kernel):
    return lambda channels, stride, affine: build(channels, kernel, stride, affine)


OPERATIONS: dict[str, Callable[[int, int, bool], Layer]] = {
    "none": _none,
    "max_pool_3x3": _pool(pooling.max_pool, pooling.max_pool_reference),
    "avg_pool_3x3": _pool(pooling.avg_pool, pooling.avg_pool_reference),
    "skip_connect": _skip_connect,
    "sep_conv_3x3": _with_kernel(separable, 3),
    "sep_conv_5x5": _with_kernel(separable, 5),
    "sep_conv_7x7": _with_kernel(separable, 7),
    "dil_conv_3x3": _with_kernel(dilated, 3),
    "dil_conv_5x5": _with_kernel(dilated, 5),
    "conv_7x1_1x7": _conv_7x1_1x7,
    "nor_conv_1x1": _relu_conv_norm(1),  # from NAS-Bench-201
    "nor_conv_3x3": _relu_conv_norm(3),
}


def register(name: str, build: Callable[[int, int, bool], Layer]) -> None:
    """Registers an operation by name for spaces, genotypes and the networks built from them.

    Checkpoints refer to operations by name, so a program that loads one must register the same
    operations.

    Args:
      name: as written in genotypes.
      build: (channels, stride 1 or 2, affine) -> Layer that maps [N, H, W, channels] to
        [N, H / stride, W / stride, channels]. `affine` says whether its norms have parameters:
        False in the supernet.

    A redefined function, as in a notebook, replaces its previous version.

    Raises:
      ValueError: the name is already registered for another operation.
    """

    def origin(function):
        return getattr(function, "__module__", None), getattr(function, "__qualname__", function)

    if origin(OPERATIONS.get(name, build)) != origin(build):
        raise ValueError(
            f"there is another operation {name!r} already: choose another name (genotypes and "
            "checkpoints know operations by name alone)"
        )
    OPERATIONS[name] = build


POOLS = {"max_pool_3x3", "avg_pool_3x3"}


def candidate(name: str, channels: int, stride: int, normed_pools: bool = True) -> Layer:
    """A search candidate: norms have no parameters, and as in DARTS each pool gets a norm."""
    return _candidate(OPERATIONS[name], normed_pools and name in POOLS, channels, stride)


@cache  # same object for equal arguments, so that cells of equal shape share their traces
def _candidate(build, normed, channels, stride):
    layer = build(channels, stride, False)
    if normed:
        pool = Block("norm", function=lambda x, context: layer.apply({}, {}, x, context)[0])
        chained = chain({"pool": layer, "norm": norm(channels, affine=False)})
        return replace(chained, blocks=(pool,))
    return layer


def cost(layer_apply: Callable, *arguments) -> int:
    """Multiply-adds of the convolutions and matrix products in layer_apply(*arguments).

    Counted on the jaxpr, so it covers user-defined operations. Trace with
    `Context(reference=True)`: the custom depthwise convolution hides its multiplications.
    """
    return _count(jax.make_jaxpr(layer_apply)(*arguments).jaxpr, _MULTIPLY_ADDS)


def traffic(layer_apply: Callable, *arguments) -> int:
    """Values read and written by those convolutions and matrix products; see `cost`."""
    return _count(jax.make_jaxpr(layer_apply)(*arguments).jaxpr, _TRAFFIC)


def _count(jaxpr, measures) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += measures.get(equation.primitive.name, lambda _: 0)(equation)
        for sub in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"),
        ):
            if hasattr(sub, "jaxpr"):
                sub = sub.jaxpr
            if hasattr(sub, "eqns"):
                total += _count(sub, measures)
    return total


def _dot_cost(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return equation.outvars[0].aval.size * _product(lhs[d] for d in contracted)


def _conv_cost(equation):
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return equation.outvars[0].aval.size * _product(kernel) // outputs


def _product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result


def _moved(equation):
    return sum(variable.aval.size for variable in (*equation.invars, *equation.outvars))


_MULTIPLY_ADDS = {"dot_general": _dot_cost, "conv_general_dilated": _conv_cost}
_TRAFFIC = dict.fromkeys(_MULTIPLY_ADDS, _moved)
