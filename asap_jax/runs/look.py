"""A look at a run before it starts: its data, its steps, its memory and its time."""

import collections
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from asap_jax import data
from asap_jax.data.augment import augment
from asap_jax.host import loop, memory, precisions, workdir
from asap_jax.host.interruption import Interruption
from asap_jax.host.run_log import RunLog, table
from asap_jax.host.timing import duration
from asap_jax.methods import Strategy, derive
from asap_jax.networks.genotypes import Genotype
from asap_jax.report import pictures
from asap_jax.report.classes import draw_classes
from asap_jax.runs.resolve import Job, check_search_memory, check_training_memory, resolve
from asap_jax.searching import search_loop, stages
from asap_jax.training import train_loop

CLASSES, IMAGES = 10, 3  # drawn, and images of each
LISTED = 20  # maximum number of classes whose counts are printed one by one
UNKNOWN = 60  # images read from a stream whose labels are not known
UNEVEN = 2  # times as many images of the largest class as of the smallest


@precisions.in_32_bits
def look(
    config: ConfigDict,
    folder: str | Path | None,
    *,
    mode: str = "",
    dataset: data.Dataset | None = None,
    timed: bool = True,
    quiet: bool = False,
) -> dict:
    """Resolves a run as `runner.run` does, and tells what it would do. Nothing is learned.

    The steps are compiled as the run compiles them, and end up in the same cache (a training's step
    serves the run only if its cells are given).

    Args:
      config, folder, mode, dataset, quiet: see `runner.run`. The workdir is not claimed: it only
        receives look/images.png.
      timed: whether to compile the steps and time a few of them.

    Returns:
      {"source", "classes" {name: {"train", "test"}} (counts; None if unknown), "image" (height,
      width, channels), "train_images", "test_images", "halves" (omega, alpha) or None, "groups" or
      None, "steps" {part: {"epochs", "steps_per_epoch" (None with a budget of time)}}, "memory"
      {part: bytes by purpose}, "memory_available" (bytes or None), "seconds" {part: estimate} ({}
      if not timed), "picture" (path or None)}.

    Raises:
      UserError: the run would be refused. If only for lack of memory, everything that needs no
        measurement is printed before.
    """
    refuses = config.check_memory
    config = config.copy_and_resolve_references()
    config.check_memory = False  # checked below, once its table is printed
    job = resolve(config, folder, mode, dataset)
    log = RunLog(None, quiet)
    for line in job.opening:
        log.say(line)
    cells = job.genotype or random_cells(job.config)
    needed = _memory(job, cells)
    left = memory.available()
    result = {
        "source": job.config.data.source,
        **_of_data(job),
        "steps": _steps(job),
        "memory": {part: each._asdict() for part, each in needed.items()},
        "memory_available": left,
        "seconds": {},
        "picture": _draw(job),
    }
    rows = [*_data_rows(result), *_step_rows(result), *_memory_rows(job, needed, left)]
    if result["picture"]:
        rows.append(("picture", result["picture"]))
    log.say(table(rows))
    if refuses:
        for part, check in (("search", check_search_memory), ("train", check_training_memory)):
            if part in needed and (part == "search" or job.genotype is not None):
                check(needed[part])
    if timed:
        found = "the search's step" if job.searches else "it"
        log.say(f"\ncompiling a step of each part to time it (the run finds {found} in the cache)")
        result["seconds"], rows = _time(job, cells, log)
        log.say(table(rows))
    return result


def random_cells(config: ConfigDict) -> Genotype:
    """Cells with a random candidate on random edges, in place of those that a search finds."""
    space, rng = stages.make_space(config.search), np.random.default_rng(config.seed)
    weights = {cell: rng.random(space.shape) for cell in space.cell_types}
    masks = {cell: np.ones(space.shape, bool) for cell in space.cell_types}
    return derive.of_weights(weights, masks, space, derive.EDGES[config.search.edges])


def _labels(job: Job, part: str) -> np.ndarray | None:
    """The labels of the training or test images; None if each image would have to be read."""
    if not isinstance(job.dataset, data.Stream):
        return getattr(job.dataset, f"{part}_labels")
    split = getattr(job.dataset, part)
    if job.config.data.source.startswith("tfds:") and "labels" not in vars(split):
        return None
    return split.labels


def _of_data(job: Job) -> dict:
    dataset = job.dataset
    counts = {}
    for part in ("train", "test"):
        labels = _labels(job, part)
        known = labels is not None
        counts[part] = np.bincount(labels, minlength=len(dataset.class_names)) if known else None
    classes = {
        name: {part: None if each is None else int(each[i]) for part, each in counts.items()}
        for i, name in enumerate(dataset.class_names)
    }
    streamed = isinstance(dataset, data.Stream)
    groups = dataset.train.groups if streamed else dataset.train_groups
    halves = None
    if job.searches:
        halves = [len(h) for h in stages.split(job.config.search, job.in_memory, job.config.seed)]
    return {
        "classes": classes,
        "image": list(dataset.preparation.shape),
        "train_images": dataset.train_count,
        "test_images": dataset.test_count,
        "streamed": streamed,
        "halves": halves,
        "groups": None if groups is None else len(np.unique(groups)),
    }


def _steps(job: Job) -> dict:
    config, steps = job.config, {}
    if job.searches:
        sequence = stages.build_all(config.search, job.in_memory)
        steps["search"] = {
            "epochs": sum(stage.epochs for stage in sequence),
            "steps_per_epoch": None if sequence[0].pace else sequence[0].steps,
            "times": config.searches,
        }
    if job.searches and config.searches > 1:
        steps["select"] = {
            "epochs": config.selection.epochs,
            "steps_per_epoch": job.dataset.train_count // 2 // config.train.batch_size,
            "times": config.searches,
        }
    if job.trains:
        steps["train"] = {
            "epochs": config.train.epochs,
            "steps_per_epoch": job.dataset.train_count // config.train.batch_size,
            "times": config.train.seeds,
        }
    return steps


def _memory(job: Job, cells) -> dict[str, memory.Estimate]:
    needed = {}
    if job.searches:
        needed["search"] = stages.estimate(job.config.search, job.in_memory, job.devices)
    if job.trains:
        needed["train"] = train_loop.estimate(job.config.train, cells, job.dataset, job.devices)
    return needed


def _data_rows(result) -> list[tuple[str, str]]:
    height, width, channels = result["image"]
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    rows = [("source", result["source"]), ("images", f"{height}x{width}, {colour}")]
    split = f"{result['train_images']:,} to train, {result['test_images']:,} to test"
    rows.append(("split", split + ", streamed from disk" * result["streamed"]))
    if result["halves"]:
        omega, alpha = result["halves"]
        rows.append(("halves of a search", f"{omega:,} for omega, {alpha:,} for the alphas"))
    if result["groups"] is not None:
        rows.append(("groups", f"{result['groups']:,}, each kept together"))
    return [*rows, *_class_rows(result["classes"])]


def _class_rows(classes) -> list[tuple[str, str]]:
    rows = [("classes", str(len(classes)))]
    if any(each["train"] is None for each in classes.values()):
        why = "images of each not counted, since all records would have to be read"
        return [(*rows[0][:1], f"{len(classes)}; {why}")]

    def row(name):
        each = classes[name]
        test = "" if each["test"] is None else f", {each['test']:,} to test"
        return f"  {name}", f"{each['train']:,} to train{test}"

    ordered = sorted(classes, key=lambda name: -classes[name]["train"])
    if len(classes) <= LISTED:
        rows += map(row, classes)
    else:
        rows += [*map(row, ordered[:3]), ("  ...", ""), *map(row, ordered[-3:])]
    most, fewest = (classes[name]["train"] for name in (ordered[0], ordered[-1]))
    share = 100 * most / sum(each["train"] for each in classes.values())
    times = most / max(fewest, 1)
    word = "uneven" if times >= UNEVEN else "even"
    advice = ": --config.data.class_weights=balanced weighs the loss" if times >= UNEVEN else ""
    balance = f"{word}, {times:.2g} times as many images of the largest as of the smallest"
    guess = f"to always name the largest is right for {share:.0f} %"
    return [*rows, ("balance", f"{balance}; {guess}{advice}")]


_PARTS = {"search": "search", "select": "trainings that compare searches", "train": "training"}


def _step_rows(result) -> list[tuple[str, str]]:
    rows = []
    for part, each in result["steps"].items():
        text = f"{each['epochs']} epochs, as long as the budget of time allows"
        if each["steps_per_epoch"] is not None:
            total = each["epochs"] * each["steps_per_epoch"]
            text = f"{each['epochs']} epochs of {each['steps_per_epoch']} steps, {total:,} in all"
        times = f", {each['times']} times" if each["times"] > 1 else ""
        rows.append((_PARTS[part], text + times))
    return rows


def _memory_rows(job, needed, left) -> list[tuple[str, str]]:
    rows = []
    for part, each in needed.items():
        size = job.config[part].batch_size
        cells = "" if part == "search" or job.genotype else ", for random cells"
        count = job.devices.count
        cells += f", on each of {count} devices" * (count > 1)
        rows.append((f"memory, {_PARTS[part]}", f"{each} at batch {size}, estimated{cells}"))
    kind = jax.devices()[0].device_kind
    there = "unknown" if left is None else memory.readable(left)
    return [*rows, ("memory there is", f"{there} ({kind})")]


def _time(job: Job, cells, log) -> tuple[dict, list[tuple[str, str]]]:
    """({part: seconds}, rows): measured steps, extrapolated to the whole run."""
    config, seconds, rows, compiling = job.config, {}, [], 0.0
    session = loop.Session(log, Interruption(), on_nan=config.on_nan, devices=job.devices)
    if job.searches:
        trials = search_loop.try_steps(
            config.search, job.in_memory, config.seed, session, job.class_weights, job.target
        )
        compiling += sum(trial.compiling for trial in trials)
        budget = 60 * config.search.budget_minutes
        each = budget or sum(trial.seconds for trial in trials)
        seconds["search"] = config.searches * each
        step = ", then ".join(map(_step_told, trials))
        prunes = stages.build(config.search, job.in_memory).strategy.prune
        bound = prunes is not Strategy._field_defaults["prune"]
        bound = bound and not budget
        why = "; less, since candidates leave on the way" if bound else ""
        why += ", the budget" if budget else ""
        text = f"{'at most' if bound else 'about'} {duration(seconds['search'])}"
        rows += [("a search step", step), ("time, search", text + why)]
    if job.trains or "select" in _steps(job):
        trial = train_loop.try_steps(
            config.train, cells, job.dataset, config.seed, session, job.class_weights
        )
        compiling += trial.compiling
        rows.append(("a training step", _readable(trial.step)))
        for part in ("select", "train"):
            if part not in (steps := _steps(job)):
                continue
            count = steps[part]["epochs"] * steps[part]["steps_per_epoch"] * steps[part]["times"]
            seconds[part] = trial.step * count
            text = f"about {duration(seconds[part])}"
            text += "" if job.genotype else ", for random cells: those found may take more or less"
            if isinstance(job.dataset, data.Stream):
                text += "; without reading the images, which takes longer if the disk is slow"
            rows.append((f"time, {_PARTS[part]}", text))
    total = duration(sum(seconds.values()))
    left_out = ["compiling", "deriving the cells"] if job.searches else ["compiling"]
    left_out += ["the test"] if job.trains else []
    if job.searches and config.search.watch.eigenvalue:
        left_out.append("the eigenvalue")
    rows.append(("time, all", f"{total}, measured now; without {', '.join(left_out)}"))
    rows.append(("compiling took", f"{duration(compiling)} (short if the cache had the programs)"))
    return seconds, rows


def _step_told(trial) -> str:
    times = {learns: _readable(seconds) for learns, (seconds, _) in trial.steps.items()}
    if len(times) == 1:
        return next(iter(times.values()))
    return f"{times[True]} when the alphas learn, {times[False]} when they rest"


def _readable(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _draw(job: Job) -> str | None:
    """Draws a few images of some classes into the workdir; returns the picture's path."""
    if job.folder is None:
        return None
    dataset, config = job.dataset, job.config
    rows = _rows_to_draw(_labels(job, "train"), dataset.train_count, config.seed)
    images, labels = dataset.train_sample(rows)
    kept = _few_of_each(labels)
    images, labels = images[kept], labels[kept]
    blocks = {"as they are": images}
    titles = {"search": "in the search", "train": "in the training"}
    makers = {"search": stages.make_augmentation, "train": train_loop.make_augmentation}
    for number, (part, wanted) in enumerate((("search", job.searches), ("train", job.trains))):
        if wanted:
            augmentation = makers[part](config[part], dataset)
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            seen = augment(jax.numpy.asarray(images), augmentation, key)
            seen = pictures.uint8_of(seen, augmentation.mean, augmentation.std)
            blocks[titles[part]] = seen
    path = Path(job.folder) / "look" / "images.png"
    with workdir.room_for(job.folder):
        draw_classes(path, dataset.class_names, labels, blocks)
    return str(path)


def _rows_to_draw(labels, count: int, seed: int) -> np.ndarray:
    """Indices of images of the first classes; of random ones if the labels are not known."""
    order = np.random.default_rng(seed).permutation(count)
    if labels is None:
        return np.sort(order[:UNKNOWN])
    return order[_few_of_each(labels[order])]


def _few_of_each(labels) -> np.ndarray:
    """Positions of at most `IMAGES` images of each of the `CLASSES` lowest labels."""
    seen, kept = collections.Counter(), []
    lowest = set(np.unique(labels)[:CLASSES].tolist())
    for position, label in enumerate(np.asarray(labels).tolist()):
        seen[label] += 1
        if label in lowest and seen[label] <= IMAGES:
            kept.append(position)
    return np.array(kept, int)
