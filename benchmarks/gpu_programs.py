"""Every program that the package runs on a device, by name, built as the package builds it.

    jitted, operands, _ = PROGRAMS["search/asap/unrolled"](SIZES["paper"], "tf32")

Under the plan "unrolled" the package runs the passes of a search step one by one; here they are one
program, except where a name selects one (`search/asap/unrolled-alpha`).

Operands are shapes: nothing is initialized and nothing runs. Inside `deviceless.as_on_gpu` the
package makes its choices by backend as on a GPU.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from search_step import masks_of

from asap_jax import (
    GENOTYPES,
    OPERATIONS,
    SPACES,
    Context,
    Dataset,
    EvalNetwork,
    Genotype,
    Layer,
    SearchSpace,
)
from asap_jax.configs import presets, recipes
from asap_jax.data.images import Preparation
from asap_jax.host import precisions
from asap_jax.host.devices import Devices
from asap_jax.layers.ops import chain, norm, pointwise, relu
from asap_jax.methods import STRATEGIES
from asap_jax.networks import plans
from asap_jax.networks.plans import PLANS
from asap_jax.runs import trained
from asap_jax.searching import measures, planned_step, search_step, stages
from asap_jax.searching.passes import Pass, SplitState, chained
from asap_jax.training import evaluation, train_loop, train_step
from asap_jax.training.losses import cross_entropy


class Size(NamedTuple):
    """How large the programs are.

    search, train: values that override those of the presets and recipes.
    side: the maximum side of an image.
    nodes, candidates: of a strategy's search; 0 and () for the space's. In programs about the space
      itself, cells have one more node, the network one more cell, and all candidates are used.
    devices: those that share the batches of a step.
    """

    search: dict
    train: dict
    side: int = 224
    nodes: int = 0
    candidates: tuple[str, ...] = ()
    devices: Devices = Devices()


# Tiny has few layers, since those dominate compile time. The batch is the paper's and the maps are
# large: compilers treat a kernel's gradient, a sum over all pixels of a batch, by its length.
SIZES = {
    "tiny": Size(
        {"channels": 4, "cells": 1, "batch_size": 96},
        {"channels": 4, "cells": 3, "batch_size": 96},
        side=64,
        nodes=1,
        candidates=("sep_conv_3x3", "max_pool_3x3", "skip_connect"),
    ),
    # More than one edge and 16 channels, from which on convolutions of several edges are grouped.
    "wide": Size(
        {"channels": 20, "cells": 1, "batch_size": 96},
        {"channels": 20, "cells": 3, "batch_size": 96},
        side=64,
        nodes=2,
        candidates=("sep_conv_3x3", "max_pool_3x3", "skip_connect"),
    ),
    "paper": Size({}, {}),
}


class Program(NamedTuple):
    """A program to compile.

    jitted: a function from `jax.jit`, or an object with its `lower`.
    operands: trees of `jax.ShapeDtypeStruct`.
    turns: minimum and maximum iterations of a loop whose count is known only at run time. The plan
      "loop" has one around each candidate, with one iteration if the candidate is active.
    """

    jitted: Any
    operands: tuple
    turns: tuple[int, int] = (0, 1)


def of_shape(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def integers(*shape):
    return of_shape(*shape, dtype=jnp.int32)


def pixels(*shape):
    return of_shape(*shape, dtype=jnp.uint8)


def a_key():
    return jax.eval_shape(lambda: jax.random.key(0))


def dataset_of(
    count: int, side: int, classes: int = 10, color: str = "rgb", held_out: int = 10_000
) -> Dataset:
    """Black images that take no memory, all of one class."""
    preparation = Preparation(side, side, color)

    def black(number):
        images = np.broadcast_to(np.uint8(0), (number, *preparation.shape))
        return images, np.broadcast_to(np.int32(0), number)

    names, channels = tuple(map(str, range(classes))), preparation.shape[-1]
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Dataset(*black(count), *black(held_out), names, mean, std, preparation)


def without_callback(begin):
    """Jits begin(key), with a number from the key in place of each weight drawn on the host.

    A callback to the host holds an address within the client of a device, so JAX cannot lower one
    for a device that is not present. The rest of the program is unchanged.
    """

    def drawn(function, shapes, key_data):
        number = key_data.ravel()[0]
        return [jnp.full(each.shape, number, each.dtype) for each in shapes]

    def run(key):
        with mock.patch.object(jax, "pure_callback", drawn):
            return begin(key)

    return jax.jit(run)


# Searches.


def gate(channels, stride, affine):
    """A user-defined operation: x times the sigmoid of a 1x1 convolution."""
    layer = chain({"relu": relu, "conv": pointwise(channels, channels), "norm": norm(channels)})

    def apply(params, stats, x, context):
        x = x[:, ::stride, ::stride]
        y, stats = layer.apply(params, stats, x, context)
        return x * jax.nn.sigmoid(y), stats

    return Layer(layer.weights, layer.stats, apply)


def own_space() -> SearchSpace:
    """A user-defined space."""
    return SearchSpace(
        {"gate": gate, "sep_conv_3x3": OPERATIONS["sep_conv_3x3"]},
        nodes=3,
        edges=((0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)),
    )


class Search(NamedTuple):
    """A search, or a stage of one: its parts, and its state as shapes."""

    config: Any
    dataset: Dataset
    stage: stages.Stage
    state: search_step.SearchState

    @property
    def network(self):
        return self.stage.network


def searched(
    size: Size,
    precision: str = "float32",
    preset: str = "paper",
    plan: str = "loop",
    space: str = "",
    stage: int = 0,
    **strategy,
) -> Search:
    """A stage of a preset's search.

    Args:
      space: replaces the preset's, with all its candidates.
      strategy: values of the strategy's options.
    """
    config = presets.get_config(preset).search
    values = size.search | {"plan": plan, "precision": precision, "space": space or config.space}
    if size.candidates and not space:
        values["candidates"] = size.candidates
        if config.strategy.name == "p_darts":
            strategy |= {"keep": (3, 2), "extra_cells": (0, 0, 1)}
        if config.strategy.name == "drnas":
            strategy |= {"keep": (2,), "partial_channels": (2, 1)}
    if size.candidates and space:
        values["cells"] = 3 if space == "nasbench201" else size.search["cells"] + 1
    config.update(values)
    config.strategy.update(strategy)
    dataset = dataset_of(50_000, min(32, size.side))
    nodes = size.nodes and size.nodes + bool(space)
    with mock.patch.dict(SPACES, {config.space: sized(config.space, nodes)}):
        chosen = stages.build_all(config, dataset)[stage]
    state = jax.eval_shape(lambda key: first_state(chosen, dataset, key), a_key())
    return Search(config, dataset, chosen, state)


def sized(name: str, nodes: int) -> SearchSpace:
    """A space by name, including "own", with `nodes` nodes per cell; 0 for its default."""
    if name == "own":
        return own_space()
    return dataclasses.replace(SPACES[name], nodes=nodes, edges=()) if nodes else SPACES[name]


def first_state(stage, dataset, key):
    shape = dataset.preparation.shape
    return search_step.init_state(stage.network, stage.strategy, stage.optimizers, key, shape)


def search(
    size: Size,
    precision: str,
    live: str = "full",
    learns: bool = True,
    part: str | None = None,
    **options,
) -> Program:
    """A search step: augmentation, an update of omega, one of the alphas, pruning.

    Args:
      live: the candidates to compile for, under the plan "unrolled", as in search_step.py.
      learns: whether the alphas learn in the step, under the same plan.
      part: the name of a single pass to build (a search compiles them separately); None for all
        passes in one program.
    """
    found = searched(size, precision, **options)
    stage, plan = found.stage, found.network.plan
    if live != "full":
        plan = plans.Plan("unrolled", plans.freeze(masks_of(stage.space, live)))
    step = stage.step(found.config)
    passes = planned_step.passes_by_plan(step, plan)[learns]
    chosen = [each for each in passes if part in (None, each.name)]
    changes = tuple(dict.fromkeys(name for each in chosen for name in each.changes))
    whole = Pass("step", changes, chained(chosen))
    batch = integers(found.config.batch_size)
    turns = (2, 2) if step.fuses_updates else (0, 1)
    over = jax.ShapeDtypeStruct((), bool)
    operands = (*SplitState.of(found.state, whole), over, *on_device(found.dataset), batch, batch)
    augmentation = stages.make_augmentation(found.config, found.dataset)
    precision = found.config.precision
    jitted = planned_step.jit_pass(whole, augmentation, precision, devices=size.devices)
    return Program(jitted, operands, turns)


def on_device(dataset):
    """(images, labels) as a run holds them on the device."""
    return pixels(*dataset.train_images.shape), integers(dataset.train_count)


def search_state(size: Size, precision: str) -> Program:
    """The initial state of a search."""
    found = searched(size)
    return Program(without_callback(partial(first_state, found.stage, found.dataset)), (a_key(),))


def eigenvalue(size: Size, precision: str) -> Program:
    """The dominant eigenvalue of the alphas' Hessian."""
    found = searched(size, precision, plan="unrolled")
    batch, count = found.config.batch_size, found.dataset.train_count
    function = measures.eigenvalue(
        found.network, found.stage.strategy, found.dataset, batch, 0, size.devices
    )
    half = integers(count // 2)
    halves = measures.Halves(*on_device(found.dataset), half, half)
    return Program(jax.jit(function), (found.state, halves), (2, 30))


def mixtures_of(strategy, state):
    return jax.eval_shape(partial(measures.final_mixtures, strategy), state)


def accuracy(size: Size, precision: str, plan: str, by_batch: bool = False) -> Program:
    """How many images of a batch the supernet classifies correctly; also used to derive cells."""
    found = searched(size, precision, plan=plan)
    logits = measures.supernet_logits(found.network, by_batch)
    logits = precisions.computed_in(precision, logits)
    mean_std = found.dataset.mean, found.dataset.std
    right = evaluation.right_answers(logits, *mean_std, size.devices)
    mixtures = mixtures_of(found.stage.strategy, found.state)
    batch = min(found.config.eval_batch_size, found.dataset.train_count // 2)
    rest = integers(batch), of_shape(batch, dtype=bool)
    weights = (found.state.params, found.state.batch_stats, mixtures)
    return Program(jax.jit(right), (weights, *on_device(found.dataset), *rest))


def mixtures(size: Size, precision: str) -> Program:
    """The mixtures of every strategy, as used for measurement and derivation."""
    each = {name: searched(size, preset=f"paper,{name}") for name in STRATEGIES}

    def all_of_them(states):
        return {
            name: measures.final_mixtures(each[name].stage.strategy, state)
            for name, state in states.items()
        }

    return Program(jax.jit(all_of_them), ({name: found.state for name, found in each.items()},))


# Trainings.


class Training(NamedTuple):
    """A training: its parts, and its state as shapes."""

    config: Any
    dataset: Dataset
    network: EvalNetwork
    optimizer: Any
    state: train_step.TrainState

    @property
    def variables(self):
        return self.state.variables


NB201 = Genotype.from_architecture_string(
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
)
CIFAR10 = (50_000, 32, 10, "rgb")  # training images, their side, classes, color
SETS = {  # for recipes with other data
    "cifar100": (50_000, 32, 100, "rgb"),
    "svhn": (604_388, 32, 10, "rgb"),
    "fashion_mnist": (60_000, 28, 10, "grey"),
    "cinic10": (180_000, 32, 10, "rgb"),
    "freiburg": (4_000, 64, 25, "rgb"),
    "imagenet": (1_281_167, 224, 1000, "rgb"),
    "darts_imagenet": (1_281_167, 224, 1000, "rgb"),
}


def trained_by(
    size: Size, precision: str = "float32", recipe: str = "", preset: str = "paper", **changes
) -> Training:
    """The training of a recipe, or of a preset; `changes` are values of its config."""
    whole = recipes.get_config(recipe) if recipe else presets.get_config(preset)
    config = whole.train
    presets.update(config, size.train | {"precision": precision} | changes)
    count, side, classes, color = SETS.get(recipe, CIFAR10)
    dataset = dataset_of(count, min(side, size.side), classes, color)
    genotype = NB201 if preset == "nb201" else GENOTYPES[whole.genotype or "ASAP"]
    network = train_loop.make_network(config, genotype, classes)
    optimizer = train_loop.make_optimizer(config, steps=1)
    state = jax.eval_shape(partial(first_train_state, config, dataset, network, optimizer), a_key())
    return Training(config, dataset, network, optimizer, state)


def first_train_state(config, dataset, network, optimizer, key):
    shape, average = dataset.preparation.shape, config.average > 0
    return train_step.init_state(network, optimizer, key, shape, average)


def train(size: Size, precision: str, streamed: bool = False, **options) -> Program:
    """A training step; `streamed` images arrive batch by batch."""
    found = trained_by(size, precision, **options)
    steps = found.dataset.train_count // found.config.batch_size
    step = train_loop.make_step(found.config, found.network, found.optimizer, steps)
    augmentation, devices = train_loop.make_augmentation(found.config, found.dataset), size.devices
    step = train_loop.augmented(step, augmentation, devices)
    batch, shape = found.config.batch_size, found.dataset.preparation.shape
    precision = found.config.precision
    if streamed:
        data = pixels(batch, *shape), integers(batch)
        return Program(train_loop.jit_streamed(step, precision, devices), (found.state, *data))
    operands = found.state, *on_device(found.dataset), integers(batch)
    return Program(train_loop.jit_resident(step, precision, devices), operands)


def train_state(size: Size, precision: str) -> Program:
    """The initial state of a training."""
    found = trained_by(size)
    parts = found.config, found.dataset, found.network, found.optimizer
    return Program(without_callback(partial(first_train_state, *parts)), (a_key(),))


def answers(size: Size, precision: str) -> Program:
    """The test of a trained network."""
    found = trained_by(size)
    logits = precisions.computed_in(precision, train_loop.evaluation_logits(found.network))
    mean_std, devices = (found.dataset.mean, found.dataset.std), size.devices
    add = evaluation.adding_answers(logits, *mean_std, devices)
    batch = min(found.config.eval_batch_size, found.dataset.test_count)
    before = jax.eval_shape(lambda: evaluation.no_answers(len(found.dataset.class_names)))
    rest = integers(batch), of_shape(batch, dtype=bool)
    operands = (before, (found.variables,), *on_device(found.dataset), *rest)
    return Program(evaluation.jit_answers(add, devices), operands)


# Uses of a trained network.


def predict(size: Size, precision: str) -> Program:
    """`predict`, `predict_proba` and `features`."""
    found = trained_by(size)
    told = found.network, found.dataset.mean, found.dataset.std, precision
    forward = partial(trained._forward, *told)
    images = pixels(256, *found.dataset.preparation.shape)
    return Program(jax.jit(forward), (found.variables, images))


def apply(size: Size, precision: str) -> Program:
    """`module.apply` in a user's own jit."""
    found = trained_by(size)
    images = of_shape(96, *found.dataset.preparation.shape)
    logits = jax.jit(lambda variables, images: found.network.apply(variables, images)[0])
    return Program(logits, (found.variables, images))


def apply_gradient(size: Size, precision: str) -> Program:
    """Its gradient with respect to weights and images."""
    found = trained_by(size)

    def loss(params, images, batch_stats, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        context = Context(train=True)
        (logits, _), _ = found.network.apply(variables, images, context, mutable=["batch_stats"])
        return cross_entropy(logits, labels)

    images = of_shape(96, *found.dataset.preparation.shape)
    state = found.state
    operands = (state.params, images, state.batch_stats, integers(96))
    return Program(jax.jit(jax.grad(loss, (0, 1))), operands)


def apply_supernet(size: Size, precision: str, plan: str) -> Program:
    """The supernet in a user's own jit: its gradient by weights and mixture weights."""
    found = searched(size, plan=plan)
    context = Context(train=True)

    def loss(params, mixtures, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = found.network.apply(
            variables, images, mixtures, context, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels)

    state, shape = found.state, found.dataset.preparation.shape
    mixtures = mixtures_of(found.stage.strategy, state)
    operands = (state.params, mixtures, state.batch_stats, of_shape(96, *shape), integers(96))
    return Program(jax.jit(jax.grad(loss, (0, 1), allow_int=True)), operands)


def _list() -> dict[str, Callable[[Size, str], Program]]:
    found = {}
    for plan in PLANS:
        for name in STRATEGIES:
            found[f"search/{name}/{plan}"] = partial(search, preset=f"paper,{name}", plan=plan)
        for order in ("second", "exact"):
            found[f"search/darts-{order}/{plan}"] = partial(
                search, preset="paper,darts", plan=plan, order=order
            )
        found[f"search/p_darts-last/{plan}"] = partial(
            search, preset="paper,p_darts", plan=plan, stage=-1
        )
        for space in (*SPACES, "own"):
            preset = "nb201" if space == "nasbench201" else "paper"
            found[f"space/{space}/{plan}"] = partial(search, preset=preset, plan=plan, space=space)
        found[f"use/apply-supernet/{plan}"] = partial(apply_supernet, plan=plan)
    for live in ("half", "one"):
        found[f"search/asap/unrolled-{live}"] = partial(search, plan="unrolled", live=live)
    for part in ("omega", "alpha", "advance"):
        found[f"search/asap/unrolled-{part}"] = partial(search, plan="unrolled", part=part)
    found |= {
        "search/first-state": search_state,
        "search/eigenvalue": eigenvalue,
        "search/accuracy": partial(accuracy, plan="unrolled"),
        "search/accuracy-by-batch": partial(accuracy, plan="unrolled", by_batch=True),
        "search/accuracy-by-loop": partial(accuracy, plan="loop"),
        "search/asap/unrolled-grace": partial(search, plan="unrolled", learns=False),
        "search/mixtures": mixtures,
        "train/paper": train,
    }
    for name in recipes.RECIPES:
        found[f"train/{name}"] = partial(train, recipe=name, streamed="imagenet" in name)
    found |= {
        "train/short": partial(train, epochs=1),  # its depthwise kernels are folded
        "train/average": partial(train, average=0.999),
        "train/accumulate": partial(train, accumulate=4),
        "train/remat": partial(train, remat=True),
        "train/conv-output": partial(train, output="conv"),
        "train/nasbench201": partial(train, preset="nb201"),
        "train/first-state": train_state,
        "train/test": answers,
        "use/predict": predict,
        "use/fine_tune": partial(train, epochs=10, learning_rate=0.01),
        "use/apply": apply,
        "use/apply-gradient": apply_gradient,
    }
    return found


PROGRAMS = _list()
# At the tiny size another program has all these convolutions, products and windows, except for a
# classifier of as many classes. The tests leave them out, the table in docs does not.
VARIANTS = {
    **dict.fromkeys(("asap_pac", "darts", "darts_plus", "beta_darts"), "asap"),
    **dict.fromkeys(("p_darts", "pr_darts"), "asap"),  # their first stage
    **{"evolution": "random", "accum_grad": "magnitude", "nap": "magnitude"},
}
ALIKE = {
    **{
        f"search/{variant}/{plan}": f"search/{method}/{plan}"
        for variant, method in VARIANTS.items()
        for plan in PLANS
    },
    **{f"space/darts/{plan}": f"space/asap/{plan}" for plan in PLANS},
    "train/paper": "train/average",
    "train/darts": "train/average",
    "train/darts_imagenet": "train/imagenet",
    "train/asap_medium": "train/asap_small",
    "train/asap_large": "train/asap_small",
    "train/asap_large_6m": "train/asap_small",
    "train/svhn": "train/cifar100",
    "train/cinic10": "train/cifar100",
    "use/fine_tune": "train/average",
}
