"""The host's side of training a derived network; the mathematics is in `train_step`."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import data, optim, schedules
from asap_jax.data.augment import Augmentation, augment
from asap_jax.errors import UserError
from asap_jax.evaluation import make_accuracy
from asap_jax.genotypes import Genotype
from asap_jax.metrics import RunLog, mean_over
from asap_jax.networks import EvalNetwork
from asap_jax.ops import Context
from asap_jax.search_step import Batch
from asap_jax.train_step import TrainState, init_state, make_train_step, step_keys


class TrainOutcome(NamedTuple):
    """What a training ends with.

    test_accuracy: share of the test images that are classified right, read once, at the end.
    seconds: how long it took.
    network, state: the module and its last state.
    """

    test_accuracy: float
    seconds: float
    network: EvalNetwork
    state: TrainState


def make_network(config, genotype: Genotype, num_classes: int) -> EvalNetwork:
    """The network that `config` (the `train` part) builds from a genotype."""
    return EvalNetwork(
        genotype,
        num_classes,
        config.channels,
        config.cells,
        auxiliary=config.auxiliary_weight > 0,
    )


def check(config, dataset: data.Dataset) -> None:
    """Raises UserError if the data cannot make a training."""
    count = len(dataset.train_labels)
    if config.batch_size > count:
        raise UserError(
            f"config.train.batch_size is {config.batch_size}, but there are only {count} training "
            f"images: choose a batch size of at most {count}"
        )


def train(
    config, genotype: Genotype, dataset: data.Dataset, seed: int, log: RunLog
) -> TrainOutcome:
    """Trains the genotype's network on all training images and tests it once.

    Args:
      config: the `train` part of a config.
      genotype: the cells.
      dataset: images in memory.
      seed: of the weights, the batches and the augmentation.
      log: gets a record an epoch.
    """
    started = time.monotonic()
    check(config, dataset)
    count = len(dataset.train_labels)
    steps = count // config.batch_size
    network = make_network(config, genotype, len(dataset.class_names))
    optimizer = optim.sgd(
        schedules.cosine_by_epoch(
            config.learning_rate, config.final_learning_rate, config.epochs, steps
        ),
        config.momentum,
        config.weight_decay,
        config.clip,
        config.nesterov,
    )
    state = init_state(network, optimizer, jax.random.key(seed), dataset.train_images.shape[1:])
    augmentation = Augmentation(
        dataset.mean,
        dataset.std,
        config.augmentation.pad,
        config.augmentation.flip,
        config.augmentation.cutout,
    )
    drop_path = None
    if config.drop_path:
        drop_path = schedules.linear_by_epoch(config.drop_path, config.epochs, steps)
    step = _with_data(
        make_train_step(
            network,
            optimizer,
            auxiliary_weight=config.auxiliary_weight,
            label_smoothing=config.label_smoothing,
            drop_path=drop_path,
        ),
        augmentation,
    )
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    with log.bar("train", config.epochs * steps) as bar:
        for epoch in range(config.epochs):
            tick, history = time.monotonic(), []
            for indices in data.epoch_order(np.arange(count), config.batch_size, (seed, 2), epoch):
                state, metrics = step(state, images, labels, indices)
                history.append(jax.device_get(metrics))
                bar.update()
                if not np.isfinite(history[-1]["train_loss"]):
                    raise UserError(
                        f"the training loss became {history[-1]['train_loss']} in epoch "
                        f"{epoch + 1} of the training: lower config.train.learning_rate"
                    )
            record = {
                "phase": "train",
                "epoch": epoch + 1,
                "steps": steps,
                "train_loss": mean_over(history, "train_loss"),
                "train_accuracy": mean_over(history, "train_accuracy"),
                "seconds": time.monotonic() - tick,
            }
            log.epoch(
                record,
                f"train {epoch + 1:>{len(str(config.epochs))}}/{config.epochs}  "
                f"loss {record['train_loss']:.3f}  "
                f"train accuracy {100 * record['train_accuracy']:.2f} %  "
                f"{record['seconds']:.1f} s",
            )
    accuracy = make_accuracy(
        _logits(network),
        dataset.test_images,
        dataset.test_labels,
        dataset.mean,
        dataset.std,
        config.eval_batch_size,
    )
    test_accuracy = accuracy(state.params, state.batch_stats)
    return TrainOutcome(test_accuracy, time.monotonic() - started, network, state)


def _with_data(step, augmentation):
    """The jitted step that takes its batch out of the data on the device and augments it."""

    def run(state, images, labels, indices):
        _, key = step_keys(state.key, state.step)
        return step(state, Batch(augment(images[indices], augmentation, key), labels[indices]))

    return jax.jit(run, donate_argnums=0)


def _logits(network):
    def logits(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        return network.apply(variables, images, Context(train=False))[0]

    return logits
