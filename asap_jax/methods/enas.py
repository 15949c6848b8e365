"""ENAS: Efficient Neural Architecture Search via Parameter Sharing.

Pham et al., 2018, arXiv:1802.03268; its search for cells ("micro").
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asap_jax.methods import bilevel, derive
from asap_jax.methods.base import Architecture, Method, Strategy, full_masks
from asap_jax.networks.mixture import Mixture, one_hot_mixture
from asap_jax.networks.spaces import SKELETONS, SearchSpace

LSTM_SIZE = 64
INITIAL_RANGE = 0.1  # of the controller's parameters
# The authors' preference for separable convolutions, see `conv_bias`.
INITIAL_BIAS, FIXED_BIAS = 10.0, 0.25


def enas(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    inputs_per_node: int | None = 2,
    learning_rate: float = 3.5e-3,
    entropy_weight: float = 1e-4,
    baseline_decay: float = 0.99,
    tanh_constant: float = 1.1,
    op_tanh_reduce: float = 2.5,
    temperature: float = 1.0,
    conv_bias: bool = False,
    architectures: int = 10,
    updates_per_epoch: int = 30,
    samples: int = 10,
    images: int = 160,
) -> Strategy:
    """An LSTM draws architectures and learns by REINFORCE which ones classify well.

    Shared weights train on one drawn architecture per minibatch. The controller's update draws M
    architectures; the reward of each is its accuracy on the alpha batch, with the shared weights
    and batch statistics, plus `entropy_weight` times the entropy of its decisions:

        theta += Adam of mean_m (R_m - b) d log p(a_m; theta) / d theta,

    b a moving average of the rewards. For each node the controller draws `inputs_per_node` sources
    by attention over the earlier nodes, then as many operations; the reduction cell follows the
    normal one in the same sequence (`draw`). The logits of sources are c tanh(l / T), those of
    operations c / r tanh(l / T): c = `tanh_constant`, r = `op_tanh_reduce`, T = `temperature`.

    Differences from the authors' code: it trains the controller after each epoch, here its updates
    are spread evenly over the epoch; the baseline counts each architecture by itself, here all of
    an update are compared with the baseline from before it; a (source, operation) pair that a node
    draws twice counts once, since an edge has one copy of each candidate's weights; and
    cells output all their nodes, there those that no other node uses. Its operations are sep_conv
    3x3 and 5x5, the two pools and the identity. The paper retrains the best of several
    drawn architectures by the accuracy on one minibatch, here `samples` on `images` of the alpha
    half; all they have is derived, whatever rule of edges is asked for.

    Args:
      space: edges and candidates; `none` is drawn only if it can be derived.
      epochs: unused.
      steps_per_epoch: omega steps per epoch.
      inputs_per_node: pairs of source and operation that a node draws. None for one operation on
        each edge, without a choice of sources.
      learning_rate: of the controller's Adam (b1 = 0, epsilon 1e-3 as in the code).
        `config.search.alpha` is not used.
      entropy_weight: of the decisions' entropy in the reward.
      baseline_decay: of the moving average, per architecture.
      tanh_constant, op_tanh_reduce: c and r.
      temperature: T. The authors' search for cells has none; their language model's is 5.
      conv_bias: as in the code, not in the paper: the biases of separable convolutions' logits
        start at 10, where tanh is flat, so that they hardly learn, and in normal cells 0.25 is
        added to their logits and subtracted from the others'.
      architectures: M.
      updates_per_epoch: of the controller; at most one a step.
      samples: architectures of which the best on `images` images is derived. The authors print 10
        each epoch.
      images: of the alpha half; the authors use a minibatch of 160.
    """
    del epochs
    for name, value in (
        ("inputs_per_node", 1 if inputs_per_node is None else inputs_per_node),
        ("architectures", architectures),
        ("updates_per_epoch", updates_per_epoch),
        ("samples", samples),
        ("images", images),
    ):
        if value < 1:
            raise ValueError(f"{name} has to be at least 1, got {value}")
    for name, value in (
        ("learning_rate", learning_rate),
        ("tanh_constant", tanh_constant),
        ("op_tanh_reduce", op_tanh_reduce),
        ("temperature", temperature),
    ):
        if value <= 0:
            raise ValueError(f"{name} has to be above 0, got {value}")
    if not 0 <= baseline_decay < 1:
        raise ValueError(f"baseline_decay has to lie in [0, 1), got {baseline_decay}")
    if entropy_weight < 0:
        raise ValueError(f"entropy_weight has to be 0 or more, got {entropy_weight}")
    ranges = Ranges(temperature, tanh_constant, tanh_constant / op_tanh_reduce, conv_bias)
    drawn_by = partial(draw, space=space, inputs_per_node=inputs_per_node, ranges=ranges)
    updates = min(updates_per_epoch, steps_per_epoch)

    def init(key):
        alphas = {"controller": init_controller(space, conv_bias, key), "baseline": jnp.zeros(())}
        return Architecture(alphas, full_masks(space))

    def mixture(arch, step, key):
        drawn = drawn_by(arch.alphas["controller"], key)
        # Of these weights only the cost of cells is differentiated by the controller.
        return {
            cell: Mixture(chosen + (soft - lax.stop_gradient(soft)), chosen)
            for cell, (chosen, soft) in drawn.pairs.items()
        }

    def learns(step):
        i = step % steps_per_epoch
        return (i + 1) * updates // steps_per_epoch > i * updates // steps_per_epoch

    def reinforce(loss, point):
        keys = jax.random.split(point.key, architectures)
        baseline = point.alphas["baseline"]

        def evaluated(stats, key):
            value, (stats, logits) = loss(point.params, point.alphas, stats, point.val, key)
            return stats, (value, logits, jnp.mean(logits.argmax(-1) == point.val.labels))

        stats, (losses, logits, accuracies) = lax.scan(evaluated, point.batch_stats, keys)

        def surrogate(controller):
            drawn = jax.vmap(partial(drawn_by, controller))(keys)
            rewards = lax.stop_gradient(accuracies + entropy_weight * drawn.entropy)
            return -jnp.mean((rewards - baseline) * drawn.log_probability), rewards.mean()

        gradients, reward = jax.grad(surrogate, has_aux=True)(point.alphas["controller"])
        # The step of gradient descent at rate 1 moves it as `architectures` equal rewards would.
        moved = (1 - baseline_decay**architectures) * (baseline - reward)
        gradients = {"controller": gradients, "baseline": moved}
        return (losses.mean(), (stats, logits.mean(0))), gradients

    @jax.jit  # compiled once, since a search derives after every epoch
    def draw_samples(controller, key):
        drawn = jax.vmap(partial(drawn_by, controller))(jax.random.split(key, samples))
        return {cell: hard for cell, (hard, _) in drawn.pairs.items()}

    def best_of_samples(arch, inputs, key, evaluate):
        chosen = jax.device_get(draw_samples(arch.alphas["controller"], key))
        found = [
            derive.all_living({cell: masks[i] for cell, masks in chosen.items()}, space)
            for i in range(samples)
        ]
        return max(found, key=lambda each: evaluate(one_hot_mixture(each, space), images))

    return Strategy(
        init=init,
        mixture=mixture,
        derive=best_of_samples,
        measured=lambda arch: {"baseline": arch.alphas["baseline"]},
        updates=bilevel.omega_then_alpha(reinforce, differentiations=1),
        learns=learns,
        scheduled_by_epoch=False,
        alpha_optimizer=optax.partition(
            {
                "controller": optax.adam(learning_rate, b1=0.0, b2=0.999, eps=1e-3),
                "baseline": optax.sgd(1.0),
            },
            {"controller": "controller", "baseline": "baseline"},
        ),
        live=lambda arch, step, key: jax.tree.map(lambda a: jnp.ones(a.shape, bool), arch.alphas),
        distribution=None,  # one of whole architectures
    )


class Ranges(NamedTuple):
    """What bounds the controller's logits: factor * tanh(logits / temperature).

    temperature: T.
    source, op: the factors for sources and operations.
    conv_bias: whether separable convolutions are preferred in normal cells.
    """

    temperature: float
    source: float
    op: float
    conv_bias: bool


class Drawn(NamedTuple):
    """An architecture drawn by the controller.

    pairs: {cell type: ([E, O] bool, the candidates; [E, O], how often each was expected given the
      decisions before it)}.
    log_probability, entropy: scalars, sums over all decisions.
    """

    pairs: dict[str, tuple[jax.Array, jax.Array]]
    log_probability: jax.Array
    entropy: jax.Array


def init_controller(space: SearchSpace, conv_bias: bool, key) -> dict[str, jax.Array]:
    """The controller's parameters, uniform in -0.1..0.1 but for the bias of the operations."""
    size, ops = LSTM_SIZE, len(space.candidates)
    shapes = {
        "lstm": (2 * size, 4 * size),
        "begin": (size,),
        "op_embedding": (ops, size),
        "op": (size, ops),
        "node": (size, size),
        "query": (size, size),
        "score": (size,),
    }
    keys = jax.random.split(key, len(shapes))
    params = {
        name: jax.random.uniform(k, shape, minval=-INITIAL_RANGE, maxval=INITIAL_RANGE)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    preferred = INITIAL_BIAS * conv_bias
    return params | {"op_bias": jnp.where(_separable(space), preferred, 0.0)}


def draw(controller, key, *, space: SearchSpace, inputs_per_node, ranges: Ranges) -> Drawn:
    """Draws an architecture; log-probability and expected counts are differentiable.

    Scans over cell types and nodes, so one node's decisions are compiled once. A node's sources are
    padded to the same width [W].
    """
    incoming = [space.incoming(target) for target in space.intermediate]
    width, ops = max(map(len, incoming)), len(space.candidates)
    nowhere = len(space.edges)  # the row of padding, which is dropped
    rows = np.array([edges + [nowhere] * (width - len(edges)) for edges in incoming])
    sources = np.array([[space.edges[min(e, nowhere - 1)][0] for e in edges] for edges in rows])
    with_none = SKELETONS[space.skeleton].derives_none
    possible = jnp.array([with_none or name != "none" for name in space.candidates])
    begin = controller["begin"]

    def read(memory, x):
        memory = _lstm(controller["lstm"], x, *memory)
        return memory, memory[1]

    def decide(key, logits):
        """(choice, probabilities, [log-probability, entropy]); logits may be -inf."""
        choice = jax.random.categorical(key, logits)
        logs, soft = jax.nn.log_softmax(logits), jax.nn.softmax(logits)
        # Infinities would turn into nan in the gradients.
        return choice, soft, jnp.stack([logs[choice], -soft @ jnp.where(soft > 0, logs, 0)])

    def decide_source(memory, x, key, queries, valid):
        memory, h = read(memory, x)
        scores = jnp.tanh(queries + h @ controller["query"]) @ controller["score"]
        logits = ranges.source * jnp.tanh(scores / ranges.temperature)
        return memory, decide(key, jnp.where(valid, logits, -jnp.inf))

    def decide_op(memory, x, key, bias):
        memory, h = read(memory, x)
        logits = h @ controller["op"] + controller["op_bias"]
        logits = ranges.op * jnp.tanh(logits / ranges.temperature) + bias
        return memory, decide(key, jnp.where(possible, logits, -jnp.inf))

    def draw_pairs(memory, key, of_sources, queries, valid, bias):
        """(memory, hard and expected counts [W, O], scores) of a node that chooses its sources."""
        keys, x, chosen = jax.random.split(key, 2 * inputs_per_node), begin, []
        scores = jnp.zeros((), begin.dtype)
        for k in keys[:inputs_per_node]:
            memory, (source, soft, score) = decide_source(memory, x, k, queries, valid)
            chosen.append((jax.nn.one_hot(source, width), soft))
            x, scores = of_sources[source], scores + score
        hard = soft = jnp.zeros((width, ops), begin.dtype)
        for k, (hard_source, soft_source) in zip(keys[inputs_per_node:], chosen, strict=True):
            memory, (op, soft_op, score) = decide_op(memory, x, k, bias)
            hard += jnp.outer(hard_source, jax.nn.one_hot(op, ops))
            soft += jnp.outer(soft_source, soft_op)
            x, scores = controller["op_embedding"][op], scores + score
        return memory, x, hard, soft, scores

    def draw_each(memory, key, of_sources, queries, valid, bias):
        """The same for a node that keeps all its sources."""

        def one(carry, edge):
            before, x = carry
            k, of_source, exists = edge
            memory, (op, soft, score) = decide_op(before, of_source, k, bias)
            new = memory, controller["op_embedding"][op]
            kept = jax.tree.map(lambda new, old: jnp.where(exists, new, old), new, (before, x))
            return kept, (jax.nn.one_hot(op, ops) * exists, soft * exists, score * exists)

        edges = jax.random.split(key, width), of_sources, valid
        (memory, x), (hard, soft, scores) = lax.scan(one, (memory, begin), edges)
        return memory, x, hard, soft, scores.sum(0)

    def draw_node(carry, node):
        memory, anchors, queries, bias = carry
        key, target, sources, valid = node
        rule = draw_each if inputs_per_node is None else draw_pairs
        memory, x, hard, soft, scores = rule(
            memory, key, anchors[sources], queries[sources], valid, bias
        )
        memory, h = read(memory, x)
        anchors, queries = anchors.at[target].set(h), queries.at[target].set(h @ controller["node"])
        return (memory, anchors, queries, bias), (hard, soft, scores)

    def draw_cell(memory, cell):
        key, bias = cell
        anchors = queries = jnp.zeros((space.inputs + space.nodes, LSTM_SIZE), begin.dtype)
        for i in range(space.inputs):  # an input node's embedding is 0
            memory, h = read(memory, begin)
            queries = queries.at[i].set(h @ controller["node"])
        nodes = (
            jax.random.split(key, space.nodes),
            jnp.array(space.intermediate),
            jnp.array(sources),
            jnp.array(rows < nowhere),
        )
        carry = memory, anchors, queries, bias
        (memory, *_), (*counts, scores) = lax.scan(draw_node, carry, nodes)
        counts = [jnp.zeros(space.shape).at[rows].add(each, mode="drop") for each in counts]
        return memory, (counts, scores.sum(0))

    bias = jnp.where(_separable(space), FIXED_BIAS, -FIXED_BIAS) * ranges.conv_bias
    normal = jnp.array([cell == "normal" for cell in space.cell_types])
    cells = jax.random.split(key, len(space.cell_types)), normal[:, None] * bias
    start = (jnp.zeros_like(begin),) * 2
    _, ((hard, soft), scores) = lax.scan(draw_cell, start, cells)
    pairs = {cell: (hard[i] > 0, soft[i]) for i, cell in enumerate(space.cell_types)}
    return Drawn(pairs, *scores.sum(0))


def _lstm(weights, x, c, h):
    """(c, h) after input x [size]; without biases."""
    i, f, o, g = jnp.split(jnp.concatenate([x, h]) @ weights, 4)
    c = jax.nn.sigmoid(i) * jnp.tanh(g) + jax.nn.sigmoid(f) * c
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def _separable(space):
    """[O] bool, whether a candidate is a separable convolution."""
    return jnp.array([name.startswith("sep_conv") for name in space.candidates])


def _adapt(search) -> None:
    """A drawn cell keeps as many inputs as the derived one."""
    search.strategy.inputs_per_node = derive.EDGES[search.edges]


METHOD = Method(
    enas,
    _adapt,
    {
        "batch_size": 160,
        "epochs": 150,
        "omega": {
            "learning_rate": 0.05,
            "final_learning_rate": 5e-4,
            "weight_decay": 2e-4,
            "nesterov": True,
        },
        "strategy": {"conv_bias": True},
    },
)
