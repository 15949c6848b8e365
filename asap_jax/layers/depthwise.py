"""Depthwise convolution with a custom gradient.

On CPU, XLA's grouped convolution is some sixty times slower than k*k shifted multiply-adds, and
autodiff's kernel gradient is slow as well. On CPU, the forward pass is therefore a sum of shifted
slices, the input gradient the same sum with the kernel flipped, and the kernel gradient a loop over
the taps, which compiles quickly. Other backends use XLA's convolution and gradients.
`depthwise_conv_reference` is the plain version with the same numbers, used by tests and for
counting multiply-adds.

The backward pass consists of differentiable primitives with static trip counts, which allows
reverse-over-reverse Hessian-vector products.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.host.backend import on_cpu
from asap_jax.layers import windows
from asap_jax.layers.convolution import if_it_learns, pieces


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x, kernel, stride=1, dilation=1, kernel_gradients=None):
    """Convolves each channel with its own k x k kernel, with padding that keeps the map's size.

    Args:
      x: [N, H, W, C].
      kernel: [k, k, C], k odd.
      stride: output every `stride` pixels, starting at the first.
      dilation: distance between the kernel's taps; the padding is dilation * (k - 1) / 2.
      kernel_gradients: scalar bool; if False, the kernel's gradient is zeros. None means True.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), C].
    """
    return _convolve(x, kernel, stride, dilation, on_cpu())


def depthwise_conv_reference(x, kernel, stride=1, dilation=1):
    """Same as `depthwise_conv`, with XLA's grouped convolution and autodiff."""
    padding = _padding(kernel.shape[0], dilation)
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        ((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _forward(x, kernel, stride, dilation, kernel_gradients):
    return depthwise_conv(x, kernel, stride, dilation), (x, kernel, kernel_gradients)


def _backward(stride, dilation, residuals, g):
    x, kernel, kernel_gradients = residuals
    options = stride, dilation, on_cpu()
    g_x = _pull_input(x, kernel, g, *options)

    def pull_kernel(x, kernel, g):
        return _pull_kernel(x, kernel, g, *options)

    return g_x, if_it_learns(kernel_gradients, pull_kernel, kernel, x, kernel, g), None


depthwise_conv.defvjp(_forward, _backward)


# Wrapped in jit, so that the hundreds of convolutions of a supernet share a few traces.


@partial(jax.jit, static_argnums=(2, 3, 4))
def _convolve(x, kernel, stride, dilation, cpu):
    return (_shifted_sum if cpu else depthwise_conv_reference)(x, kernel, stride, dilation)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _pull_input(x, kernel, g, stride, dilation, cpu):
    if cpu:  # spreads g over the input's grid and convolves it with the flipped kernel
        spread = windows.spread(g, x.shape[1], x.shape[2], stride)
        return _shifted_sum(spread, kernel[::-1, ::-1], 1, dilation)
    conv = partial(depthwise_conv_reference, kernel=kernel, stride=stride, dilation=dilation)
    return jax.vjp(conv, x)[1](g)[0]


@partial(jax.jit, static_argnums=(3, 4, 5))
def _pull_kernel(x, kernel, g, stride, dilation, cpu):
    if cpu:
        return _kernel_gradient(x, kernel.shape, g, stride, dilation)
    step = dilation
    if step > 1 and stride in (1, step) and _padding(kernel.shape[0], dilation) % step == 0:
        if stride == step:  # the windows only cover pixels of one piece
            x = x[:, ::step, ::step]
        else:
            x, g = pieces(x, step), pieces(g, step)
        conv = partial(depthwise_conv_reference, x, stride=1, dilation=1)
    else:
        conv = partial(depthwise_conv_reference, x, stride=stride, dilation=dilation)
    return jax.vjp(conv, kernel)[1](g)[0]


def _padding(kernel_size, dilation):
    return dilation * (kernel_size - 1) // 2


def _shifted_sum(x, kernel, stride, dilation):
    size = kernel.shape[0]
    height, width = windows.outputs(x.shape[1], stride), windows.outputs(x.shape[2], stride)
    padded = windows.pad(x, _padding(size, dilation))
    shape = (x.shape[0], height, width, x.shape[3])
    total = None
    for i, j in windows.taps(size):  # lax instead of operators: the trace has hundreds of terms
        factor = lax.broadcast_in_dim(
            lax.slice(kernel, (i, j, 0), (i + 1, j + 1, shape[3])), shape, (1, 2, 3)
        )
        term = lax.mul(windows.shifted(padded, i, j, height, width, stride, dilation), factor)
        total = term if total is None else lax.add(total, term)
    return total


IMAGES = 8  # summed in one pass, enough for the pass to outweigh the final reduction


def _kernel_gradient(x, kernel_shape, g, stride, dilation):
    """Loops over batch slices and the kernel's taps; each iteration sums over whole maps.

    The products of `IMAGES` images are accumulated elementwise, with each image sliced where it is
    used: vectorized code without copies. The sum over a map is a product with ones, since XLA would
    fuse a reduction with its operands into scalar code.
    """
    dtype, wide = g.dtype, jnp.promote_types(g.dtype, jnp.float32)
    x, g = x.astype(wide), g.astype(wide)
    size, _, channels = kernel_shape
    batch, height, width, _ = g.shape
    piece = min(IMAGES, batch)
    missing = -batch % piece  # zero images that pad the last slice
    sides = (_padding(size, dilation),) * 2
    padded = _pad(x, ((0, missing), sides, sides, (0, 0)))
    g = _pad(g, ((0, missing), (0, 0), (0, 0), (0, 0)))
    window = (1, (height - 1) * stride + 1, (width - 1) * stride + 1, channels)
    ones = jnp.ones(height * width, g.dtype)

    def tap(index):
        piece_index, tap_index = index // size**2, index % size**2
        top, left = tap_index // size * dilation, tap_index % size * dilation

        def product(n):
            image = piece_index * piece + n
            met = lax.dynamic_slice(padded, (image, top, left, 0), window)
            met = lax.slice(met, (0, 0, 0, 0), window, (1, stride, stride, 1))
            return lax.mul(met, lax.dynamic_slice_in_dim(g, image, 1))

        total = reduce(lax.add, map(product, range(piece)))
        return ones @ total.reshape(height * width, channels)

    taps = lax.map(tap, jnp.arange((batch + missing) // piece * size**2))
    return taps.reshape(-1, *kernel_shape).sum(0).astype(dtype)


def _pad(x, widths):
    config = [(low, high, 0) for low, high in widths]
    return lax.pad(x, jnp.zeros((), x.dtype), config)
