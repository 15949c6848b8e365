"""Each primitive's values and gradients against a slow NumPy reference, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asap_jax import Context
from asap_jax.layers import batch_norm, convolution, depthwise, ops, pooling

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def slow_depthwise(x, kernel, stride, dilation, g):
    """(y, gradient of x, gradient of the kernel) of <g, y>, by loops."""
    n, height, width, channels = x.shape
    k = kernel.shape[0]
    pad = dilation * (k - 1) // 2
    rows, columns = -(-height // stride), -(-width // stride)
    y = np.zeros((n, rows, columns, channels))
    g_x, g_kernel = np.zeros_like(x), np.zeros_like(kernel)
    for row in range(rows):
        for column in range(columns):
            for i in range(k):
                for j in range(k):
                    h, w = row * stride + i * dilation - pad, column * stride + j * dilation - pad
                    if 0 <= h < height and 0 <= w < width:
                        y[:, row, column] += x[:, h, w] * kernel[i, j]
                        g_x[:, h, w] += g[:, row, column] * kernel[i, j]
                        g_kernel[i, j] += (g[:, row, column] * x[:, h, w]).sum(0)
    return y, g_x, g_kernel


def slow_pool(x, stride, g, largest):
    n, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    y, g_x = np.zeros((n, rows, columns, channels)), np.zeros_like(x)
    for index in np.ndindex(n, rows, columns, channels):
        b, row, column, c = index
        met = [
            (h, w)
            for h in range(row * stride - 1, row * stride + 2)
            for w in range(column * stride - 1, column * stride + 2)
            if 0 <= h < height and 0 <= w < width
        ]
        values = [x[b, h, w, c] for h, w in met]
        if largest:
            h, w = met[int(np.argmax(values))]  # the first of equal ones
            y[index] = x[b, h, w, c]
            g_x[b, h, w, c] += g[index]
        else:
            y[index] = np.mean(values)
            for h, w in met:
                g_x[b, h, w, c] += g[index] / len(met)
    return y, g_x


def value_and_pull(form, arguments, g):
    """(form(*arguments), gradients of <g, form>), compiled as one program."""

    @jax.jit
    def run(arguments, g):
        y, pull = jax.vjp(form, *arguments)
        return y, *pull(g)

    return run(arguments, jnp.asarray(g))


@pytest.mark.parametrize(("size", "stride"), [((7, 6), 1), ((7, 6), 2), ((8, 8), 2)])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 2), (5, 2), (7, 1)])
def test_depthwise(size, stride, kernel, dilation):
    x, k = RNG.normal(size=(2, *size, 3)), RNG.normal(size=(kernel, kernel, 3))
    g = RNG.normal(size=(2, -(-size[0] // stride), -(-size[1] // stride), 3))
    expected = slow_depthwise(x, k, stride, dilation, g)
    for form in (depthwise.depthwise_conv, depthwise.depthwise_conv_reference):
        result = value_and_pull(lambda x, k, form=form: form(x, k, stride, dilation), (x, k), g)
        for got, want in zip(result, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def slow_conv(x, kernel, stride, padding, g):
    """(y, gradient of x, gradient of the kernel) of <g, y>, by loops."""
    height, width = x.shape[1:3]
    y, g_x, g_kernel = np.zeros_like(g), np.zeros_like(x), np.zeros_like(kernel)
    for row, column, i, j in np.ndindex(*g.shape[1:3], *kernel.shape[:2]):
        h, w = row * stride[0] + i - padding[0], column * stride[1] + j - padding[1]
        if 0 <= h < height and 0 <= w < width:
            y[:, row, column] += x[:, h, w] @ kernel[i, j]
            g_x[:, h, w] += g[:, row, column] @ kernel[i, j].T
            g_kernel[i, j] += x[:, h, w].T @ g[:, row, column]
    return y, g_x, g_kernel


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (1, 1)), ((1, 7), (0, 3)), ((2, 2), (0, 0))]
)
def test_conv(stride, kernel, padding):
    x, k = RNG.normal(size=(2, 7, 6, 3)), RNG.normal(size=(*kernel, 3, 4))
    rows, columns = (
        (size + 2 * p - k) // s + 1
        for size, p, k, s in zip(x.shape[1:3], padding, kernel, stride, strict=True)
    )
    g = RNG.normal(size=(2, rows, columns, 4))
    expected = slow_conv(x, k, stride, padding, g)
    for form in (convolution.conv, convolution.conv_reference):
        result = value_and_pull(lambda x, k, form=form: form(x, k, stride, padding), (x, k), g)
        for got, want in zip(result, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wanted", [None, True, False])
def test_kernels_that_do_not_learn_get_zeros(wanted):
    x, k, mixer = RNG.normal(size=(2, 6, 6, 3)), RNG.normal(size=(3, 3, 3)), RNG.normal(size=(3, 4))
    g = RNG.normal(size=(2, 6, 6, 3))
    flat, flat_g = x.reshape(-1, 3), RNG.normal(size=(72, 4))

    @jax.jit
    def pulled(wanted):
        spatial = jax.vjp(lambda x, k: depthwise.depthwise_conv(x, k, 1, 1, wanted), x, k)[1](g)
        mixed = jax.vjp(lambda x, k: convolution.product(x, k, wanted), flat, mixer)[1](flat_g)
        return spatial, mixed

    (g_x, g_k), (g_flat, g_mixer) = pulled(None if wanted is None else jnp.bool_(wanted))
    _, expected_x, expected_k = slow_depthwise(x, k, 1, 1, g)
    np.testing.assert_allclose(g_x, expected_x, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(g_flat, flat_g @ mixer.T, rtol=1e-12)
    learns = wanted is not False
    np.testing.assert_allclose(g_k, learns * expected_k, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(g_mixer, learns * (flat.T @ flat_g), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(7, 6), (8, 8), (2, 2), (1, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("largest", [True, False])
def test_pools(size, stride, largest):
    x = np.round(RNG.normal(size=(2, *size, 3)), 1 if largest else 15)  # with ties for the maximum
    g = RNG.normal(size=(2, -(-size[0] // stride), -(-size[1] // stride), 3))
    expected = slow_pool(x, stride, g, largest)
    forms = (
        (pooling.max_pool, pooling.max_pool_reference)
        if largest
        else (pooling.avg_pool, pooling.avg_pool_reference)
    )
    for form in forms:
        y, g_x = value_and_pull(lambda x, form=form: form(x, stride), (x,), g)
        np.testing.assert_allclose(y, expected[0], rtol=1e-12)
        np.testing.assert_allclose(g_x, expected[1], rtol=1e-11, atol=1e-12)


def test_max_pool_passes_nan_on():
    x = np.zeros((1, 4, 4, 1))
    x[0, 1, 1] = np.nan
    assert np.isnan(pooling.max_pool(jnp.asarray(x))[0, :3, :3]).all()
    assert not np.isnan(pooling.max_pool(jnp.asarray(x))[0, 3]).any()


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_agree_with_the_plain_forms(stride):
    """Reverse over reverse, as the Hessian-vector products of second-order methods need."""
    x, k = RNG.normal(size=(2, 6, 6, 3)), RNG.normal(size=(3, 3, 3))

    def hessian_times(depthwise_form, max_form, avg_form):
        def loss(x, k):
            y = jnp.tanh(depthwise_form(x, k, 1, 1)) + jnp.sin(depthwise_form(x, k, 1, 2))
            y = depthwise_form(y, k, stride, 1)
            return jnp.sum(jnp.square(max_form(y, stride)) * jnp.cos(avg_form(y, stride)))

        def projected(x, k):
            g_x, g_k = jax.grad(loss, (0, 1))(x, k)
            return jnp.vdot(g_x, jnp.cos(x)) + jnp.vdot(g_k, jnp.sin(k))

        return jax.jit(jax.grad(projected, (0, 1)))(x, k)

    ours = hessian_times(depthwise.depthwise_conv, pooling.max_pool, pooling.avg_pool)
    plain = hessian_times(
        depthwise.depthwise_conv_reference, pooling.max_pool_reference, pooling.avg_pool_reference
    )
    for got, want in zip(ours, plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)


def test_batch_norm():
    x, g = RNG.normal(3, 2, size=(4, 3, 5, 2)), RNG.normal(size=(4, 3, 5, 2))
    scale, bias = RNG.normal(size=2), RNG.normal(size=2)
    stats = {"mean": RNG.normal(size=2), "var": RNG.uniform(1, 2, 2)}
    flat = x.reshape(-1, 2)

    def run(x, scale, bias, train, stats=stats, known=False):
        return batch_norm.batch_norm(x, stats, train=train, known=known, scale=scale, bias=bias)

    y, new = run(x, scale, bias, True)
    np.testing.assert_allclose(
        y, (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias, rtol=1e-12
    )
    np.testing.assert_allclose(new["mean"], flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(new["var"], flat.var(0, ddof=1), rtol=1e-12)
    after = batch_norm.blend(stats, new)
    np.testing.assert_allclose(after["mean"], 0.9 * stats["mean"] + 0.1 * flat.mean(0), rtol=1e-12)

    # The textbook gradient: 1/std * (dy - mean(dy) - xhat * mean(dy * xhat)), dy = g * scale.
    std = np.sqrt(flat.var(0) + 1e-5)
    normed = (x - flat.mean(0)) / std
    dy = g * scale
    expected = (dy - dy.mean((0, 1, 2)) - normed * (dy * normed).mean((0, 1, 2))) / std
    for known in (False, True):  # with statistics computed here, or the same ones given
        given = {"stats": new, "known": True} if known else {}
        value, pull = jax.vjp(lambda *a, given=given: run(*a, True, **given)[0], x, scale, bias)
        np.testing.assert_allclose(value, y, rtol=1e-12)
        g_x, g_scale, g_bias = pull(jnp.asarray(g))
        np.testing.assert_allclose(g_x, expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(g_scale, (g * normed).sum((0, 1, 2)), rtol=1e-11)
        np.testing.assert_allclose(g_bias, g.sum((0, 1, 2)), rtol=1e-11)

    y, same = run(x, scale, bias, False)
    plain = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale + bias
    np.testing.assert_allclose(y, plain, rtol=1e-12)
    assert same is stats


def test_squeeze_and_excitation_by_hand():
    """Means (3, 1) -> inner value relu(3 - 1) = 2 -> gates sigmoid(2 * (1, -1/2))."""
    x = jnp.asarray([[[[2.0, 4.0], [4.0, -2.0]]]])
    params = {
        "squeeze": {"kernel": jnp.asarray([[1.0], [-1.0]])},
        "excite": {"kernel": jnp.asarray([[1.0, -0.5]])},
    }
    layer = ops.squeeze_excite(2, 2)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda weight: weight.shape, layer.weights, is_leaf=lambda w: isinstance(w, ops.Weight)
    )
    y, _ = layer.apply(params, {}, x, Context())
    gates = 1 / (1 + np.exp([-2.0, 1.0]))
    np.testing.assert_allclose(y, x * gates, rtol=1e-12)


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"])
def test_folded_kernels_compute_the_same(name, stride, side):
    """Depthwise and pointwise as one dense kernel: outputs, statistics and all gradients."""
    layer, rng = ops.OPERATIONS[name](4, stride, True), np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape)),
        dict(layer.weights),
        is_leaf=lambda w: isinstance(w, ops.Weight),
    )
    x = jnp.asarray(rng.normal(size=(3, side, side, 4)))

    def outcome(folded):
        def loss(params, x):
            context = Context(train=True, folded=folded)
            y, stats = layer.apply(params, layer.stats(), x, context)
            return jnp.sum(jnp.sin(y)), (y, stats)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        outcome(True),
        outcome(False),
    )


def test_both_ways_to_the_moments_of_a_map():
    """In one pass, as on a GPU, and in two; also where the mean is far from 0."""
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(m, 2, size=(3, 4, 5, c))) for m, c in ((0, 2), (1e4, 3))]
    for way in (batch_norm._moments_at_once, batch_norm._moments_by_two):
        for x, (mean, var) in zip(maps, way(maps), strict=True):
            np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-9)
