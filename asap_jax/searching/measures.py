"""What is measured of a supernet: accuracies, the alphas' eigenvalue, how it ranks cells."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from asap_jax.data.augment import normalise
from asap_jax.host import backend, precisions, timing
from asap_jax.host.devices import Devices
from asap_jax.layers.ops import Context
from asap_jax.methods import collapse
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.searching.search_step import step_keys
from asap_jax.training.evaluation import Accuracy
from asap_jax.training.losses import cross_entropy

RANKED = 5  # distinguishes the draw of cells to rank from others by (seed, number)


class Halves(NamedTuple):
    """The training images on the device, and which of them train what.

    omega, alpha: indices of the halves; alpha is shuffled. Where one loss trains both, omega holds
      all images and alpha the half used for measurement.
    """

    images: jax.Array
    labels: jax.Array
    omega: np.ndarray
    alpha: np.ndarray


class Measures:
    """The measurements of a stage, on the alpha half, without augmentation.

    accuracy: (params, batch_stats, mixtures, limit=None) -> accuracy of the first `limit` images,
      None for all, normalized by running statistics.
    by_batch: the same, normalized by each batch's own statistics.
    watched: images measured after each epoch for the gap; 0 for none.
    eigenvalue: (state, halves) -> dominant eigenvalue of the alphas' Hessian.
    """

    def __init__(self, config, dataset, stage, halves: Halves, seed: int, devices: Devices):
        self.config, self.stage, self.halves = config, stage, halves
        # Under the stage's own plan for all candidates: one compilation serves every mask.
        self.accuracy, self.by_batch = (
            Accuracy(
                precisions.computed_in(config.precision, supernet_logits(stage.network, by_batch)),
                halves.images,
                halves.labels,
                dataset.mean,
                dataset.std,
                config.eval_batch_size,
                halves.alpha,
                devices,
            )
            for by_batch in (False, True)
        )
        self.watched = config.watch.images if stage.strategy.updates.has_alphas else 0
        function = eigenvalue(
            stage.network, stage.strategy, dataset, config.batch_size, seed, devices
        )
        function = precisions.computed_in(config.precision, function)
        self.eigenvalue = jax.jit(function, compiler_options=devices.options)

    def prepare(self, state, compiler) -> None:
        """Starts compiling what the end of an epoch needs."""
        mixtures = jax.eval_shape(partial(final_mixtures, self.stage.strategy), state)
        for each in [self.accuracy] + [self.by_batch] * bool(self.watched):
            each.prepare(compiler, state.params, state.batch_stats, mixtures)

    def seconds(self, state) -> float:
        """Seconds of measuring the accuracies after an epoch, extrapolated from a batch of each."""
        size, images = self.config.eval_batch_size, len(self.halves.alpha)
        arguments = state.params, state.batch_stats, final_mixtures(self.stage.strategy, state)
        batches = [(self.accuracy, -(-images // size))]
        if self.watched:  # of the supernet and of the derived cells
            batches.append((self.by_batch, 2 * -(-min(self.watched, images) // size)))
        total = 0.0
        for accuracy, count in batches:
            one = partial(accuracy, *arguments, limit=size)
            one()
            total += count * timing.seconds_of(one, budget=1.0)
        return total

    def shortfall(self, state, mixtures, genotype: Genotype) -> dict[str, float]:
        """Accuracies of the supernet and of the cells alone, on the watched images, and the gap."""
        alone, found = one_hot_mixture(genotype, self.stage.space), {}
        for name, mixed in (("supernet", mixtures), ("derived", alone)):
            found[f"{name}_accuracy"] = self.by_batch(
                state.params, state.batch_stats, mixed, limit=self.watched
            )
        return found | {"gap": found["supernet_accuracy"] - found["derived_accuracy"]}


def ranking(shared: Callable, benchmark, count: int, space, images: int, seed: int) -> dict:
    """How well shared weights rank cells of a benchmark, see `SearchOutcome.ranking`.

    Args:
      shared: (mixtures, images or None for all) -> accuracy with the supernet's weights.
      benchmark: a table of NAS-Bench-201's cells; its last column is compared with.
      count: number of cells drawn from it.
      space: the search space of the benchmark.
      images: images that each accuracy is measured on; 0 for all.
      seed: of the draw.
    """
    known = list(benchmark)
    count = min(count, len(known))
    rng = np.random.default_rng([seed, RANKED])
    names = [known[i] for i in rng.choice(len(known), count, replace=False)]
    cells = [one_hot_mixture(Genotype.from_architecture_string(name), space) for name in names]
    accuracies = [shared(cell, images or None) for cell in cells]
    column = list(benchmark[names[0]])[-1]
    alone = [benchmark[name][column] for name in names]
    return {
        "column": column,
        "cells": count,
        "kendall": float(np.asarray(stats.kendalltau(accuracies, alone))[0]),
        "spearman": float(np.asarray(stats.spearmanr(accuracies, alone))[0]),
    }


def supernet_logits(network, by_batch: bool) -> Callable:
    """Builds logits(params, batch_stats, mixtures, images), by batch or running statistics."""

    def logits(params, batch_stats, mixtures, images):
        variables = {"params": params, "batch_stats": batch_stats}
        context = Context(train=by_batch)
        return network.apply(variables, images, mixtures, context, mutable=["batch_stats"])[0]

    return logits


def eigenvalue(
    network, strategy, dataset, batch_size: int, seed: int, devices: Devices = Devices()
) -> Callable:
    """Builds eigenvalue(state, halves): the dominant eigenvalue of the alphas' Hessian.

    Measured on the first alpha batch, for the loss under the method's distribution: with a sampled
    mixture, the eigenvalue would be as random as the sample.
    """

    def eigenvalue(state, halves):
        rows = halves.alpha[:batch_size]
        images, labels = devices.share((halves.images[rows], halves.labels[rows]))
        images = normalise(images, dataset.mean, dataset.std)
        last, key = state.step - 1, jax.random.key(seed)

        def loss(alphas):
            arch = state.arch._replace(alphas=alphas)
            mixtures = strategy.distribution(arch, strategy.mixture(arch, last, key))
            context = Context(train=True, twice=True)
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            logits, _ = network.apply(
                variables, images, _at_rest(mixtures), context, mutable=["batch_stats"]
            )
            return cross_entropy(logits, labels)

        with backend.shared_by(devices.count):
            return collapse.dominant_eigenvalue(loss, state.arch.alphas, key)[0]

    return eigenvalue


def final_mixtures(strategy, state) -> Any:
    """The mixtures of the last completed step, as used for measurement."""
    last = state.step - 1
    return _at_rest(strategy.mixture(state.arch, last, step_keys(state.key, last).alpha))


def _at_rest(mixtures):
    """Mixtures without the noise that is used only while learning."""
    return {cell: mix._replace(skip_dropout=None) for cell, mix in mixtures.items()}
