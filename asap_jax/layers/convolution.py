"""Dense convolutions with custom gradients that can be skipped.

XLA computes a kernel's gradient as a convolution with a window as large as the map. Inside a loop
its CPU backend does not use its fast kernels for that and is some twenty times slower than one
matrix product per tap, which `conv` uses. A kernel that does not learn, like all kernels while the
alphas are trained, skips its gradient: `product`, `if_it_learns`.

On GPU, XLA (jax before 0.12) fuses the computation of operands into matrix product kernels, and its
compiler aborts the process on some of these, including the sums of a cell's nodes. `product`
prevents this fusion, at the cost of one pass over the map if it is the output of a ReLU.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.host.backend import on_cpu
from asap_jax.layers.windows import Window


def conv_reference(x, kernel, stride, padding):
    """Same as `conv`, with XLA's convolution and autodiff."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x, kernel, stride, padding):
    """Convolves x [N, H, W, C] with kernel [kh, kw, C, C'].

    Args:
      stride, padding: (rows, columns); zero padding is the same on both sides.

    Returns:
      [N, h, w, C'].
    """
    return conv_reference(x, kernel, stride, padding)


def _conv_backward(stride, padding, residuals, g):
    x, kernel = residuals

    def by_taps(x, kernel, g):
        padded = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
        _, height, width, outputs = g.shape
        spans = (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1
        flat = g.reshape(-1, outputs)
        taps = []
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                met = padded[:, i : i + spans[0] : stride[0], j : j + spans[1] : stride[1]]
                taps.append(met.reshape(-1, met.shape[-1]).T @ flat)
        return jnp.stack(taps).reshape(kernel.shape)

    def by_conv(x, kernel, g):
        return jax.vjp(lambda k: conv_reference(x, k, stride, padding), kernel)[1](g)[0]

    g_x = jax.vjp(lambda x: conv_reference(x, kernel, stride, padding), x)[1](g)[0]
    return g_x, (by_taps if on_cpu() else by_conv)(x, kernel, g)


conv.defvjp(
    lambda x, kernel, stride, padding: (conv(x, kernel, stride, padding), (x, kernel)),
    _conv_backward,
)


@jax.custom_vjp
def product(x, kernel, kernel_gradients=None):
    """x [M, C] @ kernel [C, C'].

    Args:
      kernel_gradients: scalar bool; if False, the kernel's gradient is zeros. None means True.
    """
    return _product_forward(x, kernel, kernel_gradients)[0]


def _product_forward(x, kernel, kernel_gradients):
    x = whole(x)
    return x @ kernel, (x, kernel, kernel_gradients)


def _product_backward(residuals, g):
    x, kernel, kernel_gradients = residuals
    g = whole(g)
    return g @ kernel.T, if_it_learns(kernel_gradients, lambda x, g: x.T @ g, kernel, x, g), None


product.defvjp(_product_forward, _product_backward)


def whole(maps):
    """Makes a GPU compute the maps, and their cotangents, once and before their uses.

    Otherwise XLA recomputes a map inside each kernel that reads it, with dozens of inputs if it is
    the sum of a cell's candidates.
    """
    return maps if on_cpu() else lax.optimization_barrier(maps)


def convolve(x, kernel, window, groups=1):
    """Convolves x [N, H, W, C] with kernel [k, k, C / groups, C'], by XLA's convolution.

    Gradients are XLA's too, except for the kernel gradient of a dilated window, see `pieces`.
    """
    step = window.dilation
    if step == 1 or window.padding % step or window.stride not in (1, step):
        return _convolve(x, kernel, window, groups)
    if window.stride == step:
        return _convolve(x[:, ::step, ::step], kernel, _undilated(window), groups)
    return _dilated(x, kernel, window, groups)


def _convolve(x, kernel, window, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (window.stride,) * 2,
        ((window.padding,) * 2,) * 2,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _undilated(window):
    """The equivalent undilated window within a piece."""
    return Window(window.size, padding=window.padding // window.dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dilated(x, kernel, window, groups):
    return _convolve(x, kernel, window, groups)


def _dilated_backward(window, groups, residuals, g):
    x, kernel = residuals
    g_x = jax.vjp(lambda x: _convolve(x, kernel, window, groups), x)[1](g)[0]
    x, g = (pieces(each, window.dilation) for each in (x, g))
    pull = jax.vjp(lambda kernel: _convolve(x, kernel, _undilated(window), groups), kernel)[1]
    return g_x, pull(g)[0]


_dilated.defvjp(
    lambda x, kernel, window, groups: (_dilated(x, kernel, window, groups), (x, kernel)),
    _dilated_backward,
)


def pieces(x, step):
    """[N * step * step, H / step, W / step, C]: the pixels by row and column modulo `step`.

    All pixels that a window dilated by `step` covers lie in one piece, where the window is not
    dilated; cuDNN takes ten times as long for the kernel gradient of a dilated convolution. Maps
    not divisible by `step` are padded with zeros. The pieces of an image follow one another, so
    that a device's share of a batch stays its own.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // step), -(-width // step)
    x = jnp.pad(x, ((0, 0), (0, -height % step), (0, -width % step), (0, 0)))
    x = x.reshape(batch, rows, step, columns, step, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)


def if_it_learns(kernel_gradients, gradient, kernel, *operands):
    """gradient(*operands), or zeros like the kernel if `kernel_gradients` is False."""
    if kernel_gradients is None:
        return gradient(*operands)
    return lax.cond(kernel_gradients, gradient, lambda *_: jnp.zeros_like(kernel), *operands)
