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
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from asap_jax import (
    checkpoint,
    data,
    loop,
    memory,
    presets,
    search_loop,
    train_loop,
    trained,
    workdir,
)
from asap_jax.errors import UserError
from asap_jax.genotypes import GENOTYPES, Genotype
from asap_jax.interruption import Interruption
from asap_jax.metrics import RunLog
from asap_jax.networks import count_parameters, multiply_adds, reductions
from asap_jax.report.cells import draw_cells

LIBRARIES = ("asap_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MODES = ("search", "train", "evaluate", "describe")


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


def run(
    config: ConfigDict,
    folder: str | Path | None,
    *,
    mode: str = "",
    dataset: data.Dataset | None = None,
    callbacks: loop.Callbacks = loop.Callbacks(),
    quiet: bool = False,
) -> Outcome:
    """Searches a cell, trains the network built from it on both halves, tests that once.

    Args:
      config: as `presets.get_config` makes it.
      folder: the workdir; made if need be. One that holds another config is refused, one that holds
        this run's beginnings is gone on with. None writes no files.
      mode: "search" ends with the genotype; "train" takes one (`config.genotype`, or the workdir's
        own); "" does both.
      dataset: in place of the one that `config.data` names.
      callbacks: functions that follow the run.
      quiet: print nothing.

    Raises:
      UserError: the config, the data or the workdir cannot be worked with.
      Interrupted: a signal came, and the run is saved.
    """
    started = time.monotonic()
    presets.check(config)
    if config.genotype and mode != "train":
        raise UserError(
            f"config.genotype={config.genotype} names cells to train: add --mode=train, or leave "
            "it out to search for cells"
        )
    given = find_genotype(config, folder) if mode == "train" else None
    start = _start(config, mode)
    dataset = _begin_with(start, dataset or load_data(config, start and start.preparation))
    _check_data(config, dataset, mode)
    if config.check_memory:
        _check_memory(config, dataset, mode, given)
    if folder is not None:
        _check_epochs(config, Path(folder))
        folder = workdir.claim(folder, json.loads(config.to_json()))
    with Interruption() as interruption:
        saving = folder and loop.Saving(folder / "checkpoints", **config.checkpoint)
        session = loop.Session(RunLog(folder, quiet), interruption, saving, callbacks)
        return _Run(config, folder, dataset, session, start, started).go(mode, given)


def _start(config, mode) -> trained.TrainedNetwork | None:
    """The network that `config.train.start_from` names."""
    if not config.train.start_from:
        return None
    if mode != "train":
        raise UserError("config.train.start_from needs --mode=train and the cells of that network")
    return trained.load(config.train.start_from)


def _begin_with(start, dataset) -> data.Dataset:
    """The data as the network to start from knows images."""
    if start is None:
        return dataset
    dataset = data.as_dataset(dataset, preparation=start.preparation)
    return dataclasses.replace(dataset, mean=start.mean, std=start.std)


def _check_data(config, dataset, mode) -> None:
    """Raises UserError for data that a stage of the run could not work with."""
    check_size(config, dataset, mode)
    if mode != "train":
        search_loop.check(config.search, dataset)
    if mode != "search":
        train_loop.check(config.train, dataset)
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
        self.class_weights = None
        if config.data.class_weights == "balanced":
            self.class_weights = data.balanced_weights(
                dataset.train_labels, len(dataset.class_names)
            )

    def go(self, mode, given) -> Outcome:
        shape = self.dataset.preparation.shape
        self.say(
            f"{self.config.data.source}: {len(self.dataset.train_labels)} training and "
            f"{len(self.dataset.test_labels)} test images of {shape[0]}x{shape[1]}, "
            f"{len(self.dataset.class_names)} classes; {jax.devices()[0].device_kind}"
        )
        for note in self.dataset.notes:
            self.say(f"note: {note}")
        searched = not self.config.genotype and self.record("search", self.config.searches - 1)
        genotype, search = (given, {}) if given and not searched else self.search()
        if self.folder is not None:
            genotype.save(self.folder / "genotype.json")
            draw_cells(genotype, [self.folder / "cells.svg", self.folder / "cells.png"])
        if mode == "search":
            self.say(_table(_search_rows(self.config, search)) + self.files())
            return Outcome(genotype, search, None, {})
        network, results = self.train(genotype, search)
        rows = [*_search_rows(self.config, search), *_train_rows(results)]
        self.say(_table(rows) + self.files())
        return Outcome(genotype, search, network, results)

    def files(self) -> str:
        if self.folder is None:
            return ""
        names = [p.name + "/" * p.is_dir() for p in sorted(self.folder.iterdir())]
        return f"\n\n  in {self.folder}:  {'  '.join(names)}"

    def search(self) -> tuple[Genotype, dict]:
        """(genotype, record) of the search, or of the best of several."""
        config, records = self.config, []
        for index in range(config.searches):
            record = self.record("search", index)
            if record is None:
                self.say("compiling the search step (later runs find it in the cache)")
                with self.timed():
                    found = search_loop.search(
                        config.search,
                        self.dataset,
                        config.seed + index,
                        self.session,
                        index=index,
                        identity=self.identity,
                        class_weights=self.class_weights,
                    )
                record = found._asdict() | {"seed": config.seed + index}
                record["genotype"] = json.loads(found.genotype.to_json())
                self.keep("search", index, record)
            records.append(record)
        best = self.select(records) if len(records) > 1 else 0
        genotype = Genotype.from_json(json.dumps(records[best]["genotype"]))
        seconds = sum(record["seconds"] for record in records)
        return genotype, records[best] | {"seconds": seconds, "searches": len(records)}

    def select(self, records) -> int:
        """The search whose cells do best, trained shortly on one half, on the other half."""
        config, dataset, scores = self.config, self.dataset, []
        first, second = data.halves(dataset.train_labels, config.seed)
        split = dataclasses.replace(
            dataset,
            train_images=dataset.train_images[first],
            train_labels=dataset.train_labels[first],
            test_images=dataset.train_images[second],
            test_labels=dataset.train_labels[second],
        )
        short = config.train.copy_and_resolve_references()
        presets.update(short, {"epochs": config.selection.epochs, "start_from": ""})
        train_loop.check(short, split)
        for index, searched in enumerate(records):
            record = self.record("select", index)
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
                        identity=self.identity | {"genotype": genotype.to_json()},
                        class_weights=self.class_weights,
                    )
                record = {"val_accuracy": outcome.test_accuracy, "seconds": outcome.seconds}
                self.keep("select", index, record)
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
                network, news = trained.from_outcome(outcome, self.dataset, config.train), True
                if self.folder is not None:
                    network.save(self.folder, name)
                record = network.results | {"seed": config.seed + index, "ended": outcome.ended}
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
        accuracies = [record["test_accuracy"] for record in records]
        train_seconds = sum(record["seconds"] for record in records)
        search_seconds = search.get("seconds", 0.0)
        results = {
            "test_accuracy": statistics.fmean(accuracies),
            "test_error": 1 - statistics.fmean(accuracies),
            "parameters": count_parameters(network.variables["params"]),
            "multiply_adds": multiply_adds(network.module, self.dataset.preparation.shape),
            "search_seconds": search_seconds,
            "train_seconds": train_seconds,
            "total_seconds": search_seconds + train_seconds + self.seconds_beside(),
            "candidates_left": search.get("candidates_left"),
            "epochs": {"search": search.get("epochs", 0), "train": records[0]["epochs"]},
            "gap": search.get("gap", {}),
            "seed": self.config.seed,
            "versions": versions(),
        }
        if len(records) > 1:
            results["test_accuracies"] = accuracies
            results["test_accuracy_deviation"] = statistics.stdev(accuracies)
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


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on; "unknown" for one that is not installed."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:  # asap_jax run from a checkout
            return "unknown"

    return {name: version(name) for name in LIBRARIES}


def data_options(config: ConfigDict) -> dict:
    """What `config.data` says of reading, whatever the source."""
    apart = ("source", "dir", "prepare", "class_weights")
    return {key: value for key, value in config.data.items() if key not in apart}


def load_data(config: ConfigDict, preparation=None) -> data.Dataset:
    """The data set that `config.data` names, prepared as a network asks if one is given."""
    options = config.data
    if options.source == "arrays":
        raise UserError(
            "this config was run on arrays from Python: name them there (data=...), or a source "
            "with --config.data.source"
        )
    return data.load(
        options.source,
        options.dir or None,
        prepare=options.prepare,
        preparation=preparation,
        **data_options(config),
    )


def check_size(config, dataset, mode="") -> None:
    """Raises UserError for images that the reductions cannot halve."""
    height, width, _ = dataset.preparation.shape
    for part in (mode,) if mode else ("search", "train"):
        factor = 2 ** len(reductions(config[part].cells))
        if height % factor or width % factor:
            good = max(factor, round(height / factor) * factor)
            raise UserError(
                f"the images are {height}x{width}, but the reductions of config.{part}.cells="
                f"{config[part].cells} need a multiple of {factor}: the nearest good size is "
                f"{good} (--config.data.image_size={good})"
            )


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


def find_genotype(config, folder) -> Genotype:
    """The cells that `config.genotype` names: published ones, a file, a workdir; or `folder`'s."""
    name = config.genotype
    if name in GENOTYPES:
        return GENOTYPES[name]
    if name.startswith("{"):
        return Genotype.from_json(name)
    if not name and (folder is None or not (Path(folder) / "genotype.json").is_file()):
        raise UserError(
            "there are no cells to train: name some with --config.genotype (a published name, a "
            "genotype.json, a search's workdir), or search for them first"
        )
    path = Path(name or folder)
    path = path / "genotype.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"config.genotype is {name!r}{presets.nearest(name, GENOTYPES)}: expected a published "
            f"name ({', '.join(GENOTYPES)}), a genotype.json, or a workdir that holds one"
        )
    try:
        return Genotype.load(path)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: {error}") from error


def evaluate(
    folder: str | Path, source: str = "", split: str = "", data_dir: str = "", quiet: bool = False
) -> dict:
    """Measures a trained network; adds a line to its folder's evaluations.jsonl.

    Args:
      folder: the workdir of a run, or where a network was saved.
      source: where images come from, see `data.load`; "" is what the network was trained on. They
        are brought to the network's size and colour. Their classes may be some of the network's.
      split: one of the source's splits, or "all". By default "test"; all of a source that has no
        splits. Of the training's own data: "test" or "train", as they were then.
      data_dir: folder of prepared tfds data sets.
      quiet: print nothing.

    Returns:
      {"source", "split", "images", "accuracy", "class_accuracy" {class name: accuracy or None}}.
    """
    network = trained.load(folder)
    if source:
        opened = data.open_source(source, data_dir or None)
        split = split or ("test" if "test" in opened.splits else "all")
        images, labels, notes = data.read_split(opened, split, network.preparation)
        class_names = opened.class_names
    else:
        config = presets.get_config()
        presets.update(config.data, workdir.read_config(folder)["data"], "config.data")
        presets.update(config.data, {"dir": data_dir} if data_dir else {})
        split = split or "test"
        if split not in ("test", "train"):
            raise UserError(f"--split={split}: of the training's own data there are test and train")
        if config.data.source == "arrays":
            raise UserError(
                f"the network in {folder} was trained on arrays: name a source to measure it on "
                "with --data, or call its accuracy(images, labels)"
            )
        dataset = load_data(config, network.preparation)
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        source, class_names, notes = config.data.source, dataset.class_names, dataset.notes
    strange = [name for name in class_names if name not in network.class_names]
    if strange:
        raise UserError(
            f"{source} has the classes {', '.join(strange[:10])}, which the network in {folder} "
            f"does not know; it knows {', '.join(network.class_names[:10])} (fine_tune trains it "
            "on others)"
        )
    labels = np.array([network.class_names.index(name) for name in class_names])[labels]
    right = network.predict_proba(images).argmax(-1) == labels
    result = {
        "source": source,
        "split": split,
        "images": len(labels),
        "accuracy": float(right.mean()),
        "class_accuracy": {
            each: float(right[labels == i].mean()) if (labels == i).any() else None
            for i, each in enumerate(network.class_names)
        },
    }
    with open(Path(folder) / "evaluations.jsonl", "a") as file:
        file.write(json.dumps({**result, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}) + "\n")
    if not quiet:
        rows = [("note", note) for note in notes]
        rows += [("accuracy", f"{100 * result['accuracy']:.2f} % of {len(labels)} images")]
        rows += [
            (f"  {each}", "-" if value is None else f"{100 * value:.2f} %")
            for each, value in result["class_accuracy"].items()
        ]
        print(_table(rows))
    return result


def describe(
    config: ConfigDict, folder: str | Path | None, dataset=None, quiet: bool = False
) -> dict:
    """Parameters, multiply-adds, memory and a picture of the network that a training would build.

    Args:
      config: its `genotype` names the cells, or the workdir holds them.
      folder: the workdir; gets cells.svg and cells.png. None draws nothing.
      dataset: in place of the one that `config.data` names.
      quiet: print nothing.

    Returns:
      {"genotype", "parameters", "auxiliary_parameters", "multiply_adds", "memory" (bytes a part),
      "memory_available" (bytes or None)}.
    """
    presets.check(config)
    genotype = find_genotype(config, folder)
    dataset = dataset or load_data(config)
    check_size(config, dataset, "train")
    network = train_loop.make_network(config.train, genotype, len(dataset.class_names))
    shape = dataset.preparation.shape
    params = train_loop.variable_shapes(network, shape)["params"]
    needed = train_loop.estimate(config.train, genotype, dataset)
    result = {
        "genotype": json.loads(genotype.to_json()),
        "parameters": count_parameters(params),
        "auxiliary_parameters": count_parameters(params.get("auxiliary_head", {})),
        "multiply_adds": multiply_adds(network, shape),
        "memory": needed._asdict(),
        "memory_available": memory.available(),
    }
    pictures = []
    if folder is not None and config.genotype:
        _refuse_other_cells(folder, genotype)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        pictures = [Path(folder) / "cells.svg", Path(folder) / "cells.png"]
        draw_cells(genotype, pictures)
    if not quiet:
        left = result["memory_available"]
        rows = [
            ("images", f"{shape[0]}x{shape[1]}x{shape[2]}, {len(dataset.class_names)} classes"),
            ("parameters", f"{result['parameters']:,}"),
            ("auxiliary head", f"{result['auxiliary_parameters']:,} more while training"),
            ("multiply-adds", f"{result['multiply_adds']:,}"),
            ("memory to train", f"{needed} at batch {config.train.batch_size}, estimated"),
            ("memory there is", "unknown" if left is None else memory.readable(left)),
            *(("picture", str(path)) for path in pictures),
        ]
        print(_table(rows))
    return result


def _refuse_other_cells(folder, genotype) -> None:
    """A run's picture shows the run's cells."""
    path = Path(folder) / "genotype.json"
    if path.exists() and Genotype.load(path) != genotype:
        raise UserError(
            f"{folder} is the workdir of a run with other cells: name another --workdir for the "
            "picture"
        )


def _search_rows(config, search) -> list[tuple[str, str]]:
    if not search:
        return []
    rows = [("candidates left", f"{search['candidates_left']} after {search['epochs']} epochs")]
    if "val_accuracy" in search:
        accuracy = 100 * search["val_accuracy"]
        rows.append(("chosen search", f"seed {search['seed']}, {accuracy:.2f} % on the other half"))
    if search["gap"]:
        gaps = [f"{rule} {100 * gap['gap']:+.2f} points" for rule, gap in search["gap"].items()]
        rows.append(("gap supernet -> derived", f"{', '.join(gaps)} (used: {config.search.edges})"))
    return [*rows, ("search seconds", f"{search['seconds']:.0f}")]


def _train_rows(results) -> list[tuple[str, str]]:
    accuracy = f"{100 * results['test_accuracy']:.2f} %"
    if "test_accuracies" in results:
        deviation = 100 * results["test_accuracy_deviation"]
        accuracy += f" +- {deviation:.2f} over {len(results['test_accuracies'])} seeds"
    return [
        ("training seconds", f"{results['train_seconds']:.0f}"),
        ("parameters", f"{results['parameters']:,}"),
        ("multiply-adds", f"{results['multiply_adds']:,}"),
        ("test accuracy", accuracy),
    ]


def _table(rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
