"""A whole run: data, search, training, test, and the files that say what happened."""

import json
import time
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from asap_jax import checkpoint, data, presets, search_loop, train_loop
from asap_jax.errors import UserError
from asap_jax.metrics import RunLog
from asap_jax.networks import count_parameters, multiply_adds, reductions
from asap_jax.report.cells import draw_cells

LIBRARIES = ("asap_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(config: ConfigDict, workdir: str | Path, quiet: bool = False) -> dict:
    """Searches a cell, trains the network built from it on both halves, tests that once.

    Args:
      config: as `presets.get_config` makes it.
      workdir: where the files go; made if need be. One that holds another config is refused.
      quiet: print nothing.

    Returns:
      The record that is written to results.json.

    Raises:
      UserError: the config, the data or the workdir cannot be worked with.
    """
    started = time.monotonic()
    presets.check(config)
    dataset = _load(config)
    search_loop.check(config.search, dataset)
    train_loop.check(config.train, dataset)
    versions = {name: metadata.version(name) for name in LIBRARIES}
    workdir = _claim(Path(workdir), config)
    log = RunLog(workdir, quiet)
    try:
        shape = dataset.train_images.shape[1:]
        log.say(
            f"{config.data.source}: {len(dataset.train_labels)} training and "
            f"{len(dataset.test_labels)} test images of {shape[0]}x{shape[1]}, "
            f"{len(dataset.class_names)} classes; {jax.devices()[0].device_kind}"
        )
        log.say("compiling the search step (later runs find it in the cache)")
        found = search_loop.search(config.search, dataset, config.seed, log)
        found.genotype.save(workdir / "genotype.json")
        pictures = [workdir / "cells.svg", workdir / "cells.png"]
        draw_cells(found.genotype, pictures)
        log.say("compiling the training step")
        trained = train_loop.train(config.train, found.genotype, dataset, config.seed, log)
    finally:
        log.close()
    checkpoint.save(
        workdir / "network",
        {"params": trained.state.params, "batch_stats": trained.state.batch_stats},
    )
    results = {
        "test_accuracy": trained.test_accuracy,
        "test_error": 1 - trained.test_accuracy,
        "parameters": count_parameters(trained.state.params),
        "multiply_adds": multiply_adds(trained.network, shape),
        "search_seconds": found.seconds,
        "train_seconds": trained.seconds,
        "total_seconds": time.monotonic() - started,
        "candidates_left": found.candidates_left,
        "epochs": {"search": found.epochs, "train": config.train.epochs},
        "gap": found.gaps,
        "seed": config.seed,
        "versions": versions,
    }
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if not quiet:
        print(_summary(config, results, workdir))
    return results


def _load(config) -> data.Dataset:
    options = config.data
    try:
        dataset = data.load(
            options.source,
            options.dir or None,
            options.train_examples or None,
            options.test_examples or None,
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"config.data: {error}") from error
    height, width = dataset.train_images.shape[1:3]
    for part in ("search", "train"):
        factor = 2 ** len(reductions(config[part].cells))
        if height % factor or width % factor:
            good = max(factor, round(height / factor) * factor)
            raise UserError(
                f"the images are {height}x{width}, but the reductions of config.{part}.cells="
                f"{config[part].cells} need a multiple of {factor}: the nearest good size is {good}"
            )
    return dataset


def _claim(workdir: Path, config) -> Path:
    """Makes the workdir this config's, or refuses one that is another's."""
    record = workdir / "config.json"
    text = json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n"
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: name a folder, new or of the same config")
    if record.exists() and record.read_text() != text:
        try:
            changed = _differences(json.loads(record.read_text()), json.loads(text))
        except json.JSONDecodeError:
            changed = "its config.json is no JSON"
        raise UserError(
            f"the workdir {workdir} holds a run of another config ({changed}): choose another "
            "--workdir, or remove that one"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        record.write_text(text)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error}") from error
    return workdir


def _differences(old, new, prefix="") -> str:
    """'key: old -> new' for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        return "; ".join(parts)
    return f"{prefix}: {old!r} there, {new!r} here"


def _summary(config, results, workdir) -> str:
    gap = results["gap"]
    rows = [
        ("test accuracy", f"{100 * results['test_accuracy']:.2f} %"),
        ("parameters", f"{results['parameters']:,}"),
        ("multiply-adds", f"{results['multiply_adds']:,}"),
        ("candidates left", f"{results['candidates_left']}"),
        (
            "gap supernet -> derived",
            ", ".join(f"{rule} {100 * gap[rule]['gap']:+.2f} points" for rule in gap)
            + f" (used: {config.search.edges})"
            if gap
            else "-",
        ),
        (
            "seconds",
            f"search {results['search_seconds']:.0f}, train {results['train_seconds']:.0f}, "
            f"in all {results['total_seconds']:.0f}",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    files = (
        "results.json  metrics.jsonl  config.json  genotype.json  cells.svg  cells.png  network/"
    )
    return f"\n{table}\n\n  in {workdir}:  {files}"
