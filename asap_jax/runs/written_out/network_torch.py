# The template of the exported file of the same name, see network_flax.py. The package never imports
# it; exporting reads it as text.
"""An image classifier in PyTorch, found and trained with asap_jax, which it does not need.

    network = load("network.safetensors")
    predict(network, images)  # uint8 [B, H, W, C] -> names of the classes

Training goes on as with any module: network.train() normalizes by the batch's statistics.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

# Height, width and channels; mean and standard deviation of images in [0, 1].
IMAGE = (32, 32, 3)
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
CLASSES = ("no", "yes")


def conv(inputs, channels, kernel=1, stride=1):
    """Convolution without bias; the padding keeps the size of maps at stride 1."""
    return nn.Conv2d(inputs, channels, kernel, stride, kernel // 2, bias=False)


def depthwise(channels, kernel, stride=1, dilation=1):
    """Convolution of each channel with its own kernel, without bias."""
    return nn.Conv2d(
        channels,
        channels,
        kernel,
        stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=channels,
        bias=False,
    )


def max_pool(stride=1):
    """Maximum over 3 x 3 windows."""
    return nn.MaxPool2d(3, stride, padding=1)


def avg_pool(stride=1):
    """Mean over 3 x 3 windows, of the pixels inside the map."""
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


class ReluConvNorm(nn.Module):
    """ReLU, convolution, norm."""

    def __init__(self, inputs, channels, kernel=1, stride=1):
        super().__init__()
        self.conv = conv(inputs, channels, kernel, stride)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(F.relu(x)))


class SeparableConv(nn.Module):
    """ReLU, depthwise and pointwise convolution, norm; twice, then with stride 1."""

    def __init__(self, channels, kernel, stride=1):
        super().__init__()
        self.depthwise_1 = depthwise(channels, kernel, stride)
        self.pointwise_1 = conv(channels, channels)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.depthwise_2 = depthwise(channels, kernel)
        self.pointwise_2 = conv(channels, channels)
        self.norm_2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = self.norm_1(self.pointwise_1(self.depthwise_1(F.relu(x))))
        return self.norm_2(self.pointwise_2(self.depthwise_2(F.relu(x))))


class DilatedConv(nn.Module):
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, norm."""

    def __init__(self, channels, kernel, stride=1):
        super().__init__()
        self.depthwise = depthwise(channels, kernel, stride, dilation=2)
        self.pointwise = conv(channels, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.pointwise(self.depthwise(F.relu(x))))


class FactorizedConv(nn.Module):
    """ReLU, convolutions of 1 x 7 and of 7 x 1, norm."""

    def __init__(self, channels, stride=1):
        super().__init__()
        c, s = channels, stride
        self.conv_1x7 = nn.Conv2d(c, c, (1, 7), (1, s), (0, 3), bias=False)
        self.conv_7x1 = nn.Conv2d(c, c, (7, 1), (s, 1), (3, 0), bias=False)
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x):
        return self.norm(self.conv_7x1(self.conv_1x7(F.relu(x))))


class FactorizedReduce(nn.Module):
    """Halves maps: ReLU, two 1 x 1 convolutions of stride 2 a pixel apart, norm."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.conv_1 = conv(inputs, channels // 2, stride=2)
        self.conv_2 = conv(inputs, channels // 2, stride=2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = F.relu(x)
        halves = [self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])]
        return self.norm(torch.cat(halves, dim=1))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in (0, 1), computed from the means of all."""

    def __init__(self, channels, factor):
        super().__init__()
        inner = max(1, channels // factor)
        self.squeeze = conv(channels, inner)
        self.excite = conv(inner, channels)

    def forward(self, x):
        gate = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(gate))


class Stem(nn.Module):
    """3 x 3 convolution, norm."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.conv = conv(inputs, channels, 3)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x))


class HalvingStem(nn.Module):
    """Two 3 x 3 convolutions that each halve the image, with norms, a ReLU between."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.conv_1 = conv(inputs, channels // 2, 3, stride=2)
        self.norm_1 = nn.BatchNorm2d(channels // 2)
        self.conv_2 = conv(channels // 2, channels, 3, stride=2)
        self.norm_2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = F.relu(self.norm_1(self.conv_1(x)))
        return self.norm_2(self.conv_2(x))


class ResidualReduction(nn.Module):
    """Halves maps: two ReLU, 3 x 3 convolution, norm, beside an average and 1 x 1."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.conv_a = conv(inputs, channels, 3, stride=2)
        self.norm_a = nn.BatchNorm2d(channels)
        self.conv_b = conv(channels, channels, 3)
        self.norm_b = nn.BatchNorm2d(channels)
        self.shortcut = conv(inputs, channels)

    def forward(self, x):
        y = self.norm_a(self.conv_a(F.relu(x)))
        y = self.norm_b(self.conv_b(F.relu(y)))
        return y + self.shortcut(F.avg_pool2d(x, 2))


class NormRelu(nn.Module):
    """Norm, ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.norm(x))


class Network(nn.Module):
    """Without cells, in the template alone."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(IMAGE[2], len(CLASSES))

    def forward(self, x):
        return self.classifier(x.mean((2, 3)))


def load(path="network.safetensors"):
    """The network with its trained weights, in evaluation mode."""
    network, stored = Network(), load_file(path)
    state = network.state_dict()
    for name, layer in network.named_modules():
        at = name.replace(".", "/")
        if isinstance(layer, nn.BatchNorm2d):
            state[f"{name}.weight"] = stored[f"params/{at}/scale"]
            state[f"{name}.bias"] = stored[f"params/{at}/bias"]
            state[f"{name}.running_mean"] = stored[f"batch_stats/{at}/mean"]
            state[f"{name}.running_var"] = stored[f"batch_stats/{at}/var"]
        elif isinstance(layer, nn.Conv2d):
            state[f"{name}.weight"] = arranged(stored[f"params/{at}/kernel"])
        elif isinstance(layer, nn.Linear):
            state[f"{name}.weight"] = stored[f"params/{at}/kernel"].T
            state[f"{name}.bias"] = stored[f"params/{at}/bias"]
    network.load_state_dict(state)
    return network.eval()


def arranged(kernel):
    """[rows, columns, inputs, outputs] -> [outputs, inputs, rows, columns]."""
    if kernel.ndim == 2:  # 1 x 1, stored as [inputs, outputs]
        kernel = kernel[None, None]
    elif kernel.ndim == 3:  # depthwise, stored as [rows, columns, channels]
        kernel = kernel[:, :, None]
    return kernel.permute(3, 2, 0, 1)


def normalize(images):
    """uint8 images [B, H, W, C] -> what the network sees, float32 [B, C, H, W]."""
    x = torch.as_tensor(images).float() / 255
    x = (x - x.new_tensor(MEAN)) / x.new_tensor(STD)
    return x.permute(0, 3, 1, 2)


@torch.no_grad()
def predict(network, images):
    """uint8 images [B, H, W, C] -> names of their classes."""
    x = normalize(images).to(network.classifier.weight.device)
    return [CLASSES[index] for index in network(x).argmax(1).tolist()]
