"""The supernet: one loop over edges, and masks that save time and change nothing else."""

import contextlib
import functools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asap_jax import OPERATIONS, Context, EvalNetwork, Genotype, Mixture, SearchSpace, Supernet
from asap_jax.layers.ops import candidate, stateless
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks import edge_scan, plans
from asap_jax.networks.cells import SearchCell
from asap_jax.networks.edges_unrolled import unrolled_edges
from asap_jax.networks.mixture import Dropout, one_hot_mixture
from asap_jax.networks.models import count_parameters, live_parameters
from asap_jax.networks.spaces import ASAP, DARTS

RNG = np.random.default_rng(0)
TRAIN = Context(train=True)
TWICE = Context(train=True, twice=True)
IMAGES = RNG.normal(size=(4, 8, 8, 3))
ALL = SearchSpace(ASAP.candidates, nodes=2)
FEW = ("sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
SMALL = SearchSpace(FEW, nodes=2)  # a convolution of each kind: half the compile time
CELLS = ("normal", "reduce")


START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def float64():
    RNG.bit_generator.state = START  # a test's draws do not depend on earlier ones
    with jax.enable_x64(True):
        yield


def mixtures(alphas, masks):
    return {c: Mixture(masked_softmax(alphas[c], masks[c]), masks[c]) for c in alphas}


def random_architecture(space, share):
    shape = (len(space.edges), len(space.candidates))
    alphas = {c: jnp.asarray(RNG.normal(size=shape)) for c in CELLS}
    masks = {c: RNG.uniform(size=shape) < share for c in CELLS}
    for mask in masks.values():
        mask[np.arange(shape[0]), RNG.integers(0, shape[1], shape[0])] = True
    return alphas, {c: jnp.asarray(m) for c, m in masks.items()}


def outcome(network, variables, alphas, masks, context=TRAIN):
    """(logits, new statistics, gradients of params and alphas) of a loss, jitted."""
    run = jitted_outcome(network, context)
    (_, (logits, stats)), gradients = run(
        variables["params"], alphas, variables["batch_stats"], masks
    )
    return logits, stats, *gradients


@functools.cache
def jitted_outcome(network, context):
    """One compilation for all masks."""

    def loss(params, alphas, batch_stats, masks):
        logits, new = network.apply(
            {"params": params, "batch_stats": batch_stats},
            jnp.asarray(IMAGES),
            mixtures(alphas, masks),
            context,
            mutable=["batch_stats"],
        )
        return jnp.sum(jnp.sin(logits)), (logits, new["batch_stats"])

    # Without optimization XLA 0.10 gives wrong gradients of the alphas under the unrolled plan.
    unrolled = network.plan.name == "unrolled"
    options = {"xla_backend_optimization_level": "1"} if unrolled else None
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=options)


def init(network, space, seed=0):
    full = mixtures(*random_architecture(space, 1.0))
    return jax.jit(network.init)(jax.random.key(seed), jnp.asarray(IMAGES), full)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


@pytest.fixture(scope="module")
def half():
    """A supernet with half the candidates masked, under the loop plan, and its parts."""
    RNG.bit_generator.state = START
    with jax.enable_x64(True):
        network = Supernet(SMALL, 5, channels=4, cells=3)
        variables = init(network, SMALL)
        alphas, masks = random_architecture(SMALL, 0.4)
        return network, variables, alphas, masks, outcome(network, variables, alphas, masks)


def test_the_loop_equals_the_plain_form(half):
    network, variables, alphas, masks, got = half
    assert_close(got, outcome(network, variables, alphas, masks, Context(True, reference=True)))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "computed",
    [
        pytest.param("all candidates", marks=SLOW),
        pytest.param("more than live", marks=SLOW),
        "what lives",
    ],
)
def test_the_unrolled_plan_equals_the_loop(half, computed):
    network, variables, alphas, masks, want = half
    more = {cell: mask | (RNG.uniform(size=mask.shape) < 0.3) for cell, mask in masks.items()}
    live = {"all candidates": None, "more than live": more, "what lives": masks}[computed]
    plan = plans.Plan("unrolled", live and plans.freeze(live))
    got = outcome(network.clone(plan=plan), variables, alphas, masks)
    for mask, gradient in zip(masks.values(), got[3].values(), strict=True):
        np.testing.assert_array_equal(gradient[~mask], 0)
    assert_close(got, want)


@SLOW
@pytest.mark.parametrize("plan", ["loop", "unrolled"])
def test_evaluation_mode_equals_the_plain_form(half, plan):
    network, variables, alphas, masks, _ = half
    network = network.clone(plan=plans.Plan(plan))
    variables = {
        **variables,
        "batch_stats": jax.tree.map(
            lambda s: s + RNG.uniform(0, 0.5, s.shape), variables["batch_stats"]
        ),
    }
    got = outcome(network, variables, alphas, masks, Context())
    want = outcome(network, variables, alphas, masks, Context(reference=True))
    assert_close((got[0], got[2], got[3]), (want[0], want[2], want[3]))


def test_masked_candidates_get_no_gradient_and_keep_their_statistics(half):
    network, variables, _, masks, (_, stats, g_params, g_alphas) = half
    assert all((g_alphas[c][~masks[c]] == 0).all() for c in CELLS)
    live = live_parameters(network, g_params, {c: Mixture(masks[c], masks[c]) for c in CELLS})
    dead = sum(
        int((~jnp.broadcast_to(on, g.shape)).sum())
        for on, g in zip(jax.tree.leaves(live), jax.tree.leaves(g_params), strict=True)
    )
    assert dead > 100
    jax.tree.map(
        lambda on, g: np.testing.assert_array_equal(jnp.where(on, 0, g), 0), live, g_params
    )
    before = variables["batch_stats"]["cell0"]["stride1"]["sep_conv_3x3"]["norm_1"]["mean"]
    after = stats["cell0"]["stride1"]["sep_conv_3x3"]["norm_1"]["mean"]
    on = masks["normal"][:, 0]
    np.testing.assert_array_equal(after[~on], before[~on])
    assert (after[on] != before[on]).all()


def test_masked_equals_a_supernet_built_of_the_live_candidates():
    """The same candidates masked off and never built: logits and gradients."""
    network = Supernet(SMALL, 5, channels=4, cells=3)
    variables = init(network, SMALL)
    few = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
    columns = jnp.asarray([SMALL.candidates.index(name) for name in few.candidates])
    alphas, masks = random_architecture(SMALL, 0.0)
    masks = {c: jnp.zeros_like(m).at[:, columns].set(True) for c, m in masks.items()}
    logits, _, g_params, g_alphas = outcome(network, variables, alphas, masks)

    built = Supernet(few, 5, channels=4, cells=3)

    dead = set(SMALL.candidates) - set(few.candidates)

    def only_live(tree):
        if not isinstance(tree, dict):
            return tree
        return {name: only_live(node) for name, node in tree.items() if name not in dead}

    small_alphas = {c: a[:, columns] for c, a in alphas.items()}
    small_masks = {c: jnp.ones_like(a, dtype=bool) for c, a in small_alphas.items()}
    want = outcome(built, only_live(variables), small_alphas, small_masks)
    assert_close(logits, want[0])
    assert_close(only_live(g_params), want[2])
    assert_close({c: a[:, columns] for c, a in g_alphas.items()}, want[3])


GENOTYPE = Genotype(
    normal=((("sep_conv_3x3", 0), ("skip_connect", 1)), (("dil_conv_5x5", 0), ("skip_connect", 2))),
    normal_concat=(2, 3),
    reduce=((("skip_connect", 0), ("dil_conv_3x3", 1)), (("sep_conv_5x5", 1), ("sep_conv_3x3", 2))),
    reduce_concat=(2, 3),
)


def test_a_decided_supernet_is_the_network_built_from_its_genotype():
    """One function of the same weights. (Without pools: only the supernet normalizes after one.)"""
    network = Supernet(ALL, 5, channels=4, cells=3)
    variables = init(network, ALL)
    built = EvalNetwork(GENOTYPE, 5, channels=4, cells=3)
    fresh = jax.jit(built.init)(jax.random.key(1), jnp.asarray(IMAGES))

    def transplant(path, leaf):
        names = [entry.key for entry in path]
        if names[0].startswith("cell") and names[-1] in ("scale", "bias"):
            return leaf  # 1 and 0: the supernet's norms have none
        source = variables["params"][names[0]]
        if not names[1].startswith("edge"):
            return functools.reduce(lambda tree, name: tree[name], names[1:], source)
        reduction = names[0] != "cell0"
        nodes = GENOTYPE.reduce if reduction else GENOTYPE.normal
        flat = [(op, source, target) for target, node in enumerate(nodes, 2) for op, source in node]
        op, start, end = flat[int(names[1].removeprefix("edge"))]
        stride = 2 if reduction and start < 2 else 1
        row = ALL.by_stride(reduction)[stride].index(ALL.edges.index((start, end)))
        source = source[f"stride{stride}"][op]
        return functools.reduce(lambda tree, name: tree[name], names[2:], source)[row]

    params = jax.tree.map_with_path(transplant, fresh["params"])
    images = jnp.asarray(IMAGES)
    decided = one_hot_mixture(GENOTYPE, ALL)

    def run(network, variables, *mixtures):
        apply = partial(network.apply, context=TRAIN, mutable=["batch_stats"])
        return jax.jit(apply)(variables, images, *mixtures)[0]

    logits = run(network, variables, decided)
    want, _ = run(built, fresh | {"params": params})
    np.testing.assert_allclose(logits, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("space", "cells", "size"),
    [(ASAP, 8, 1_930_618), (DARTS, 8, 1_930_618), (DARTS, 5, 1_275_834), (DARTS, 8, 299_578)],
    ids=["ASAP", "DARTS", "P-DARTS' first stage", "PC-DARTS, K = 4"],
)
def test_search_network_has_the_published_size(space, cells, size):
    partial_channels = 4 if size == 299_578 else 1
    network = Supernet(space, 10, cells=cells, partial_channels=partial_channels)
    shape = (len(space.edges), len(space.candidates))
    full = {c: Mixture(jnp.ones(shape), jnp.ones(shape, bool)) for c in CELLS}
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float64)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, full), x)
    assert count_parameters(variables["params"]) == size


def test_every_candidate_stands_behind_a_gate_in_one_loop(half):
    """What makes a mask save time: a scan per group of edges, a gate per candidate, no select."""
    network, variables, alphas, masks, _ = half

    def logits(params):
        mixed = mixtures(alphas, masks)
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        return network.apply(variables_, jnp.asarray(IMAGES), mixed, TRAIN, mutable=["batch_stats"])

    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            inner = [
                getattr(p, "jaxpr", p)
                for p in jax.tree.leaves(
                    list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")
                )
            ]
            inner = [p for p in inner if hasattr(p, "eqns")]
            if equation.primitive.name == "scan":
                gates = [e for e in inner[0].eqns if e.primitive.name == "while"]
                found.append((equation.params["length"], len(gates)))
            else:
                for sub in inner:
                    walk(sub)

    walk(jax.make_jaxpr(logits)(variables["params"]).jaxpr)
    gates = len(SMALL.candidates) + 1  # plus one that reads a source, at its first edge
    # Cell 0 is normal: 5 edges in one loop. Cells 1 and 2 reduce: 4 edges of stride 2, 1 inner.
    assert found == [(5, gates), *[(4, gates), (1, gates)] * 2]


@pytest.mark.parametrize(
    "in_place", [pytest.param(True, marks=SLOW), False], ids=["stride 1", "stride 2"]
)
def test_second_derivatives_pass_through_the_loop(in_place):
    """d/d(weights) of a function of the parameters' gradient, against the plain form."""
    stride = 1 if in_place else 2
    names = ("sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect")
    layers = {name: candidate(name, 2, stride) for name in names}
    edges = edge_scan.Edges(
        tuple(layers.items()), (0, 1, 2) if in_place else (0, 1, 0), (2, 2, 3), in_place, TWICE
    )
    active = jnp.asarray(RNG.uniform(size=(3, len(names))) < 0.6).at[:, 0].set(True)
    variables = edge_scan.Variables(
        edge_scan.stack_params(layers, 3, jax.random.key(0)),
        edge_scan.stack_stats(layers, 3),
        jnp.where(active, jnp.asarray(RNG.normal(size=active.shape)), 0),
        active,
    )
    inputs = jnp.asarray(RNG.normal(size=(2, 2, 4, 4, 2)))
    size = 4 // stride
    empty = jnp.zeros((2, 2, size, size, 2))
    nodes = jnp.concatenate([inputs if in_place else empty, empty])

    def mixed_second(scan):
        def loss(params, weights):
            v = variables._replace(params=params, weights=weights)
            return jnp.sum(jnp.sin(scan(edges, v, inputs, nodes)[0]))

        def projected(weights):
            gradients = jax.grad(loss)(variables.params, weights)
            return sum(jnp.vdot(g, jnp.cos(g)) for g in jax.tree.leaves(gradients))

        return jax.jit(jax.grad(projected))(variables.weights)

    def unrolled(edges, *operands):
        return unrolled_edges(edges, active.tolist(), *operands)

    want = jnp.where(active, mixed_second(edge_scan.scan_edges_reference), 0)
    assert np.abs(want).max() > 1e-3
    for scan in (edge_scan.scan_edges, unrolled):
        assert_close(jnp.where(active, mixed_second(scan), 0), want)


# Partial channels and dropout on skips


def two_edges(share=1, in_place=True, dropped=(), train=True):
    """Edges 0 -> 2 and 1 -> 2 with the candidates max pool and skip, C = 4; and their variables."""
    stride = 1 if in_place else 2
    names = ("max_pool_3x3", "skip_connect")
    layers = {name: candidate(name, 4 // share, stride) for name in names}
    edges = edge_scan.Edges(
        tuple(layers.items()), (0, 1), (2, 2), in_place, Context(train), share, dropped
    )
    variables = edge_scan.Variables(
        edge_scan.stack_params(layers, 2, jax.random.key(0)),
        edge_scan.stack_stats(layers, 2),
        jnp.asarray([[0.0, 1.0], [0.0, 1.0]]),
        jnp.asarray([[False, True], [False, True]]),
    )
    return edges, variables


@pytest.mark.parametrize("scan", [edge_scan.scan_edges, edge_scan.scan_edges_reference])
def test_partial_channels_pass_by_and_are_shuffled(scan):
    """y = beta shuffle([skip(x_1), x_2]): output channel j K + i is channel i C/K + j."""
    edges, variables = two_edges(share=2)
    betas = jnp.asarray([0.3, 0.7])
    variables = variables._replace(weights=variables.weights * betas[:, None], edge_weights=betas)
    inputs = RNG.normal(size=(2, 3, 4, 4, 4))
    nodes = jnp.concatenate([jnp.asarray(inputs), jnp.zeros((1, 3, 4, 4, 4))])
    got = scan(edges, variables, jnp.asarray(inputs), nodes)[0][2]
    want = 0.3 * inputs[0][..., [0, 2, 1, 3]] + 0.7 * inputs[1][..., [0, 2, 1, 3]]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_what_passes_by_a_reduction_is_max_pooled():
    edges, variables = two_edges(share=2, in_place=False)
    variables = variables._replace(
        weights=jnp.zeros((2, 2)),
        active=jnp.zeros((2, 2), bool),
        edge_weights=jnp.asarray([1.0, 0.0]),
    )
    inputs = RNG.normal(size=(2, 3, 4, 4, 4))
    got, _ = edge_scan.scan_edges(edges, variables, jnp.asarray(inputs), jnp.zeros((3, 3, 2, 2, 4)))
    np.testing.assert_array_equal(got[2][..., [0, 2]], 0)  # the mixed ones: no candidate is active
    blocks = [inputs[0][:, i::2, j::2, 2:] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(got[2][..., [1, 3]], np.max(blocks, 0))


def test_dropout_on_skips_drops_its_share_while_training():
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), 2))
    dropout = (keys, jnp.asarray([0.4, 0.0]))
    inputs = jnp.asarray(RNG.uniform(1, 2, size=(2, 64, 4, 4, 4)))
    for train in (True, False):
        edges, variables = two_edges(dropped=("skip_connect",), train=train)
        variables = variables._replace(weights=variables.weights.at[1].set(0), dropout=dropout)
        nodes = jnp.concatenate([inputs, jnp.zeros((1, *inputs.shape[1:]))])
        got = np.asarray(edge_scan.scan_edges(edges, variables, inputs, nodes)[0][2])
        if not train:
            np.testing.assert_array_equal(got, inputs[0])
            continue
        kept = got != 0
        assert kept.mean() == pytest.approx(0.6, abs=0.03)
        np.testing.assert_allclose(got[kept], np.asarray(inputs[0])[kept] / 0.6, rtol=1e-12)


@pytest.mark.parametrize("plan", ["loop", "unrolled"])
def test_drop_path_drops_whole_samples_of_an_edge(plan):
    """Two edges of identities: the node is their sum, each sample of each kept or not, over 0.7."""
    space = SearchSpace(("max_pool_3x3", "skip_connect"), nodes=1)
    cell = SearchCell(space, 4, plan=plans.Plan(plan))
    inputs = jnp.asarray(RNG.uniform(1, 2, size=(2, 400, 4, 4, 4)))
    genotype = Genotype(
        ((("skip_connect", 0), ("skip_connect", 1)),), (2,), ((("skip_connect", 1),),), (2,)
    )
    decided = one_hot_mixture(genotype, space)["normal"]
    variables = cell.init(jax.random.key(0), inputs, decided, TRAIN)

    def run(mixture):
        out = cell.apply(variables, inputs, mixture, TRAIN, mutable=["batch_stats"])[0]
        return np.asarray(out)

    whole = run(decided)
    got = run(decided._replace(drop_path=Dropout(jax.random.key(3), jnp.asarray(0.3))))
    alone = [
        run(decided._replace(weights=decided.weights.at[1 - e].set(0.0))) / 0.7 for e in (0, 1)
    ]
    np.testing.assert_allclose((alone[0] + alone[1]) * 0.7, whole, atol=1e-5)
    kinds = {"none": 0 * whole, "first": alone[0], "second": alone[1], "both": whole / 0.7}
    same = {
        name: np.isclose(got, each, atol=1e-4).all((1, 2, 3)).mean() for name, each in kinds.items()
    }
    assert sum(same.values()) == pytest.approx(1)
    for name, want in (("none", 0.09), ("first", 0.21), ("second", 0.21), ("both", 0.49)):
        assert same[name] == pytest.approx(want, abs=0.08), name


@SLOW
@pytest.mark.parametrize("plan", ["loop", "unrolled"])
def test_plans_equal_the_plain_form_with_drop_path(plan):
    """All candidates of an edge drop the same samples, also in the gradients of both strides."""
    space = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
    network = Supernet(space, 5, channels=4, cells=3, plan=plans.Plan(plan))
    variables = init(network, space)
    alphas, masks = random_architecture(space, 0.6)

    def outcome(context):
        @jax.jit
        def run(params, alphas):
            def loss(params, alphas):
                dropout = Dropout(jax.random.key(3), jnp.asarray(0.4))
                mixed = {
                    cell: mix._replace(drop_path=dropout)
                    for cell, mix in mixtures(alphas, masks).items()
                }
                logits, new = network.apply(
                    {"params": params, "batch_stats": variables["batch_stats"]},
                    jnp.asarray(IMAGES),
                    mixed,
                    context,
                    mutable=["batch_stats"],
                )
                return jnp.sum(jnp.sin(logits)), (logits, new["batch_stats"])

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, alphas)

        return run(variables["params"], alphas)

    assert_close(outcome(TRAIN), outcome(Context(True, reference=True)))


@SLOW
@pytest.mark.parametrize("plan", ["loop", "unrolled"])
def test_plans_equal_the_plain_form_with_partial_channels_and_dropout(plan):
    space = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
    network = Supernet(space, 5, channels=4, cells=3, partial_channels=2, plan=plans.Plan(plan))
    variables = init(network, space)
    alphas, masks = random_architecture(space, 0.6)
    betas = {cell: jnp.asarray(RNG.uniform(0.2, 1, len(space.edges))) for cell in CELLS}

    def outcome(context):
        @jax.jit
        def run(params, alphas, betas):
            def loss(params, alphas, betas):
                dropout = Dropout(jax.random.key(3), jnp.asarray(0.4))
                mixed = {
                    cell: mix._replace(edge_weights=betas[cell], skip_dropout=dropout)
                    for cell, mix in mixtures(alphas, masks).items()
                }
                logits, new = network.apply(
                    {"params": params, "batch_stats": variables["batch_stats"]},
                    jnp.asarray(IMAGES),
                    mixed,
                    context,
                    mutable=["batch_stats"],
                )
                return jnp.sum(jnp.sin(logits)), (logits, new["batch_stats"])

            return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, alphas, betas)

        return run(variables["params"], alphas, betas)

    got, want = outcome(TRAIN), outcome(Context(True, reference=True))
    assert_close(got, want)
    g_betas = got[1][2]
    assert all((jnp.abs(g) > 1e-6).all() for g in g_betas.values())


def test_with_partial_channels_an_edge_without_a_candidate_is_not_there():
    """Only the derived cells: the input of an edge that was left out changes nothing."""
    inputs = jnp.asarray(RNG.normal(size=(2, 3, 4, 4, 4)))
    genotype = Genotype(((("skip_connect", 1),),), (2,), ((("skip_connect", 1),),), (2,))
    space = SearchSpace(("max_pool_3x3", "skip_connect"), nodes=1)
    cell = SearchCell(space, 4, partial_channels=2)
    decided = one_hot_mixture(genotype, space)["normal"]
    variables = cell.init(jax.random.key(0), inputs, decided, TRAIN)

    def run(inputs):
        return cell.apply(variables, inputs, decided, TRAIN, mutable=["batch_stats"])[0]

    moved = inputs.at[0].add(jnp.asarray(RNG.normal(size=(3, 4, 4, 4))))
    np.testing.assert_array_equal(run(inputs), run(moved))
    assert np.abs(run(inputs) - run(inputs.at[1].add(moved[0]))).max() > 0.1


@contextlib.contextmanager
def space_with(function):
    """A space of `function` and a pool on five edges; the function is unregistered afterwards."""
    name = function.__name__

    def build(channels, stride, affine):
        return stateless(lambda x, context: function(x[:, ::stride, ::stride]))

    try:
        yield SearchSpace({name: build, "max_pool_3x3": OPERATIONS["max_pool_3x3"]}, nodes=2)
    finally:
        del OPERATIONS[name]
        jitted_outcome.cache_clear()  # it keys networks by their candidates' names


def test_candidates_are_computed_where_they_are_active_and_once_a_source():
    """An operation that counts its runs: forward, and forward again for the backward pass."""
    runs = []

    def counted(x):
        jax.debug.callback(lambda: runs.append(1))
        return x

    with space_with(counted) as space:
        network = Supernet(space, 5, channels=4, cells=3)
        alphas, full = random_architecture(space, 1.0)
        variables = init(network, space)
        # The edges are 0-2, 1-2, 0-3, 1-3, 2-3.
        for live, sources in (([0], 1), ([0, 2], 1), ([2, 3], 2), ([], 0), ([0, 1, 2, 3, 4], 3)):
            chosen = jnp.isin(jnp.arange(5), jnp.asarray(live, int))
            masks = {cell: mask.at[:, 0].set(chosen) for cell, mask in full.items()}
            runs.clear()
            jax.block_until_ready(outcome(network, variables, alphas, masks))
            jax.effects_barrier()
            assert len(runs) == 2 * network.cells * sources


def test_an_inactive_candidate_takes_no_time():
    """The compiler does not compute ahead of a gate what is behind it."""

    def heavy(x):
        square = jnp.broadcast_to(x.mean(), (400, 400))
        for _ in range(20):
            square = jnp.tanh(square @ square)
        return x + square.sum()

    with space_with(heavy) as space:
        network = Supernet(space, 5, channels=4, cells=3)
        alphas, full = random_architecture(space, 1.0)
        variables = init(network, space)
        seconds = []
        for live in (True, False):
            masks = {cell: mask.at[:, 0].set(live) for cell, mask in full.items()}
            jax.block_until_ready(outcome(network, variables, alphas, masks))
            begin = time.perf_counter()
            jax.block_until_ready(outcome(network, variables, alphas, masks))
            seconds.append(time.perf_counter() - begin)
        assert seconds[1] < seconds[0] / 3
