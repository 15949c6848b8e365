"""Finds and checks what a config names: the data, their size, the cells to train."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from asap_jax import data
from asap_jax.data.images import Preparation, check_options
from asap_jax.data.opened import Choices
from asap_jax.data.sources import check_choices
from asap_jax.data.streams import too_large
from asap_jax.host.errors import UserError, nearest
from asap_jax.host.workdir import locate
from asap_jax.networks.genotypes import GENOTYPES, Genotype, is_text
from asap_jax.networks.models import side_multiple


def data_options(config: ConfigDict) -> dict[str, Any]:
    """The options in `config.data` for reading, common to all sources."""
    apart = ("source", "dir", "prepare", "class_weights", "streaming", "workers", *Choices._fields)
    return {key: value for key, value in config.data.items() if key not in apart}


def data_choices(config: ConfigDict) -> Choices:
    """The options in `config.data` for opening a source."""
    return Choices(**{key: config.data[key] for key in Choices._fields})


def of_arrays(given, config: ConfigDict) -> data.Dataset:
    """The data set of arrays, or of a `Dataset`, with the options of `config.data`."""
    choices = data_choices(config)
    check_choices("arrays", choices)
    return data.as_dataset(given, **data_options(config), sparse_labels=choices.sparse_labels)


def load_data(
    config: ConfigDict, preparation=None, *, searches: bool = False
) -> data.Dataset | data.Stream:
    """Loads the data set that `config.data` names, into memory or as a stream.

    Args:
      config: `data.streaming` selects which; "auto" streams what does not fit in memory.
      preparation: that of a network, if the images are for one.
      searches: whether this is for a search, which needs its images in memory.
    """
    options = config.data
    if options.source == "arrays":
        raise UserError(
            "this config was run on arrays from Python: name them there (data=...), or a source "
            "with --config.data.source"
        )
    if searches and options.streaming == "on":
        raise UserError(
            "config.data.streaming is on, but a search needs its images in memory: search on fewer "
            "or smaller ones (config.data.train_examples, config.data.image_size) with "
            "config.data.streaming=off, then train what it found on all of them, streamed, with "
            "--mode=train"
        )
    source = data.open_source(
        options.source, options.dir or None, options.prepare, data_choices(config)
    )
    reading = data_options(config)
    if not searches and (why := _streamed(options, source, preparation)):
        source = source._replace(notes=(*source.notes, why))
        return data.stream(source, preparation=preparation, workers=options.workers, **reading)
    return data.assemble(source, preparation=preparation, **reading)


def _streamed(options, source, preparation) -> str:
    """The reason for streaming the images, or "" to load them into memory."""
    if options.streaming == "off":
        return ""
    if options.streaming == "on" or options.resize == "random_crop":
        return "the images are streamed: read from disk again in each epoch"
    choice = ("train_examples", "test_examples", "test_share", "split_seed", "at_most")
    return data.outgrows_memory(
        source, options.image_size, preparation, **{key: options[key] for key in choice}
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What describing a network needs to know about the data; see `Dataset`.

    nbytes: of the images; 0 if they are streamed or their number is unknown.
    notes: for the user.
    """

    class_names: tuple[str, ...]
    preparation: Preparation
    nbytes: int
    notes: tuple[str, ...]


def load_sizes(config: ConfigDict) -> Sizes | data.Dataset | data.Stream:
    """The known sizes of a published set; for any other source, the data themselves."""
    options = config.data
    check_options(options.color, options.resize)
    described = data.describe_source(options.source, options.dir or None)
    if described is None or not (described.shape or options.image_size):
        return load_data(config)
    height, width, grey = described.shape or (options.image_size, options.image_size, False)
    if options.image_size:
        height = width = options.image_size
    preparation = Preparation(
        height, width, options.color or ("grey" if grey else "rgb"), options.resize
    )
    notes = [f"sizes are those that {options.source} is known to have: no image was looked at"]
    size, count = math.prod(preparation.shape), described.count
    if options.train_examples and options.test_examples:
        count = options.train_examples + options.test_examples
    streamed = options.streaming == "on" or options.resize == "random_crop"
    if count is None:
        notes.append("the images' number is unknown: the memory is without them")
    elif streamed or (options.streaming == "auto" and too_large(count, size)):
        count = 0
    return Sizes(described.class_names, preparation, (count or 0) * size, tuple(notes))


def check_size(config, dataset, mode="") -> None:
    """Raises UserError if the stem and the reductions cannot halve images of this size."""
    height, width, _ = dataset.preparation.shape
    for part in (mode,) if mode else ("search", "train"):
        stem = config.train.stem if part == "train" else "cifar"
        factor = side_multiple(config[part].cells, stem)
        if height % factor or width % factor:
            good = max(factor, round(height / factor) * factor)
            also = " and the imagenet stem" if stem == "imagenet" else ""
            raise UserError(
                f"the images are {height}x{width}, but the reductions of config.{part}.cells="
                f"{config[part].cells}{also} need a multiple of {factor}: the nearest good size "
                f"is {good} (--config.data.image_size={good})"
            )


def find_genotype(config, folder) -> Genotype:
    """The cells that `config.genotype` names or describes, or else those in `folder`.

    The name is a published one, a file or a workdir; `Genotype.parse` reads descriptions.
    """
    name = config.genotype
    if name in GENOTYPES:
        return GENOTYPES[name]
    if is_text(name):
        return _read(name, "config.genotype")
    if not name and (folder is None or not (Path(folder) / "genotype.json").is_file()):
        raise UserError(
            "there are no cells to train: name some with --config.genotype (a published name, a "
            "genotype.json, a search's workdir), or search for them first"
        )
    path = locate(name or folder)
    path = path / "genotype.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"config.genotype is {name!r}{nearest(name, GENOTYPES)}: expected a published "
            f"name ({', '.join(GENOTYPES)}), a genotype.json, a workdir that holds one, or the "
            "cells themselves, as DARTS or NAS-Bench-201 writes them"
        )
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return _read(text, path)


def _read(text: str, origin) -> Genotype:
    """Parses a genotype; raises UserError with the origin of the text if it is not one."""
    try:
        return Genotype.parse(text)
    except ValueError as error:
        raise UserError(
            f"{origin} holds no genotype that a network can be built from: {error}"
        ) from error
