"""A whole run: data, searches, trainings, test, and the files that record it.

A run is a sequence of stages: search-0, search-1, ..., select-0, ..., train-0, train-1, ... Each
writes a record to `stages` in the workdir when it is done, and checkpoints while it is in progress,
so the same command on the same workdir resumes where it stopped.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from asap_jax import data
from asap_jax.configs import presets
from asap_jax.host import checkpoint, compile_cache, lock, loop, precisions, processes, workdir
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import NOBODY_READS, Interruption
from asap_jax.host.lines import MEASURED_ON
from asap_jax.host.run_log import RunLog, html_table, say, table
from asap_jax.networks.drawings import draw_cells
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.models import count_parameters, multiply_adds
from asap_jax.report import page
from asap_jax.runs import trained
from asap_jax.runs.resolve import Job, check_training_memory, computed_together, resolve
from asap_jax.searching import certainty, search_loop, stages
from asap_jax.training import evaluation, train_loop

LIBRARIES = ("asap_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SELECTION = 4  # distinguishes this draw from others by (seed, number)
MODES = ("search", "train", "evaluate", "describe", "report", "export", "watch", "compare")


class Outcome(NamedTuple):
    """The result of a run.

    genotype: the cells.
    search: the record of the search that found them; {} without a search.
    network: the trained network (of the first seed); None after a search alone.
    results: the content of results.json; {} after a search alone.
    """

    genotype: Genotype
    search: dict
    network: trained.TrainedNetwork | None
    results: dict

    def _repr_html_(self) -> str:
        """The cells and what was measured, for notebooks."""
        rows = train_rows(self.results) if self.results else []
        return self.genotype._repr_svg_() + html_table(rows)


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
    """Searches a cell, trains the network built from it on both halves, and tests it once.

    Args:
      config: a config from `presets.get_config`.
      folder: the workdir, created if missing. It is refused if it holds another config, and resumed
        if it holds the same one. None writes no files.
      mode: "search" stops at the genotype; "train" trains a given one (`config.genotype`, or the
        workdir's own); "" uses `config.mode` and, if that is "" too, does both.
      dataset: used instead of the one that `config.data` names.
      callbacks: the user's callbacks.
      quiet: print nothing.
      command: the command's arguments, for the page to show how to repeat the run.

    Raises:
      UserError: the config, data or workdir is unusable, or another run holds the workdir.
      Interrupted: a signal arrived; with a workdir, the run is saved.
    """
    watch = loop.Stopwatch()
    with processes.refused_together():
        job = resolve(config, folder, mode, dataset)
    place = job.folder
    if not processes.alone():
        same = {"versions": versions(), "data": job.identity, "mode": job.mode}
        processes.check_same(same | {"config": job.described})
        if not compile_cache.only_if_shared() and processes.leads() and not quiet:
            say(
                "note: the processes have no compilation cache in common, so they use none: name a "
                "folder that all see with JAX_COMPILATION_CACHE_DIR"
            )
    if not processes.leads():  # the first process writes, and tells the others what it has read
        job, quiet = dataclasses.replace(job, folder=None), True
    folder = job.folder
    with job.held(), Interruption() as interruption, workdir.room_for(folder):
        if folder is not None:
            _check_epochs(job.config, folder)
            workdir.claim(folder, job.described)
            if command:
                page.keep_command(folder, command)
        saving = folder and loop.Saving(folder / "checkpoints", **job.config.checkpoint)
        unread = partial(interruption.ask, NOBODY_READS)
        log = RunLog(folder, quiet, unread, job.config.tensorboard)
        on_nan, devices = job.config.on_nan, job.devices
        session = loop.Session(log, interruption, saving, callbacks, on_nan, devices)
        return _Run(job, session, watch, place).go()


class _Run:
    """A run in progress: its job, and the session that its stages share."""

    def __init__(
        self,
        job: Job,
        session: loop.Session,
        watch: loop.Stopwatch,
        place: Path | None = None,
    ):
        self.job, self.session, self.watch = job, session, watch
        self.place = place or job.folder  # the workdir, also if this process does not write there
        self.config, self.folder, self.dataset = job.config, job.folder, job.dataset
        self.say = session.log.say

    def go(self) -> Outcome:
        job = self.job
        for line in job.opening:
            self.say(line)
        self.keep_samples()
        searched = not self.config.genotype and self.record(
            "search", self.config.searches - 1, self.search_identity
        )
        genotype, search = (job.genotype, {}) if job.genotype and not searched else self.search()
        if self.folder is not None:
            if search:
                workdir.write_json(self.folder / "search.json", search)
            genotype.save(self.folder / "genotype.json")
            draw_cells(genotype, [self.folder / "cells.svg", self.folder / "cells.png"])
        self.write_page()
        if not job.trains:
            self.say(table(search_rows(self.config, search)) + self.files())
            return Outcome(genotype, search, None, {})
        network, results = self.train(genotype, search)
        self.keep_mistakes(network)
        self.write_page()
        rows = [*search_rows(self.config, search), *train_rows(results)]
        self.say(table(rows) + self.files())
        return Outcome(genotype, search, network, results)

    def write_page(self) -> None:
        """Writes report.html, if there is a workdir; a failure is only a warning."""
        if self.folder is None:
            return
        try:
            page.write(self.folder)
        except UserError as error:
            self.say(f"warning: {error}")

    def keep_samples(self) -> None:
        """Saves a few training images for the page, if they are in memory."""
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
        """Saves the network's worst mistakes among (at most) 1,000 test images for the page."""
        dataset = self.dataset
        if self.folder is None or isinstance(dataset, data.Stream):
            return
        images, labels = dataset.test_images[:1000], dataset.test_labels[:1000]
        page.keep_mistakes(
            self.folder, images, labels, network.predict_proba(images), dataset.class_names
        )

    @property
    def search_identity(self) -> dict:
        """Includes the space itself, since its name may mean another one in another program."""
        space = stages.make_space(self.config.search)
        edges = [list(edge) for edge in space.edges]
        described = {"skeleton": space.skeleton, "edges": edges, "candidates": [*space.candidates]}
        return self.job.identity | {"space": described}

    def files(self) -> str:
        if self.folder is None:
            return ""
        found = [path for path in sorted(self.folder.iterdir()) if path.name != lock.NAME]
        names = [path.name + "/" * path.is_dir() for path in found]
        return f"\n\n  in {self.folder}:  {'  '.join(names)}"

    def search(self) -> tuple[Genotype, dict]:
        """Returns (genotype, record) of the search, or of the best of several."""
        config, records, identity = self.config, [], self.search_identity
        if any(self.record("search", each, identity) is None for each in range(config.searches)):
            self.say(f"note: {MEASURED_ON}")
        for index in range(config.searches):
            record = self.record("search", index, identity)
            if record is None:
                self.say("compiling the search step (later runs find it in the cache)")
                with self.watch.paused():  # a stage measures its own time
                    found = search_loop.search(
                        config.search,
                        self.job.in_memory,
                        config.seed + index,
                        self.session,
                        index=index,
                        identity=identity,
                        class_weights=self.job.class_weights,
                        target=self.job.target,
                    )
                record = found._asdict() | {"seed": config.seed + index}
                record["genotype"] = json.loads(found.genotype.to_json())
                self.keep("search", index, record, identity)
            records.append(record)
        best = self.select(records) if len(records) > 1 else 0
        genotype = Genotype.from_json(json.dumps(records[best]["genotype"]))
        seconds = sum(record["seconds"] for record in records)
        found = records[best] | {"seconds": seconds, "searches": len(records)}
        if len(records) > 1 and found.get("certainty"):
            genotypes = [Genotype.from_json(json.dumps(each["genotype"])) for each in records]
            shared = certainty.between(genotypes)
            found["certainty"] = found["certainty"] | {"agreement_of_searches": shared}
        return genotype, found

    def select(self, records) -> int:
        """The search whose cells do best on one half after a short training on the other.

        The halves are a separate split, with a seed that no search uses: each search has trained
        its alphas on about half of the images that measure it, and none on more than another.
        """
        config, dataset, scores = self.config, self.job.in_memory, []
        halves_seed = (config.seed, SELECTION)
        first, second = data.halves(dataset.train_labels, halves_seed, dataset.train_groups)
        # Older versions used the halves of the first search.
        identity = self.job.identity | {"halves": "of their own"}
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
                with self.watch.paused():  # a stage measures its own time
                    outcome = train_loop.train(
                        short,
                        genotype,
                        split,
                        config.seed,
                        self.session,
                        phase="select",
                        index=index,
                        identity=identity | {"genotype": genotype.to_json()},
                        class_weights=self.job.class_weights,
                    )
                record = {"val_accuracy": outcome.answers.accuracy, "seconds": outcome.seconds}
                self.keep("select", index, record, identity)
            scores.append(record["val_accuracy"])
            searched |= record | {"seconds": searched["seconds"] + record["seconds"]}
            self.say(f"search {index}: its cells reach {100 * scores[-1]:.2f} % on the other half")
        return int(np.argmax(scores))

    def train(self, genotype, search) -> tuple[trained.TrainedNetwork, dict]:
        """Returns (network of the first seed, results over all seeds)."""
        config, records, networks, trained_anew = self.config, [], [], False
        identity = self.job.identity | {"genotype": genotype.to_json()}
        for index in range(config.train.seeds):
            record = self.record("train", index, identity)
            name = trained.network_name(index)
            done = record and (record["epochs"] >= config.train.epochs or record["ended"])
            kept = self.folder is not None and done and (self.folder / name).exists()
            if processes.agreed(bool(kept)):
                network = trained.load(self.place, index)
            else:
                if config.check_memory and search and not trained_anew:
                    self.check_training_memory(genotype)
                self.say("compiling the training step")
                with self.watch.paused():  # a stage measures its own time
                    outcome = train_loop.train(
                        config.train,
                        genotype,
                        self.dataset,
                        config.seed + index,
                        self.session,
                        index=index,
                        identity=identity,
                        class_weights=self.job.class_weights,
                        start=self.job.start and self.job.start.variables,
                    )
                network = trained.from_outcome(
                    outcome, self.dataset, config.train, self.job.held_out_split
                )
                trained_anew = True
                if self.folder is not None:
                    network.save(self.folder, name)
                before = record.get("test_readings", 1) if record else 0
                readings = 0 if self.job.held_out_split == "val" else before + 1
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
        if written and written.exists() and not trained_anew:
            results = workdir.read_json(written)
        else:
            results = self.results(records, networks[0], search)
            if written:
                workdir.write_json(written, results)
        return networks[0], processes.agreed(results)

    def check_training_memory(self, genotype) -> None:
        """After a search the config can no longer change in this workdir: suggests another one."""
        try:
            devices = self.session.devices
            needed = train_loop.estimate(self.config.train, genotype, self.dataset, devices)
            check_training_memory(needed)
        except UserError as error:
            elsewhere = ""
            if self.folder is not None:
                elsewhere = (
                    f". The search is done and kept: --mode=train --config.genotype={self.folder} "
                    "with another --workdir trains its cells with other settings"
                )
            raise UserError(f"{error}{elsewhere}") from error

    def results(self, records, network, search) -> dict:
        accuracies = [record[f"{self.job.held_out_split}_accuracy"] for record in records]
        train_seconds = sum(record["seconds"] for record in records)
        search_seconds = search.get("seconds", 0.0)
        results = {
            f"{self.job.held_out_split}_accuracy": statistics.fmean(accuracies),
            f"{self.job.held_out_split}_error": 1 - statistics.fmean(accuracies),
            "test_readings": max(record.get("test_readings", 1) for record in records),
            **_mean_answers(records),
            "parameters": count_parameters(network.variables["params"]),
            "multiply_adds": multiply_adds(network.module, self.dataset.preparation.shape),
            "latency": records[0].get("latency"),  # None for networks of older versions
            "search_seconds": search_seconds,
            "train_seconds": train_seconds,
            "total_seconds": search_seconds + train_seconds + self.watch.seconds,
            "candidates_left": search.get("candidates_left"),
            "epochs": {"search": search.get("epochs", 0), "train": records[0]["epochs"]},
            "gap": search.get("gap", {}),
            "certainty": search.get("certainty", {}),
            "expected": search.get("expected", {}),
            "benchmark": search.get("benchmark", {}),
            "worse": search.get("worse", {}),
            "seed": self.config.seed,
            "device": jax.devices()[0].device_kind,
            "devices": {
                part: self.session.devices.among(size).count
                for part, size in computed_together(self.config, self.job.mode).values()
            },
            "precision": {
                part: precisions.resolve(self.config[part].precision)
                for part in ("search", "train")
            },
            "versions": versions(),
        }
        if len(records) > 1:
            results[f"{self.job.held_out_split}_accuracies"] = accuracies
            results[f"{self.job.held_out_split}_accuracy_deviation"] = statistics.stdev(accuracies)
        if "val_accuracy" in search:
            results["selected"] = {k: search[k] for k in ("seed", "searches", "val_accuracy")}
        return results

    def record(self, phase, index, identity=None) -> dict | None:
        """The record of a finished stage, or None; raises UserError if it is of other data."""
        record, path = None, self.folder and self.folder / "stages" / f"{phase}-{index}.json"
        if path and path.exists():
            record, expected = workdir.read_json(path), identity or self.job.identity
            checkpoint.check_identity(path, record.pop("identity", {}), expected)
        return processes.agreed(record)

    def keep(self, phase, index, record, identity=None) -> None:
        if self.folder is not None:
            path = self.folder / "stages" / f"{phase}-{index}.json"
            workdir.write_json(path, {**record, "identity": identity or self.job.identity})
        self.session.interruption.check(f"{phase} {index} is done")


def _mean_answers(records) -> dict:
    """Averages `Answers.record` over seeds, without the accuracy; confusion matrices are summed.

    All seeds are tested on the same images.
    """
    first = records[0]
    result: dict[str, Any] = {
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
    """Versions of the libraries that a result depends on; "unknown" if not installed."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:  # asap_jax run from a checkout
            return "unknown"

    return {name: version(name) for name in LIBRARIES}


def _check_epochs(config, folder) -> None:
    """Raises UserError if the workdir holds a training of more epochs than configured."""
    if (folder / "config.json").exists():
        workdir.read_config(folder)  # refuses configs of other versions
    for path in (folder / "stages").glob("train-*.json"):
        done = workdir.read_json(path).get("epochs", 0)
        if done > config.train.epochs:
            raise UserError(
                f"{folder} holds a training of {done} epochs that is done; config.train.epochs="
                f"{config.train.epochs} asks for fewer: choose another --workdir"
            )


def search_rows(config, search) -> list[tuple[str, str]]:
    if not search:
        return []
    rows = [("candidates left", f"{search['candidates_left']} after {search['epochs']} epochs")]
    name = Genotype.from_json(json.dumps(search["genotype"])).architecture_string()
    if name is not None:
        rows.append(("architecture", name))
    for column, value in search["benchmark"].items():
        below = search.get("worse", {}).get(column)  # older versions have none
        rank = "" if below is None else f", better than {below:.0f} % of all cells"
        rows.append((f"benchmark {column}", f"{value:g}{rank}"))
    if expected := search.get("expected"):
        share = f"{expected['worse']:.0f} +- {expected['error']:.0f} %"
        rows.append(("expected of such a length", f"better than {share} of all cells"))
    if search.get("ranking"):
        found = search["ranking"]
        rows.append(
            (
                "ranked by shared weights",
                f"{found['cells']} cells against {found['column']}: "
                f"Kendall's tau {found['kendall']:.2f}",
            )
        )
    if "val_accuracy" in search:
        accuracy = 100 * search["val_accuracy"]
        rows.append(("chosen search", f"seed {search['seed']}, {accuracy:.2f} % on the other half"))
    rows += certainty.rows(search.get("certainty", {}))
    if search["gap"]:
        gaps = [f"{rule} {100 * gap['gap']:+.2f} points" for rule, gap in search["gap"].items()]
        rows.append(("gap supernet -> derived", f"{', '.join(gaps)} (used: {config.search.edges})"))
    return [*rows, ("search seconds", f"{search['seconds']:.0f}")]


def train_rows(results) -> list[tuple[str, str]]:
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
        *evaluation.speed_rows(results.get("latency")),
        ("test accuracy" if part == "test" else "validation accuracy", accuracy),
        *again,
        *evaluation.rows(results),
    ]
