"""Depthwise convolution with gradients of its own.

XLA's grouped convolution is some sixty times slower on a CPU than k*k shifted multiply-adds, and the
kernel's gradient, left to autodiff, is slow as well. So on a CPU the forward pass is a sum of shifted
slices, the input's gradient is the same sum with the kernel turned round, and the kernel's gradient
adds up one image after another, which keeps the working set in cache. Elsewhere XLA's own
convolution and its gradients are used. `depthwise_conv_reference` is the plain form: the same
numbers, and what `tests` and the counting of multiply-adds run on.

The backward pass consists of differentiable primitives with static trip counts, so a
Hessian-vector product can be taken reverse over reverse.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x, kernel, stride=1, dilation=1):
    """Convolves each channel with a k x k kernel of its own, padded to keep the map (PyTorch's way).

    Args:
      x: [N, H, W, C].
      kernel: [k, k, C], k odd.
      stride: output every `stride` pixels, counted from the first.
      dilation: distance between the kernel's taps; the padding is dilation * (k - 1) / 2.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), C].
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted_sum, stride=stride, dilation=dilation),
        default=partial(depthwise_conv_reference, stride=stride, dilation=dilation),
    )


def depthwise_conv_reference(x, kernel, stride=1, dilation=1):
    """The same as `depthwise_conv`, by XLA's grouped convolution and autodiff."""
    padding = _padding(kernel, dilation)
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        ((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _forward(x, kernel, stride, dilation):
    return depthwise_conv(x, kernel, stride, dilation), (x, kernel)


def _backward(stride, dilation, residuals, g):
    x, kernel = residuals

    def on_cpu(x, kernel, g):
        return (
            _input_gradient(x.shape, kernel, g, stride, dilation),
            _kernel_gradient(x, kernel.shape, g, stride, dilation),
        )

    def elsewhere(x, kernel, g):
        conv = partial(depthwise_conv_reference, stride=stride, dilation=dilation)
        return jax.vjp(conv, x, kernel)[1](g)

    return lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=elsewhere)


depthwise_conv.defvjp(_forward, _backward)


def _padding(kernel, dilation):
    return dilation * (kernel.shape[0] - 1) // 2


def _tap(padded, i, j, height, width, stride, dilation):
    """The slice of `padded` [N, H, W, C] that tap (i, j) of the kernel meets: [N, height, width, C]."""
    top, left = i * dilation, j * dilation
    return lax.slice(
        padded,
        (0, top, left, 0),
        (
            padded.shape[0],
            top + (height - 1) * stride + 1,
            left + (width - 1) * stride + 1,
            padded.shape[3],
        ),
        (1, stride, stride, 1),
    )


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _taps(kernel_shape):
    return [(i, j) for i in range(kernel_shape[0]) for j in range(kernel_shape[1])]


def _shifted_sum(x, kernel, stride, dilation):
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded = _pad(x, _padding(kernel, dilation))
    return sum(
        _tap(padded, i, j, height, width, stride, dilation) * kernel[i, j]
        for i, j in _taps(kernel.shape)
    )


def _input_gradient(x_shape, kernel, g, stride, dilation):
    """Spreads g to the input's grid and convolves it with the kernel turned round."""
    if stride > 1:
        edge = [
            (0, size - ((grown - 1) * stride + 1), stride - 1)
            for size, grown in zip(x_shape[1:3], g.shape[1:3], strict=True)
        ]
        g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *edge, (0, 0, 0)])
    return _shifted_sum(g, kernel[::-1, ::-1], 1, dilation)


def _kernel_gradient(x, kernel_shape, g, stride, dilation):
    height, width = g.shape[1:3]
    padded = _pad(x, dilation * (kernel_shape[0] - 1) // 2)

    def add_image(n, total):
        image = lax.dynamic_slice_in_dim(padded, n, 1)
        g_n = lax.dynamic_slice_in_dim(g, n, 1)
        return total + jnp.stack(
            [
                jnp.sum(_tap(image, i, j, height, width, stride, dilation) * g_n, (0, 1, 2))
                for i, j in _taps(kernel_shape)
            ]
        )

    zero = jnp.zeros((kernel_shape[0] * kernel_shape[1], kernel_shape[2]), g.dtype)
    return lax.fori_loop(0, x.shape[0], add_image, zero).reshape(kernel_shape)
