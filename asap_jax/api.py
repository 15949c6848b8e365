"""The command's modes as functions, for notebooks and scripts.

import asap_jax as asap

found = asap.search("digits", workdir="runs/digits")
network = asap.train(found.genotype, "digits", workdir="runs/digits-trained")
network.predict(images)
asap.load("runs/digits-trained").predict_proba(images)
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from asap_jax.configs import comparisons, presets, recipes
from asap_jax.host import compile_cache, loop
from asap_jax.host.errors import UserError
from asap_jax.networks.genotypes import Genotype
from asap_jax.runs import comparing, inputs, runner, trained
from asap_jax.runs import look as looking


def search(
    config: str | ConfigDict = "paper",
    *,
    data=None,
    workdir: str | Path | None = None,
    seed: int | None = None,
    on_step=None,
    on_epoch=None,
    on_prune=None,
    quiet: bool = False,
    **changes,
) -> runner.Outcome:
    """Searches for a cell, like `--mode=search`.

    Args:
      config: a preset's name ("digits", "small,darts"), or a config from `presets.get_config`.
      data: used instead of the config's own: a source's name ("folder:PATH"), arrays (images,
        labels) or (images, labels, test_images, test_labels), or a `Dataset`.
      workdir: folder for the run's files; the same call with the same folder resumes. None writes
        nothing.
      seed: `config.seed`.
      on_step, on_epoch, on_prune: functions of a dict; one that returns True ends the search, which
        then derives from what it has learned. See `loop.Callbacks`.
      quiet: print nothing.
      changes: values of `config.search` by key, groups as dicts: epochs=10, omega={"clip": 1.0},
        strategy={"name": "darts"}.

    Returns:
      An `Outcome` with `genotype`, and `search`, the record of the search.

    Raises:
      UserError: the config, data or workdir is unusable.
      KeyboardInterrupt: a signal arrived; with a workdir, the run is saved.
    """
    config = _config(config, seed, {"search": changes})
    callbacks = loop.Callbacks(on_step, on_epoch, on_prune)
    return _run(config, data, workdir, "search", callbacks, quiet)


def train(
    genotype: Genotype | str,
    config: str | ConfigDict = "paper",
    *,
    data=None,
    workdir: str | Path | None = None,
    seed: int | None = None,
    on_step=None,
    on_epoch=None,
    quiet: bool = False,
    **changes,
) -> trained.TrainedNetwork:
    """Trains the network of a genotype and tests it, like `--mode=train`.

    Args:
      genotype: a `Genotype`, a published name ("ASAP"), a genotype.json, a search's workdir, or a
        string that `Genotype.parse` reads.
      changes: values of `config.train` by key: epochs=30, channels=16, seeds=3.
      config: as in `search`, or a recipe ("train:asap_small", `recipes.get_config`).
      data, workdir, seed, on_step, on_epoch, quiet: see `search`.

    Returns:
      The trained network (the first of several seeds); its `results` are those of results.json.
    """
    config = _config(config, seed, {"train": changes})
    if isinstance(genotype, Genotype):
        config.genotype = genotype.to_json()
    else:
        config.genotype = str(genotype)
    callbacks = loop.Callbacks(on_step, on_epoch)
    outcome = _run(config, data, workdir, "train", callbacks, quiet)
    assert outcome.network is not None  # only a run of mode "search" ends without one
    return dataclasses.replace(outcome.network, results=outcome.results)


def run(
    config: str | ConfigDict = "paper",
    *,
    data=None,
    workdir: str | Path | None = None,
    seed: int | None = None,
    on_step=None,
    on_epoch=None,
    on_prune=None,
    quiet: bool = False,
    **changes,
) -> runner.Outcome:
    """Searches, then trains the result, like the command without a mode.

    Args:
      changes: values of the config by key, groups as dicts: searches=3, train={"epochs": 10}.
      config, data, workdir, seed, on_step, on_epoch, on_prune, quiet: see `search`.

    Returns:
      An `Outcome` with `genotype`, `search`, `network` and `results`.
    """
    config = _config(config, seed, changes)
    callbacks = loop.Callbacks(on_step, on_epoch, on_prune)
    return _run(config, data, workdir, "", callbacks, quiet)


def look(
    config: str | ConfigDict = "paper",
    *,
    mode: str = "",
    data=None,
    workdir: str | Path | None = None,
    seed: int | None = None,
    timed: bool = True,
    quiet: bool = False,
    **changes,
) -> dict:
    """Tells what a run would do without starting it, like `--dry_run`.

    Args:
      mode: "search" or "train" for one of them; "" as in `run`.
      timed: whether to compile the steps, as the run does, and time a few of them.
      changes: values of the config by key, groups as dicts: genotype="ASAP", train={"epochs": 10}.
      config, data, workdir, seed, quiet: see `search`. The workdir is not claimed; it receives
        look/images.png, a few images of each class.

    Returns:
      Classes with their counts, splits, steps, memory and seconds, see `runs.look.look`.
    """
    config, dataset = _with_data(_config(config, seed, changes), data)
    return looking.look(config, workdir, mode=mode, dataset=dataset, timed=timed, quiet=quiet)


def compare(
    config: str | ConfigDict = "digits", *, workdir: str | Path, **changes
) -> comparing.Comparison:
    """Compares methods over several seeds, like `--mode=compare`; each run has its own process.

    Args:
      config: a size of `configs/compare.py` ("tiny", "digits", "nb201_small", ...), or a config
        from `comparisons.get_config`.
      workdir: folder of the comparison; the same call with the same folder resumes.
      changes: values of the config by key, groups as dicts: methods="asap,darts,random", seeds=5,
        run={"data": {"source": "folder:PATH"}, "train": {"epochs": 10}}.

    Returns:
      A `Comparison` with `records`, `table` and `folder`; shown with its figures in a notebook.

    Raises:
      UserError: the config is unusable, or a run failed.
      KeyboardInterrupt: a signal arrived; the runs in progress are saved.
    """
    if isinstance(config, str):
        config = comparisons.get_config(config)
    elif isinstance(config, ConfigDict) and "run" in config:
        config = config.copy_and_resolve_references().lock()
    else:
        raise UserError(
            "config has to be a size of configs/compare.py or a config of one, got "
            f"{type(config).__name__}"
        )
    presets.update(config, changes)
    return comparing.compare(config, workdir)


def _config(config, seed, changes) -> ConfigDict:
    if isinstance(config, str):
        packaged = recipes if config.startswith("train:") else presets
        config = packaged.get_config(config.removeprefix("train:"))
    elif isinstance(config, ConfigDict):
        config = config.copy_and_resolve_references().lock()
    else:
        raise UserError(
            f"config has to be a preset's name or a ConfigDict, got {type(config).__name__}; data "
            "is passed by name: data=(images, labels)"
        )
    if seed is not None:
        config.seed = seed
    presets.update(config, changes)
    return config


def _run(config, given, workdir, mode, callbacks, quiet) -> runner.Outcome:
    config, dataset = _with_data(config, given)
    return runner.run(config, workdir, mode=mode, dataset=dataset, callbacks=callbacks, quiet=quiet)


def _with_data(config, given) -> tuple:
    """(config, data set or None) with the data that a function was given."""
    compile_cache.enable()
    dataset = None
    if isinstance(given, str):
        config.data.source = given
    elif given is not None:
        dataset = inputs.of_arrays(given, config)
        config.data.source = "arrays"
    return config, dataset
