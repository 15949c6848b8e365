"""Evaluates trained networks on any images, and describes networks before training."""

import json
import time
import warnings
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from asap_jax import data
from asap_jax.configs import presets, rules
from asap_jax.data.opened import VALIDATION, Choices, Source
from asap_jax.data.tables import class_number
from asap_jax.host import memory, precisions, workdir
from asap_jax.host.errors import UserError
from asap_jax.host.run_log import say, table
from asap_jax.networks.drawings import draw_cells
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.models import count_parameters, multiply_adds
from asap_jax.runs import trained
from asap_jax.runs.inputs import check_size, find_genotype, load_data, load_sizes
from asap_jax.training import evaluation, train_loop


@precisions.in_32_bits
def evaluate(
    folder: str | Path, source: str = "", split: str = "", data_dir: str = "", quiet: bool = False
) -> dict:
    """Measures a trained network and appends the result to evaluations.jsonl in its folder.

    Warns if that file is not writable.

    Args:
      folder: the workdir of a run, or where a network was saved.
      source: source of the images, see `data.load`; "" for the data the network was trained on.
        Images are converted to the network's size and color. Their classes may be a subset of the
        network's. For a CSV file, the column options of a run trained on a CSV file apply.
      split: one of the source's splits, or "all". By default "test", else the validation split,
        else the whole source. For the training's own data: "test" or "train", split as in training.
      data_dir: folder of prepared tfds data sets.
      quiet: print nothing.

    Returns:
      {"source", "split", "images"} and the metrics of `evaluation.Answers.record`.
    """
    folder = workdir.locate(folder)
    network = trained.load(folder)
    if source:
        opened = _open(folder, source, data_dir or None, network.class_names)
        held_out = [name for name in ("test", *VALIDATION) if name in opened.splits]
        split = split or (held_out[0] if held_out else "all")
        batches, notes = data.split_batches(opened, split, network.preparation)
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
        batches = dataset.batches(split)
        source, class_names, notes = config.data.source, dataset.class_names, dataset.notes
    known = {name: number for number, name in enumerate(network.class_names)}
    numbers = [class_number(name, known) for name in class_names]
    strange = [name for name, n in zip(class_names, numbers, strict=True) if n is None]
    if strange:
        raise UserError(
            f"{source} has the classes {', '.join(strange[:10])}, which the network in {folder} "
            f"does not know; it knows {', '.join(network.class_names[:10])} (fine_tune trains it "
            "on others)"
        )
    numbers = np.array(numbers)
    answers = evaluation.no_answers(len(network.class_names))
    for images, labels in batches:
        scores = network.predict_proba(images)
        answers = evaluation.add_answers(answers, scores, numbers[labels])
    count = int(np.sum(answers.confusion))
    result = {
        "source": source,
        "split": split,
        "images": count,
        **answers.record(network.class_names),
    }
    if not quiet:
        rows = [("note", note) for note in notes]
        rows += [("measured on", f"{source}: {split}")]
        rows += [("accuracy", f"{100 * result['accuracy']:.2f} % of {count} images")]
        rows += evaluation.rows(result)
        rows += [
            (f"  {each}", "-" if value is None else f"{100 * value:.2f} %")
            for each, value in result["class_accuracy"].items()
        ]
        say(table(rows))
    try:
        _write_down(folder, result)
    except OSError as error:
        warnings.warn(
            f"the evaluation was not added to {folder / 'evaluations.jsonl'}: {error}", stacklevel=2
        )
    return result


def _open(folder, source, data_dir, known) -> Source:
    """Opens a source for measuring a network with the classes `known`.

    If a folder can be read in two ways, the one in which its folders are known classes is used:
    unlike in training, a single class is enough.
    """
    opened = data.open_source(source, data_dir, choices=_choices(folder, source))
    if source.startswith("folder:") and not set(opened.class_names) <= set(known):
        plain = data.open_source(source, choices=_choices(folder, source)._replace(train="."))
        if set(plain.class_names) <= set(known):
            return plain
    return opened


def _choices(folder, source) -> Choices:
    """Options of the run's own config: the pixel limit and, for a CSV file, the columns."""
    if not (Path(folder) / "config.json").exists():
        return Choices()
    options = workdir.read_config(folder)["data"]
    keys = ["max_pixels"]
    if source.startswith("csv:") and options["source"].startswith("csv:"):
        keys += ["images", "path_column", "label_column", "split_column"]
    return Choices(**{key: options[key] for key in keys if key in options})


def _write_down(folder: Path, result: dict) -> None:
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write(json.dumps({**result, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}) + "\n")


@precisions.in_32_bits
def describe(
    config: ConfigDict, folder: str | Path | None, dataset=None, quiet: bool = False
) -> dict:
    """Parameters, multiply-adds, memory and a picture of the network that a training would build.

    Args:
      config: `genotype` names the cells; otherwise the workdir holds them.
      folder: the workdir; receives cells.svg and cells.png. None draws nothing.
      dataset: used instead of the one that `config.data` names. The sizes of published sets are
        known, so those need not be present.
      quiet: print nothing.

    Returns:
      {"genotype", "parameters", "auxiliary_parameters", "multiply_adds", "memory" (bytes per part),
      "memory_available" (bytes or None)}.
    """
    rules.check(config)
    folder = folder if folder is None else workdir.locate(folder)
    genotype = find_genotype(config, folder)
    dataset = dataset or load_sizes(config)
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
            *(("note", note) for note in dataset.notes),
            ("images", f"{shape[0]}x{shape[1]}x{shape[2]}, {len(dataset.class_names)} classes"),
            ("parameters", f"{result['parameters']:,}"),
            ("auxiliary head", f"{result['auxiliary_parameters']:,} more while training"),
            ("multiply-adds", f"{result['multiply_adds']:,}"),
            ("memory to train", f"{needed} at batch {config.train.batch_size}, estimated"),
            ("memory there is", "unknown" if left is None else memory.readable(left)),
            *(("picture", str(path)) for path in pictures),
        ]
        say(table(rows))
    return result


def _refuse_other_cells(folder, genotype) -> None:
    """Raises UserError if the folder belongs to a run with other cells."""
    path = Path(folder) / "genotype.json"
    if path.exists() and Genotype.load(path) != genotype:
        raise UserError(
            f"{folder} is the workdir of a run with other cells: name another --workdir for the "
            "picture"
        )
