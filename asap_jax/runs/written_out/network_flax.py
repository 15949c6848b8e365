# The template of the exported file of the same name: `source.written` keeps the definitions that a
# network needs, fills in the constants and puts the network's own cells in the place of `Network`.
# Lines of at most 88 columns, broken only where a trailing comma keeps them broken: an exported
# file passes `ruff format` at its default width and at wider ones. Layers have the names that
# their weights have in network.safetensors.
"""An image classifier in Flax, found and trained with asap_jax, which it does not need.

    variables = load("network.safetensors")
    predict(variables, images)  # uint8 [B, H, W, C] -> names of the classes

Training goes on as with any module that has batch statistics:

    logits, new = Network().apply(
        variables, normalize(images), train=True, mutable=["batch_stats"]
    )
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

# Height, width and channels; mean and standard deviation of images in [0, 1].
IMAGE = (32, 32, 3)
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
CLASSES = ("no", "yes")


def conv(x, channels, kernel=1, stride=1, name="conv"):
    """Convolution without bias; the padding keeps the size of maps at stride 1."""
    size, padding = (kernel, kernel), kernel // 2
    return nn.Conv(channels, size, stride, padding, use_bias=False, name=name)(x)


def depthwise(x, kernel, stride=1, dilation=1, name="depthwise"):
    """Convolution of each channel with its own kernel, without bias."""
    return nn.Conv(
        x.shape[-1],
        (kernel, kernel),
        stride,
        padding=dilation * (kernel // 2),
        kernel_dilation=dilation,
        feature_group_count=x.shape[-1],
        use_bias=False,
        name=name,
    )(x)


def norm(x, train, name="norm"):
    """Batch normalization, by the batch's statistics in training."""
    layer = nn.BatchNorm(not train, momentum=0.9, use_fast_variance=False, name=name)
    return layer(x)


def max_pool(x, stride=1):
    """Maximum over 3 x 3 windows."""
    return nn.max_pool(
        x,
        window_shape=(3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
    )


def avg_pool(x, stride=1):
    """Mean over 3 x 3 windows, of the pixels inside the map."""
    return nn.avg_pool(
        x,
        window_shape=(3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        count_include_pad=False,
    )


class ReluConvNorm(nn.Module):
    """ReLU, convolution, norm."""

    channels: int
    kernel: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        x = conv(nn.relu(x), self.channels, self.kernel, self.stride)
        return norm(x, train)


class SeparableConv(nn.Module):
    """ReLU, depthwise and pointwise convolution, norm; twice, then with stride 1."""

    channels: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        x = depthwise(nn.relu(x), self.kernel, self.stride, name="depthwise_1")
        x = conv(x, self.channels, name="pointwise_1")
        x = norm(x, train, "norm_1")
        x = depthwise(nn.relu(x), self.kernel, name="depthwise_2")
        x = conv(x, self.channels, name="pointwise_2")
        return norm(x, train, "norm_2")


class DilatedConv(nn.Module):
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, norm."""

    channels: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        x = depthwise(nn.relu(x), self.kernel, self.stride, dilation=2)
        x = conv(x, self.channels, name="pointwise")
        return norm(x, train)


class FactorizedConv(nn.Module):
    """ReLU, convolutions of 1 x 7 and of 7 x 1, norm."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        x, c, s = nn.relu(x), self.channels, self.stride
        row, column = ((0, 0), (3, 3)), ((3, 3), (0, 0))
        x = nn.Conv(c, (1, 7), (1, s), row, use_bias=False, name="conv_1x7")(x)
        x = nn.Conv(c, (7, 1), (s, 1), column, use_bias=False, name="conv_7x1")(x)
        return norm(x, train)


class FactorizedReduce(nn.Module):
    """Halves maps: ReLU, two 1 x 1 convolutions of stride 2 a pixel apart, norm."""

    channels: int

    @nn.compact
    def __call__(self, x, train):
        x, half = nn.relu(x), self.channels // 2
        even = conv(x[:, ::2, ::2], half, name="conv_1")
        odd = conv(x[:, 1::2, 1::2], half, name="conv_2")
        return norm(jnp.concatenate([even, odd], axis=-1), train)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in (0, 1), computed from the means of all."""

    factor: int

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        inner = max(1, channels // self.factor)
        gate = x.mean((1, 2), keepdims=True)
        gate = nn.relu(nn.Dense(inner, use_bias=False, name="squeeze")(gate))
        return x * nn.sigmoid(nn.Dense(channels, use_bias=False, name="excite")(gate))


class Stem(nn.Module):
    """3 x 3 convolution, norm."""

    channels: int

    @nn.compact
    def __call__(self, x, train):
        return norm(conv(x, self.channels, 3), train)


class HalvingStem(nn.Module):
    """Two 3 x 3 convolutions that each halve the image, with norms, a ReLU between."""

    channels: int

    @nn.compact
    def __call__(self, x, train):
        x = conv(x, self.channels // 2, 3, stride=2, name="conv_1")
        x = nn.relu(norm(x, train, "norm_1"))
        x = conv(x, self.channels, 3, stride=2, name="conv_2")
        return norm(x, train, "norm_2")


class ResidualReduction(nn.Module):
    """Halves maps: two ReLU, 3 x 3 convolution, norm, beside an average and 1 x 1."""

    channels: int

    @nn.compact
    def __call__(self, x, train):
        y = conv(nn.relu(x), self.channels, 3, stride=2, name="conv_a")
        y = norm(y, train, "norm_a")
        y = norm(conv(nn.relu(y), self.channels, 3, name="conv_b"), train, "norm_b")
        shortcut = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        return y + conv(shortcut, self.channels, name="shortcut")


class NormRelu(nn.Module):
    """Norm, ReLU."""

    @nn.compact
    def __call__(self, x, train):
        return nn.relu(norm(x, train))


class Network(nn.Module):
    """Without cells, in the template alone."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(len(CLASSES), name="classifier")(x.mean((1, 2)))


def load(path="network.safetensors"):
    """The trained weights and statistics: {"params", "batch_stats"}."""
    stored = load_file(path)
    images = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    shapes = jax.eval_shape(Network().init, jax.random.key(0), images)

    def weight(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(stored[name]).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(weight, shapes)


def normalize(images):
    """uint8 images [B, H, W, C] -> what the network sees, float32."""
    scaled = jnp.asarray(images, jnp.float32) / 255
    return (scaled - jnp.asarray(MEAN)) / jnp.asarray(STD)


@jax.jit
def logits(variables, images):
    """uint8 images [B, H, W, C] -> [B, classes]."""
    return Network().apply(variables, normalize(images))


def predict(variables, images):
    """uint8 images [B, H, W, C] -> names of their classes."""
    return [CLASSES[index] for index in logits(variables, images).argmax(-1).tolist()]
