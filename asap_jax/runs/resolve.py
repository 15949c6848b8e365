"""Resolves a run: config, workdir, data and cells, found and checked once.

After `resolve`, nothing in a run checks again whether config, data and device fit together, except
for the memory of a training whose cells a search has just found.
"""

import contextlib
import dataclasses
import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from asap_jax import data
from asap_jax.configs import rules
from asap_jax.host import (
    checkpoint,
    devices,
    event_files,
    lock,
    memory,
    precisions,
    processes,
    workdir,
)
from asap_jax.host.devices import Devices
from asap_jax.host.errors import UserError
from asap_jax.networks.genotypes import Genotype
from asap_jax.runs import trained
from asap_jax.runs.inputs import check_size, find_genotype, load_data
from asap_jax.searching import stages
from asap_jax.searching.targets import Target
from asap_jax.training import train_loop


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A resolved run.

    config: checked, and adapted to the data (`config.data.at_most`).
    described: `config` as plain values, which a workdir stores and is compared with.
    folder: the workdir, or None.
    mode: "search", "train", or "" for both.
    dataset: images in memory, or a stream of them.
    genotype: the cells to train; None if a search finds them.
    start: the network to start the training from, or None.
    class_weights: [classes], weights of the losses, or None.
    target: for the size of the network that a search derives, or None.
    devices: those that share each batch.
    """

    config: ConfigDict
    described: dict
    folder: Path | None
    mode: str
    dataset: data.Dataset | data.Stream
    genotype: Genotype | None
    start: trained.TrainedNetwork | None
    class_weights: Any
    target: Target | None = None
    devices: Devices = Devices()

    @property
    def in_memory(self) -> data.Dataset:
        """The data of a run that searches: these are in memory."""
        assert isinstance(self.dataset, data.Dataset)
        return self.dataset

    @property
    def searches(self) -> bool:
        return self.mode != "train"

    @property
    def trains(self) -> bool:
        return self.mode != "search"

    @cached_property
    def identity(self) -> dict:
        """The identity that checkpoints and records of this run must match."""
        return {
            "data": self.dataset.digest(),
            "classes": len(self.dataset.class_names),
            "image": list(self.dataset.preparation.shape),
        }

    @property
    def held_out_split(self) -> str:
        """The name in results of what is measured on held-out images: "test" or "val"."""
        return "val" if self.config.train.validation_share else "test"

    @property
    def held_out(self) -> str:
        return "validation" if self.held_out_split == "val" else "test"

    @property
    def opening(self) -> list[str]:
        """The first lines that a run prints: its data, and notes about them."""
        dataset, shape = self.dataset, self.dataset.preparation.shape
        line = (
            f"{self.config.data.source}: {dataset.train_count} training and "
            f"{dataset.test_count} {self.held_out} images of {shape[0]}x{shape[1]}, "
            f"{len(dataset.class_names)} classes; {jax.devices()[0].device_kind}"
        )
        count = self.devices.count
        line += f", {count} of them" if count > 1 else ""
        notes = (
            *dataset.notes,
            *_flip_notes(self.config, self.mode),
            *_share_notes(self.config, self.devices, self.mode),
        )
        return [line, *(f"note: {note}" for note in notes)]

    def held(self) -> contextlib.AbstractContextManager:
        """A context that holds the workdir for this run alone."""
        return contextlib.nullcontext() if self.folder is None else lock.held(self.folder)


def resolve(config: ConfigDict, folder: str | Path | None, mode: str = "", dataset=None) -> Job:
    """Finds and checks everything a run consists of; see `runner.run` for the arguments.

    The cheapest checks come first: the config alone, the workdir's place, the cells; then the data,
    the combination of data and config, the memory of the device; and last whether the workdir is
    another config's, for the data may change this one (`config.data.at_most`).

    Raises:
      UserError: says what is wrong, what was expected and what to do.
    """
    rules.check(config)
    if config.tensorboard:
        event_files.check()
    if folder is not None:
        folder = workdir.locate(folder)
        checkpoint.check_place(folder.absolute())
    mode = mode or config.mode
    _check_mode(config, mode)
    if config.search.budget_minutes and mode != "train" and not processes.alone():
        raise UserError(
            f"config.search.budget_minutes is {config.search.budget_minutes:g}, which fits a "
            "search to the clock of one process: leave it 0 with --distributed, and choose "
            "config.search.epochs"
        )
    shared = devices.local(config.devices, config.deterministic)
    genotype = find_genotype(config, folder) if mode == "train" else None
    start = _network_to_start_from(config, mode)
    if dataset is None:
        dataset = load_data(config, start and start.preparation, searches=mode != "train")
    dataset = _with_statistics_of(start, dataset)
    if config.train.validation_share:
        dataset = _hold_out_validation(config, mode, dataset)
    if config.data.at_most:
        config, dataset = _cap_batch_sizes(config, dataset, shared.count)
    _check_data(config, dataset, mode, genotype)
    if config.devices or not processes.alone():
        for key, (_, size) in computed_together(config, mode).items():
            devices.check_share(shared, key, size)
    if config.check_memory and mode != "train":
        assert isinstance(dataset, data.Dataset)  # as `load_data` gives it for a search
        check_search_memory(stages.estimate(config.search, dataset, shared))
    if config.check_memory and genotype is not None:
        check_training_memory(train_loop.estimate(config.train, genotype, dataset, shared))
    described, weights = json.loads(config.to_json()), None
    if folder is not None:
        workdir.check(folder, described)
    if config.data.class_weights == "balanced":
        weights = data.balanced_weights(dataset.train_labels, len(dataset.class_names))
    target = None if mode == "train" else _size_target(config, dataset)
    return Job(config, described, folder, mode, dataset, genotype, start, weights, target, shared)


def _size_target(config, dataset) -> Target | None:
    """The target for the size of the network that is trained from the search's cells, or None."""
    build = partial(train_loop.make_network, config.train, num_classes=len(dataset.class_names))
    return stages.size_target(config.search, dataset, build)


def computed_together(config, mode) -> dict[str, tuple[str, int]]:
    """{config key: (part of the run, number of images that its step computes at once)}."""
    sizes = {}
    if mode != "train":
        sizes["config.search.batch_size"] = "search", config.search.batch_size
    if mode != "search" or config.searches > 1:
        pieces = config.train.accumulate
        name = "config.train.batch_size" + (" / config.train.accumulate" if pieces > 1 else "")
        sizes[name] = "train", config.train.batch_size // pieces
    return sizes


def _share_notes(config, shared: Devices, mode) -> list[str]:
    """A note where some of the devices have no share of a batch."""
    return [
        f"{key} is {size}, so {shared.among(size).count} of {shared.count} devices compute it: a "
        f"multiple of {shared.count} would use all"
        for key, (_, size) in computed_together(config, mode).items()
        if size % shared.count
    ]


def _flip_notes(config, mode) -> list[str]:
    """A note if images are flipped: whether that is valid cannot be told from them."""
    parts = [mode] if mode else ["search", "train"]
    if mode == "search" and config.searches > 1:
        parts.append("train")  # the trainings that compare searches
    keys = [f"config.{part}.augmentation.flip" for part in parts if config[part].augmentation.flip]
    if not keys:
        return []
    off = " ".join(f"--{key}=False" for key in keys)
    return [
        "half of the images are flipped left to right while they train; where that makes another "
        f"class of them (digits, letters, signs, left and right), turn it off: {off}"
    ]


def _check_mode(config, mode) -> None:
    """Raises UserError if the config cannot be run in this mode or on this device."""
    for part in ("search", "train"):
        if not mode or part == mode:
            precisions.check(config[part].precision, part)
    if config.genotype and mode != "train":
        how = "add --mode=train, or leave it out to search for cells"
        if config.mode == "train":  # a recipe; its search settings were not chosen by anyone
            how = "this config trains them; a search has a preset, such as --config=search:small"
        raise UserError(f"config.genotype={config.genotype} names cells to train: {how}")


def _network_to_start_from(config, mode) -> trained.TrainedNetwork | None:
    """The network that `config.train.start_from` names, or None."""
    if not config.train.start_from:
        return None
    if mode != "train":
        raise UserError("config.train.start_from needs --mode=train and the cells of that network")
    return trained.load(config.train.start_from)


def _with_statistics_of(start, dataset) -> data.Dataset | data.Stream:
    """The data in the image format and statistics of the network to start from."""
    if start is None:
        return dataset
    if not isinstance(dataset, data.Stream):  # a stream was opened for that network
        dataset = data.as_dataset(dataset, preparation=start.preparation)
    return dataclasses.replace(dataset, mean=start.mean, std=start.std)


def _hold_out_validation(config, mode, dataset) -> data.Dataset:
    """The data with a share of the training images in place of the test images."""
    share = config.train.validation_share
    if mode != "train":
        raise UserError(
            f"config.train.validation_share is {share}, which is for comparing trainings: add "
            "--mode=train and the cells (config.genotype), or set it to 0"
        )
    if isinstance(dataset, data.Stream):
        raise UserError(
            f"config.train.validation_share is {share}, which takes its images out of memory, and "
            "these are streamed: set config.data.streaming=off, or the share to 0"
        )
    labels = dataset.train_labels
    held = round(share * len(labels))
    if not 0 < held < len(labels):
        raise UserError(
            f"config.train.validation_share={share} of {len(labels)} training images leaves "
            f"{held} to validate on and {len(labels) - held} to train on: choose another share"
        )
    kept, held_out = data.hold_out(
        labels, share, config.data.split_seed, dataset.train_groups, "train.validation_share"
    )
    groups = dataset.train_groups
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[kept],
        train_labels=labels[kept],
        train_groups=None if groups is None else groups[kept],
        test_images=dataset.train_images[held_out],
        test_labels=labels[held_out],
    )


def _cap_batch_sizes(config, dataset, count) -> tuple[ConfigDict, data.Dataset | data.Stream]:
    """The config with batches no larger than the data, and the data with notes about it.

    `count` devices share the smaller batches, if `config.devices` says so or there are several
    processes.
    """
    config, notes = config.copy_and_resolve_references(), []
    half = dataset.train_count // 2
    for part, most in (("search", half), ("train", half if config.searches > 1 else 2 * half)):
        size = config[part].batch_size
        pieces = config.train.accumulate if part == "train" else 1
        pieces *= count if config.devices or not processes.alone() else 1
        fitting = max(most - most % pieces, 1)
        if size > fitting:
            config[part].batch_size = fitting
            notes.append(
                f"config.{part}.batch_size is {size}, but there are only {dataset.train_count} "
                f"training images: it is {fitting}"
            )
    return config, dataclasses.replace(dataset, notes=(*dataset.notes, *notes))


def _check_data(config, dataset, mode, given) -> None:
    """Raises UserError if a stage of the run cannot use the data."""
    check_size(config, dataset, mode)
    if mode != "train":
        stages.check(config.search, dataset)
    if mode != "search":
        train_loop.check(config.train, dataset)
    if given is not None:
        train_loop.check_cells(config.train, given.skeleton)
    elif not mode or config.searches > 1:
        train_loop.check_cells(config.train, stages.make_space(config.search).skeleton)
    if mode != "train" and config.searches > 1:
        half = len(dataset.train_labels) // 2
        if config.train.batch_size > half:
            raise UserError(
                f"config.train.batch_size is {config.train.batch_size}, but several searches are "
                f"compared by trainings on one half of the images, {half}: choose at most that"
            )


def check_search_memory(needed: memory.Estimate) -> None:
    """Raises UserError if the search does not fit on the device."""
    memory.check(
        needed,
        "search",
        "lower config.search.batch_size, config.search.channels, config.data.image_size or "
        "config.data.train_examples",
    )


def check_training_memory(needed: memory.Estimate) -> None:
    """Raises UserError if a training does not fit on the device."""
    memory.check(
        needed,
        "training",
        "lower config.train.batch_size, config.data.image_size or config.data.train_examples, "
        "or raise config.train.accumulate (pieces a batch is computed in), or set "
        "config.train.remat=True on a GPU",
    )
