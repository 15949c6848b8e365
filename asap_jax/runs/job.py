"""A whole run: data, searches, trainings, test, and the files that say what happened.

A run is a row of stages: search-0, search-1, ..., select-0, ..., train-0, train-1, ... Each leaves
a record in the workdir's `stages` when it is done, and checkpoints while it is under way, so the
same command on the same workdir goes on where it stopped.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from asap_jax.host import checkpoint
from asap_jax import data
from asap_jax.training import evaluation
from asap_jax.host import lock
from asap_jax.host import loop
from asap_jax.host import memory
from asap_jax.host import precisions
from asap_jax.configs import presets
from asap_jax.searching import search_loop
from asap_jax.training import train_loop
from asap_jax.runs import trained
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.networks.genotypes import Genotype
from asap_jax.runs.inputs import check_size
from asap_jax.runs.inputs import find_genotype
from asap_jax.runs.inputs import load_data
from asap_jax.host.interruption import NOBODY_READS
from asap_jax.host.interruption import Interruption
from asap_jax.host.run_log import RunLog
from asap_jax.host.run_log import table
from asap_jax.networks.models import count_parameters
from asap_jax.networks.models import multiply_adds
from asap_jax.report import page
from asap_jax.report.cells import draw_cells

LIBRARIES = ("asap_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SELECTION = 4  # told apart from what else is drawn by (seed, number)
MODES = ("search", "train", "evaluate", "describe", "report", "export")


class Outcome(NamedTuple):
    """What a run ends with.

    genotype: the cells.
    search: the record of the search that found them, {} if none did.
    network: the trained network (the first seed's), None after a search alone.
    results: what results.json holds, {} after a search alone.
    """

    genotype: Genotype
    search: dict
    network: trained.TrainedNetwork | None
    results: dict


@precisions.in_32_bits
def run(
    config: ConfigDict,
    folder: str | Path | None,
    *,
    mode: str = "",
    dataset: data.Dataset | None = None,
    callbacks: loop.Callbacks = loop.Callbacks(),
    quiet: bool = False,
    command: Sequence[str] = (),
) -> Outcome:
    """Searches a cell, trains the network built from it on both halves, tests that once.

    Args:
      config: as `presets.get_config` makes it.
      folder: the workdir; made if need be. One that holds another config is refused, one that holds
        this run's beginnings is gone on with. None writes no files.
      mode: "search" ends with the genotype; "train" takes one (`config.genotype`, or the workdir's
        own); "" is `config.mode`, and if that is "" too, does both.
      dataset: in place of the one that `config.data` names.
      callbacks: functions that follow the run.
      quiet: print nothing.
      command: the command's arguments, for the page that says how to repeat the run.

    Raises:
      UserError: the config, the data or the workdir cannot be worked with, or another run has that.
      Interrupted: a signal came, and the run is saved.
    """
    started = time.monotonic()
    presets.check(config)
    if folder is not None:
        folder = workdir.locate(folder)
        checkpoint.check_place(folder.absolute())
    mode = mode or config.mode
    for part in ("search", "train"):
        if not mode or part == mode:
            precisions.check(config[part].precision, part)
    if config.genotype and mode != "train":
        how = "add --mode=train, or leave it out to search for cells"
        if config.mode == "train":  # a recipe, whose settings of the search nobody chose
            how = "this config trains them; a search has a preset, such as --config=search:small"
        raise UserError(f"config.genotype={config.genotype} names cells to train: {how}")
    given = find_genotype(config, folder) if mode == "train" else None
    start = _start(config, mode)
    if dataset is None:
        dataset = load_data(config, start and start.preparation, searches=mode != "train")
    dataset = _begin_with(start, dataset)
    if config.train.validation_share:
        dataset = _validating(config, mode, dataset)
    if config.data.at_most:
        config, dataset = _in_batches_that_there_are(config, dataset)
    _check_data(config, dataset, mode, given)
    if config.check_memory:
        _check_memory(config, dataset, mode, given)
    described, holding = json.loads(config.to_json()), contextlib.nullcontext()
    if folder is not None:
        workdir.check(folder, described)
        holding = lock.held(folder)
    with holding, Interruption() as interruption, workdir.room_for(folder):
        if folder is not None:
            _check_epochs(config, folder)
            workdir.claim(folder, described)
            if command:
                page.keep_command(folder, command)
        saving = folder and loop.Saving(folder / "checkpoints", **config.checkpoint)
        log = RunLog(folder, quiet, partial(interruption.ask, NOBODY_READS))
        session = loop.Session(log, interruption, saving, callbacks)
        return _Run(config, folder, dataset, session, start, started).go(mode, given)


def _start(config, mode) -> trained.TrainedNetwork | None:
    """The network that `config.train.start_from` names."""
    if not config.train.start_from:
        return None
    if mode != "train":
        raise UserError("config.train.start_from needs --mode=train and the cells of that network")
    return trained.load(config.train.start_from)


def _begin_with(start, dataset) -> data.Dataset | data.Stream:
    """The data as the network to start from knows images."""
    if start is None:
        return dataset
    if not isinstance(dataset, data.Stream):  # which was opened for that network
        dataset = data.as_dataset(dataset, preparation=start.preparation)
    return dataclasses.replace(dataset, mean=start.mean, std=start.std)


def _validating(config, mode, dataset) -> data.Dataset:
    """The data with a share of the training images in the test images' place."""
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


def _in_batches_that_there_are(config, dataset) -> tuple[ConfigDict, data.Dataset | data.Stream]:
    """The config with batches that the images fill, and the data with a note of it."""
    config, notes = config.copy_and_resolve_references(), []
    half = dataset.train_count // 2
    for part, most in (("search", half), ("train", half if config.searches > 1 else 2 * half)):
        size = config[part].batch_size
        fitting = max(most - most % config.train.accumulate, 1) if part == "train" else max(most, 1)
        if size > fitting:
            config[part].batch_size = fitting
            notes.append(
                f"config.{part}.batch_size is {size}, but there are only {dataset.train_count} "
                f"training images: it is {fitting}"
            )
    return config, dataclasses.replace(dataset, notes=(*dataset.notes, *notes))


def _check_data(config, dataset, mode, given) -> None:
    """Raises UserError for data that a stage of the run could not work with."""
    check_size(config, dataset, mode)
    if mode != "train":
        search_loop.check(config.search, dataset)
    if mode != "search":
        train_loop.check(config.train, dataset)
    if given is not None:
        train_loop.check_cells(config.train, given.skeleton)
    elif not mode or config.searches > 1:
        train_loop.check_cells(config.train, search_loop.make_space(config.search).skeleton)
    if mode != "train" and config.searches > 1:
        half = len(dataset.train_labels) // 2
        if config.train.batch_size > half:
            raise UserError(
                f"config.train.batch_size is {config.train.batch_size}, but several searches are "
                f"compared by trainings on one half of the images, {half}: choose at most that"
            )


def _check_memory(config, dataset, mode, genotype) -> None:
    """Raises UserError for what the device cannot hold; found cells are checked when found."""
    if mode != "train":
        memory.check(
            search_loop.estimate(config.search, dataset),
            "search",
            "lower config.search.batch_size, config.search.channels, config.data.image_size or "
            "config.data.train_examples",
        )
    if genotype is not None:
        memory.check(
            train_loop.estimate(config.train, genotype, dataset),
            "training",
            "lower config.train.batch_size, config.data.image_size or config.data.train_examples, "
            "or raise config.train.accumulate (pieces a batch is computed in), or set "
            "config.train.remat=True on a GPU",
        )


class _Run:
    """One run's parts, at hand for its stages."""

    def __init__(self, config, folder, dataset, session, start, started):
        self.started, self.in_stages, self.start = started, 0.0, start
        self.config, self.folder, self.dataset, self.session = config, folder, dataset, session
        self.say = session.log.say
        self.identity = {
            "data": dataset.digest(),
            "classes": len(dataset.class_names),
            "image": list(dataset.preparation.shape),
        }
        # The images that are held out, and what results call what is measured on them.
        validates = config.train.validation_share > 0
        self.part, self.held_out = ("val", "validation") if validates else ("test", "test")
        self.class_weights = None
        if config.data.class_weights == "balanced":
            self.class_weights = data.balanced_weights(
                dataset.train_labels, len(dataset.class_names)
            )

    def go(self, mode, given) -> Outcome:
        shape = self.dataset.preparation.shape
        self.say(
            f"{self.config.data.source}: {self.dataset.train_count} training and "
            f"{self.dataset.test_count} {self.held_out} images of {shape[0]}x{shape[1]}, "
            f"{len(self.dataset.class_names)} classes; {jax.devices()[0].device_kind}"
        )
        for note in (*self.dataset.notes, *_flipped(self.config, mode)):
            self.say(f"note: {note}")
        self.keep_samples()
        searched = not self.config.genotype and self.record(
            "search", self.config.searches - 1, self.search_identity
        )
        genotype, search = (given, {}) if given and not searched else self.search()
        if self.folder is not None:
            genotype.save(self.folder / "genotype.json")
            draw_cells(genotype, [self.folder / "cells.svg", self.folder / "cells.png"])
            self.write_page()
        if mode == "search":
            self.say(table(_search_rows(self.config, search)) + self.files())
            return Outcome(genotype, search, None, {})
        network, results = self.train(genotype, search)
        if self.folder is not None:
            self.keep_mistakes(network)
            self.write_page()
        rows = [*_search_rows(self.config, search), *_train_rows(results)]
        self.say(table(rows) + self.files())
        return Outcome(genotype, search, network, results)

    def write_page(self) -> None:
        """Writes report.html; a run does not end for want of it."""
        try:
            page.write(self.folder)
        except UserError as error:
            self.say(f"warning: {error}")

    def keep_samples(self) -> None:
        """Leaves a few training images for the page, if they are in memory."""
        dataset = self.dataset
        if self.folder is None or isinstance(dataset, data.Stream):
            return
        order = np.random.default_rng(self.config.seed).permutation(dataset.train_count)
        rows = np.sort(order[: page.SAMPLES])
        page.keep_samples(
            self.folder,
            dataset.train_images[rows],
            dataset.train_labels[rows],
            train_loop.make_augmentation(self.config.train, dataset),
            dataset.class_names,
        )

    def keep_mistakes(self, network) -> None:
        """Leaves for the page what the network got most wrong of (at most) 1,000 test images."""
        dataset = self.dataset
        if isinstance(dataset, data.Stream):
            return
        images, labels = dataset.test_images[:1000], dataset.test_labels[:1000]
        page.keep_mistakes(
            self.folder, images, labels, network.predict_proba(images), dataset.class_names
        )

    @property
    def search_identity(self) -> dict:
        """With the space itself: its name may stand for another in another program."""
        space = search_loop.make_space(self.config.search)
        edges = [list(edge) for edge in space.edges]
        described = {"skeleton": space.skeleton, "edges": edges, "candidates": [*space.candidates]}
        return self.identity | {"space": described}

    def files(self) -> str:
        if self.folder is None:
            return ""
        found = [path for path in sorted(self.folder.iterdir()) if path.name != lock.NAME]
        names = [path.name + "/" * path.is_dir() for path in found]
        return f"\n\n  in {self.folder}:  {'  '.join(names)}"

    def search(self) -> tuple[Genotype, dict]:
        """(genotype, record) of the search, or of the best of several."""
        config, records, identity = self.config, [], self.search_identity
        for index in range(config.searches):
            record = self.record("search", index, identity)
            if record is None:
                self.say("compiling the search step (later runs find it in the cache)")
                with self.timed():
                    found = search_loop.search(
                        config.search,
                        self.dataset,
                        config.seed + index,
                        self.session,
                        index=index,
                        identity=identity,
                        class_weights=self.class_weights,
                    )
                record = found._asdict() | {"seed": config.seed + index}
                record["genotype"] = json.loads(found.genotype.to_json())
                self.keep("search", index, record, identity)
            records.append(record)
        best = self.select(records) if len(records) > 1 else 0
        genotype = Genotype.from_json(json.dumps(records[best]["genotype"]))
        seconds = sum(record["seconds"] for record in records)
        return genotype, records[best] | {"seconds": seconds, "searches": len(records)}

    def select(self, records) -> int:
        """The search whose cells do best, trained shortly on one half, on the other half.

        The halves are a split of their own, by a seed that no search has: each search has trained
        its alphas on about half of the images that measure it, and none on more than another.
        """
        config, dataset, scores = self.config, self.dataset, []
        halves_seed = (config.seed, SELECTION)
        first, second = data.halves(dataset.train_labels, halves_seed, dataset.train_groups)
        identity = self.identity | {"halves": "of their own"}  # once they were the first search's
        split = dataclasses.replace(
            dataset,
            train_images=dataset.train_images[first],
            train_labels=dataset.train_labels[first],
            test_images=dataset.train_images[second],
            test_labels=dataset.train_labels[second],
            train_groups=None,
        )
        short = config.train.copy_and_resolve_references()
        presets.update(short, {"epochs": config.selection.epochs, "start_from": ""})
        train_loop.check(short, split)
        for index, searched in enumerate(records):
            record = self.record("select", index, identity)
            if record is None:
                genotype = Genotype.from_json(json.dumps(searched["genotype"]))
                with self.timed():
                    outcome = train_loop.train(
                        short,
                        genotype,
                        split,
                        config.seed,
                        self.session,
                        phase="select",
                        index=index,
                        identity=identity | {"genotype": genotype.to_json()},
                        class_weights=self.class_weights,
                    )
                record = {"val_accuracy": outcome.answers.accuracy, "seconds": outcome.seconds}
                self.keep("select", index, record, identity)
            scores.append(record["val_accuracy"])
            searched |= record | {"seconds": searched["seconds"] + record["seconds"]}
            self.say(f"search {index}: its cells reach {100 * scores[-1]:.2f} % on the other half")
        return int(np.argmax(scores))

    def train(self, genotype, search) -> tuple[trained.TrainedNetwork, dict]:
        """(network of the first seed, results over all seeds)."""
        config, records, networks, news = self.config, [], [], False
        identity = self.identity | {"genotype": genotype.to_json()}
        for index in range(config.train.seeds):
            record = self.record("train", index, identity)
            name = trained.network_name(index)
            done = record and (record["epochs"] >= config.train.epochs or record["ended"])
            if done and (self.folder / name).exists():
                network = trained.load(self.folder, index)
            else:
                if config.check_memory and search and not news:
                    self.check_training_memory(genotype)
                self.say("compiling the training step")
                with self.timed():
                    outcome = train_loop.train(
                        config.train,
                        genotype,
                        self.dataset,
                        config.seed + index,
                        self.session,
                        index=index,
                        identity=identity,
                        class_weights=self.class_weights,
                        start=self.start and self.start.variables,
                    )
                network = trained.from_outcome(outcome, self.dataset, config.train, self.part)
                news = True
                if self.folder is not None:
                    network.save(self.folder, name)
                before = record.get("test_readings", 1) if record else 0
                readings = 0 if self.part == "val" else before + 1
                record = network.results | {"seed": config.seed + index, "ended": outcome.ended}
                record["test_readings"] = readings
                if readings > 1:
                    self.say(
                        f"note: training {index} has read the test images {readings} times now, "
                        "once at each length: to choose a length by them flatters"
                    )
                self.keep("train", index, record, identity)
            records.append(record)
            networks.append(network)
        written = self.folder and self.folder / "results.json"
        if written and written.exists() and not news:
            return networks[0], workdir.read_json(written)
        results = self.results(records, networks[0], search)
        if written:
            workdir.write_json(written, results)
        return networks[0], results

    def check_training_memory(self, genotype) -> None:
        """After a search, the config may not change here any more: say where it may."""
        try:
            _check_memory(self.config, self.dataset, "train", genotype)
        except UserError as error:
            elsewhere = ""
            if self.folder is not None:
                elsewhere = (
                    f". The search is done and kept: --mode=train --config.genotype={self.folder} "
                    "with another --workdir trains its cells with other settings"
                )
            raise UserError(f"{error}{elsewhere}") from error

    def results(self, records, network, search) -> dict:
        accuracies = [record[f"{self.part}_accuracy"] for record in records]
        train_seconds = sum(record["seconds"] for record in records)
        search_seconds = search.get("seconds", 0.0)
        results = {
            f"{self.part}_accuracy": statistics.fmean(accuracies),
            f"{self.part}_error": 1 - statistics.fmean(accuracies),
            "test_readings": max(record.get("test_readings", 1) for record in records),
            **_mean_answers(records),
            "parameters": count_parameters(network.variables["params"]),
            "multiply_adds": multiply_adds(network.module, self.dataset.preparation.shape),
            "search_seconds": search_seconds,
            "train_seconds": train_seconds,
            "total_seconds": search_seconds + train_seconds + self.seconds_beside(),
            "candidates_left": search.get("candidates_left"),
            "epochs": {"search": search.get("epochs", 0), "train": records[0]["epochs"]},
            "gap": search.get("gap", {}),
            "seed": self.config.seed,
            "device": jax.devices()[0].device_kind,
            "precision": {
                part: precisions.resolve(self.config[part].precision)
                for part in ("search", "train")
            },
            "versions": versions(),
        }
        if len(records) > 1:
            results[f"{self.part}_accuracies"] = accuracies
            results[f"{self.part}_accuracy_deviation"] = statistics.stdev(accuracies)
        if "val_accuracy" in search:
            results["selected"] = {k: search[k] for k in ("seed", "searches", "val_accuracy")}
        return results

    @contextlib.contextmanager
    def timed(self):
        """Around a stage, which keeps its own time."""
        tick = time.monotonic()
        yield
        self.in_stages += time.monotonic() - tick

    def seconds_beside(self) -> float:
        """What this start spent outside its stages: data, checks, pictures."""
        return time.monotonic() - self.started - self.in_stages

    def record(self, phase, index, identity=None) -> dict | None:
        """What a stage left when it was done, or None; UserError if it belongs to other data."""
        if self.folder is None:
            return None
        path = self.folder / "stages" / f"{phase}-{index}.json"
        if not path.exists():
            return None
        record = workdir.read_json(path)
        checkpoint.check_identity(path, record.pop("identity", {}), identity or self.identity)
        return record

    def keep(self, phase, index, record, identity=None) -> None:
        if self.folder is not None:
            path = self.folder / "stages" / f"{phase}-{index}.json"
            workdir.write_json(path, {**record, "identity": identity or self.identity})
        self.session.interruption.check(f"{phase} {index} is done")


def _flipped(config, mode) -> list[str]:
    """What to know where images are flipped: nobody can tell from them whether that may be."""
    parts = [mode] if mode else ["search", "train"]
    if mode == "search" and config.searches > 1:
        parts.append("train")  # which compares them
    keys = [f"config.{part}.augmentation.flip" for part in parts if config[part].augmentation.flip]
    if not keys:
        return []
    off = " ".join(f"--{key}=False" for key in keys)
    return [
        "half of the images are flipped left to right while they train; where that makes another "
        f"class of them (digits, letters, signs, left and right), turn it off: {off}"
    ]


def _mean_answers(records) -> dict:
    """What `Answers.record` tells beside the accuracy, over seeds: means, and a sum of confusions.

    The seeds are tested on the same images.
    """
    first = records[0]
    result = {
        key: statistics.fmean(record[key] for record in records)
        for key in ("balanced_accuracy", "top_5_accuracy")
        if key in first
    }
    result["class_accuracy"] = {
        name: None
        if value is None
        else statistics.fmean(record["class_accuracy"][name] for record in records)
        for name, value in first["class_accuracy"].items()
    }
    if "confusion" in first:
        result["confusion"] = np.sum([record["confusion"] for record in records], 0).tolist()
    return result


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on; "unknown" for one that is not installed."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:  # asap_jax run from a checkout
            return "unknown"

    return {name: version(name) for name in LIBRARIES}


def _check_epochs(config, folder) -> None:
    """Raises UserError if the workdir's training has gone further than the config wants."""
    if (folder / "config.json").exists():
        workdir.read_config(folder)  # refuses another version's
    for path in (folder / "stages").glob("train-*.json"):
        done = workdir.read_json(path).get("epochs", 0)
        if done > config.train.epochs:
            raise UserError(
                f"{folder} holds a training of {done} epochs that is done; config.train.epochs="
                f"{config.train.epochs} asks for fewer: choose another --workdir"
            )


def _search_rows(config, search) -> list[tuple[str, str]]:
    if not search:
        return []
    rows = [("candidates left", f"{search['candidates_left']} after {search['epochs']} epochs")]
    name = Genotype.from_json(json.dumps(search["genotype"])).architecture_string()
    if name is not None:
        rows.append(("architecture", name))
    for column, value in search["benchmark"].items():
        rows.append((f"benchmark {column}", f"{value:g}"))
    if "val_accuracy" in search:
        accuracy = 100 * search["val_accuracy"]
        rows.append(("chosen search", f"seed {search['seed']}, {accuracy:.2f} % on the other half"))
    if search["gap"]:
        gaps = [f"{rule} {100 * gap['gap']:+.2f} points" for rule, gap in search["gap"].items()]
        rows.append(("gap supernet -> derived", f"{', '.join(gaps)} (used: {config.search.edges})"))
    return [*rows, ("search seconds", f"{search['seconds']:.0f}")]


def _train_rows(results) -> list[tuple[str, str]]:
    part = "test" if "test_accuracy" in results else "val"
    accuracy = f"{100 * results[f'{part}_accuracy']:.2f} %"
    if f"{part}_accuracies" in results:
        deviation = 100 * results[f"{part}_accuracy_deviation"]
        accuracy += f" +- {deviation:.2f} over {len(results[f'{part}_accuracies'])} seeds"
    readings = results["test_readings"]
    again = [("test images read", f"{readings} times")] if readings > 1 else []
    return [
        ("training seconds", f"{results['train_seconds']:.0f}"),
        ("parameters", f"{results['parameters']:,}"),
        ("multiply-adds", f"{results['multiply_adds']:,}"),
        ("test accuracy" if part == "test" else "validation accuracy", accuracy),
        *again,
        *evaluation.rows(results),
    ]
