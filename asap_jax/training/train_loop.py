"""The host side of training a derived network; the math is in `train_step`."""

import contextlib
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asap_jax import data
from asap_jax.data.augment import Augmentation
from asap_jax.data.images import Preparation
from asap_jax.host import backend, checkpoint, compile_cache, loop, memory, precisions, timing
from asap_jax.host.compiling import Compiler
from asap_jax.host.devices import Devices
from asap_jax.host.errors import UserError
from asap_jax.layers.ops import Context
from asap_jax.methods import schedules
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.models import STAGES, EvalNetwork
from asap_jax.training import feed, guard, optim
from asap_jax.training.evaluation import Answers, Questions, StreamedQuestions
from asap_jax.training.train_step import TrainStep, from_variables, init_state, step_keys

# Training steps from which cuDNN's depthwise kernels pay off: in a network of 20 cells they take
# 42 s to start (measured on an H200) and save an estimated 10 ms per step.
DEPTHWISE_PAYS = 4000


class Sized(Protocol):
    """What the memory of a training depends on: of a `Dataset`, a `Stream` or the sizes of one."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def preparation(self) -> Preparation: ...
    @property
    def nbytes(self) -> int: ...


class TrainOutcome(NamedTuple):
    """The result of a training.

    answers: answers on the test images, which are read once, at the end.
    epochs, seconds: duration, over all starts.
    network: the Flax module.
    variables: {"params", "batch_stats"}, or their moving average if configured.
    ended: "stopped" if a callback ended it, else "".
    latency: of the network on these devices, see `evaluation.latency_of`.
    """

    answers: Answers
    epochs: int
    seconds: float
    network: EvalNetwork
    variables: dict
    ended: str
    latency: dict


def make_network(config, genotype: Genotype, num_classes: int) -> EvalNetwork:
    """Builds the network of a genotype from `config` (the `train` part)."""
    check_cells(config, genotype.skeleton)
    return EvalNetwork(
        genotype,
        num_classes,
        config.channels,
        config.cells,
        stem=config.stem,
        auxiliary=config.auxiliary_weight > 0,
        remat=config.remat,
        output=config.output,
        squeeze=config.squeeze,
    )


def check_cells(config, skeleton: str) -> None:
    """Raises UserError if the config's network cannot be built from cells of this skeleton."""
    if skeleton != "nasbench201":
        if config.stem == "imagenet" and config.channels % 2:
            raise UserError(
                f"config.train.channels is {config.channels}, but the imagenet stem halves it: "
                f"choose an even number, {config.channels - 1} or {config.channels + 1}"
            )
        return
    for key, usual in (("stem", "cifar"), ("output", "concat"), ("squeeze", "")):
        if config[key] != usual:
            raise UserError(
                f"config.train.{key} is {config[key]!r}, but a network of nasbench201 cells knows "
                f"no other than {usual!r}"
            )
    if config.auxiliary_weight > 0:
        raise UserError(
            "config.train.auxiliary_weight is above 0, but a network of nasbench201 cells has no "
            "auxiliary head: set it to 0"
        )
    if config.cells % STAGES:
        raise UserError(
            f"config.train.cells is {config.cells}, but nasbench201 cells stand in {STAGES} stages "
            f"of equal length: choose a multiple of {STAGES}"
        )


def check(config, dataset: data.Dataset | data.Stream) -> None:
    """Raises UserError if there are fewer training images than a batch holds."""
    count = dataset.train_count
    if config.batch_size > count:
        raise UserError(
            f"config.train.batch_size is {config.batch_size}, but there are only {count} training "
            f"images: choose a batch size of at most {count}"
        )


def make_schedule(config, steps: int) -> schedules.Schedule:
    """The learning rate schedule, stretched to `config.epochs` epochs of `steps` steps."""
    course = (config.learning_rate, config.final_learning_rate, config.epochs, steps)
    if config.schedule == "power_cosine":
        return schedules.power_cosine_by_epoch(
            *course, cycles=config.cycles, amplitude=config.amplitude, power=config.power
        )
    if config.schedule == "exponential":
        return schedules.exponential_by_epoch(*course)
    return schedules.cosine_by_epoch(*course)


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """SGD; weight decay applies to every parameter, including batch norm's, as in DARTS."""
    return optim.sgd(
        make_schedule(config, steps),
        config.momentum,
        config.weight_decay,
        config.clip,
        config.nesterov,
    )


def make_step(config, network: EvalNetwork, optimizer, steps: int, class_weights=None) -> TrainStep:
    """Builds the training step from `config` (the `train` part), for epochs of `steps` steps."""
    drop_path = None
    if config.drop_path:
        drop_path = schedules.linear_by_epoch(config.drop_path, config.epochs, steps)
    return TrainStep(
        network,
        optimizer,
        auxiliary_weight=config.auxiliary_weight,
        label_smoothing=config.label_smoothing,
        drop_path=drop_path,
        class_weights=class_weights,
        accumulate=config.accumulate,
        average=config.average,
        dtype=precisions.map_dtype(config.precision),
        folded=folds(steps * config.epochs),
    )


def augmented(step: TrainStep, augmentation: Augmentation, devices: Devices = Devices()):
    """The step as a function of (state, uint8 images, labels), not yet jitted."""

    def keys(state):
        return (step_keys(state.key, state.step)[1],)

    return feed.augmented(step.step, augmentation, keys, devices)


def make_augmentation(config, dataset: data.Dataset | data.Stream) -> Augmentation:
    """The augmentation of the training images, from `config` (the `train` part)."""
    options = config.augmentation
    return Augmentation(
        dataset.mean,
        dataset.std,
        options.pad,
        options.flip,
        options.cutout,
        options.policy,
        tuple(options.jitter),
    )


def estimate(
    config, genotype: Genotype, dataset: Sized, devices: Devices = Devices()
) -> memory.Estimate:
    """Estimates the memory of a training step, on each of the devices that share the batch."""
    network = make_network(config, genotype, len(dataset.class_names))
    if jax.default_backend() == "cpu":
        network = network.clone(remat=False)
    optimizer, shape, key = make_optimizer(config, 1), dataset.preparation.shape, jax.random.key(0)
    step = make_step(config, network, optimizer, DEPTHWISE_PAYS)  # as in a long training
    state = jax.eval_shape(lambda: init_state(network, optimizer, key, shape, config.average > 0))

    def loss(params):
        together = config.batch_size // config.accumulate
        images = jnp.zeros((together // devices.among(together).count, *shape))
        batch = feed.Batch(images, jnp.zeros(len(images), jnp.int32))
        stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.batch_stats)
        return step.loss(params, stats, batch, jnp.int32(0), key)[0]

    return memory.estimate(loss, state.params, state, dataset.nbytes)


def train(
    config,
    genotype: Genotype,
    dataset: data.Dataset | data.Stream,
    seed: int,
    session: loop.Session,
    *,
    phase: str = "train",
    index: int = 0,
    identity: dict | None = None,
    class_weights=None,
    start: dict | None = None,
) -> TrainOutcome:
    """Trains the genotype's network on all training images and tests it once.

    Args:
      config: the `train` part of a config; `check` has passed it for these data.
      genotype: the cells.
      dataset: images in memory, or a stream of them.
      seed: for the weights, the batches and the augmentation.
      session: log, checkpoints, signals, callbacks.
      phase, index: name its records and checkpoints.
      identity: identity that its checkpoints must match.
      class_weights: [classes], weights of the loss, or None.
      start: {"params", "batch_stats"} of a trained network of the same cells to start from, or
        None. Its classifiers are replaced by new ones.
    """
    watch, devices = loop.Stopwatch(), _sharing(session.devices, config)
    network, state, step, batches, steps = _begin(
        config, genotype, dataset, seed, devices, class_weights, start, session.on_nan == "skip"
    )

    def summary(state, progress, last):
        return {key: progress.mean(key) for key in ("train_loss", "train_accuracy")}

    compiler = Compiler()
    test = _make_test(config, network, dataset, state.variables, devices, compiler)
    try:
        with watch.paused():
            state, progress = loop.run(
                phase,
                state,
                step,
                batches,
                summary,
                epochs=config.epochs,
                steps=steps,
                session=session,
                identity=identity or {},
                index=index,
                rate=make_schedule(config, steps),
            )
        answers, latency = test(state.variables), test.latency(state.variables)
    finally:
        compiler.close()
    return TrainOutcome(
        answers,
        progress.epoch,
        progress.seconds + watch.seconds,
        network,
        devices.home(state.variables),
        progress.ended,
        latency,
    )


def _sharing(devices: Devices, config) -> Devices:
    """Those of the devices that share what is computed together of a batch."""
    return devices.among(config.batch_size // config.accumulate)


def _begin(config, genotype, dataset, seed, devices, class_weights, start, skips_nan=False):
    """(network, initial state, jitted step, batches for `loop.run`, steps per epoch)."""
    steps = dataset.train_count // config.batch_size
    network = make_network(config, genotype, len(dataset.class_names))
    optimizer = make_optimizer(config, steps)
    shape, average = dataset.preparation.shape, config.average > 0
    state = init_state(network, optimizer, jax.random.key(seed), shape, average)
    if start is not None:
        fresh = {"params": state.params, "batch_stats": state.batch_stats}
        state = from_variables(_transplanted(start, fresh), optimizer, state.key, average)
    source = _streamed if isinstance(dataset, data.Stream) else _resident
    step = make_step(config, network, optimizer, steps, class_weights)
    step = augmented(step, make_augmentation(config, dataset), devices)
    if skips_nan:
        step = guard.skipping(step, ("params", "batch_stats", "opt_state", "average"))
    return network, devices.put(state), *source(config, dataset, seed, step, devices), steps


class Trial(NamedTuple):
    """How long the steps of a training take.

    compiling: seconds of the first step, which compiles its program or takes it from the cache.
    step: seconds of a step.
    steps: number of steps of the whole training.
    """

    compiling: float
    step: float
    steps: int

    @property
    def seconds(self) -> float:
        """Of the whole training, without compiling and the test."""
        return self.step * self.steps


def try_steps(
    config,
    genotype: Genotype,
    dataset: data.Dataset | data.Stream,
    seed: int,
    session: loop.Session,
    class_weights=None,
) -> Trial:
    """Compiles the step as `train` does, and times a few; of a stream all on one batch."""
    watch, devices = loop.Stopwatch(), _sharing(session.devices, config)
    _, state, step, batches, steps = _begin(
        config, genotype, dataset, seed, devices, class_weights, None
    )
    with contextlib.closing(batches(0, 0)) as coming:
        batch = next(coming)

    def once():
        nonlocal state
        state, metrics = step(state, *batch)
        return metrics

    jax.block_until_ready(once())
    compiling = watch.seconds
    return Trial(compiling, timing.seconds_of(once, budget=3.0, least=2), steps * config.epochs)


def variable_shapes(network: EvalNetwork, image_shape) -> dict:
    """Shapes of the network's {"params", "batch_stats"}, for images [H, W, C]."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    plain = Context(reference=True)
    made = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, plain), x)
    return {name: made[name] for name in ("params", "batch_stats")}


def in_use() -> Context:
    """The context of inference: few calls per process, each of which should start fast."""
    return Context(train=False, folded=folds(0))


def folds(steps: int) -> bool:
    """Whether to fold kernels (`ops.Context`): on a GPU, if cuDNN's do not pay off in `steps`."""
    return backend.platform() == "gpu" and steps < DEPTHWISE_PAYS


def evaluation_logits(network: EvalNetwork):
    """Builds logits(variables, normalized images) of the network in inference."""

    def logits(variables, images):
        return network.apply(variables, images, in_use())[0]

    return logits


def _transplanted(start, fresh):
    """`start` with the classifiers of `fresh`; both are {"params", "batch_stats"}."""
    anew = ("classifier", "auxiliary_head")
    kept = {
        kind: {name: tree for name, tree in start[kind].items() if name not in anew}
        for kind in fresh
    }
    initial = {kind: fresh[kind] | kept[kind] for kind in fresh}
    checkpoint.check_shapes("the network to start from", initial, fresh)
    return jax.tree.map(jnp.array, initial)  # copies, since a step donates its state


def _resident(config, dataset, seed, step, devices):
    """(jitted step, batches) for `loop.run`: images stay on the device, a batch is indices."""
    images, labels = devices.put((dataset.train_images, dataset.train_labels))
    jitted = jit_resident(step, config.precision, devices)

    def order(epoch):
        indices = np.arange(dataset.train_count)
        return [(i,) for i in data.epoch_order(indices, config.batch_size, (seed, 2), epoch)]

    return (
        lambda state, indices: jitted(state, images, labels, indices),
        partial(data.onwards, order, config.epochs),
    )


def _streamed(config, dataset, seed, step, devices):
    """(jitted step, batches) for `loop.run`: a batch is images and labels, transferred ahead."""

    def batches(epoch, step):
        options = config.batch_size, seed, config.epochs, epoch, step
        return dataset.train_batches(*options, devices=devices)

    return jit_streamed(step, config.precision, devices), batches


def jit_resident(step, precision: str, devices: Devices = Devices()):
    """Jits the step as step(state, all images, all labels, indices of the batch)."""
    return jit_streamed(feed.indexed(step), precision, devices)


def jit_streamed(step, precision: str, devices: Devices = Devices()):
    """Jits step(state, images of the batch, labels)."""
    return jax.jit(
        precisions.computed_in(precision, step),
        donate_argnums=0,
        out_shardings=devices.whole,
        compiler_options=compile_cache.options() | devices.options,
    )


def _make_test(config, network, dataset, variables, devices, compiler):
    """Builds the test of variables; compiles during training if the images are in memory."""
    logits = precisions.computed_in(config.precision, evaluation_logits(network))
    size, classes = config.eval_batch_size, len(dataset.class_names)
    mean_std = (dataset.mean, dataset.std)
    if isinstance(dataset, data.Stream):
        batches = partial(dataset.test_batches, min(size, dataset.test_count), devices)
        return StreamedQuestions(logits, batches, *mean_std, classes, devices)
    images, labels = dataset.test_images, dataset.test_labels
    test = Questions(logits, images, labels, *mean_std, size, classes, devices)
    test.prepare(compiler, variables)
    return test
