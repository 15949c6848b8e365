"""Presets: functions that return a config, so that an installed package has them.

`configs/search.py` is a thin wrapper around `get_config`. A preset is named by a size, a strategy,
or both, separated by a comma: "digits", "darts", "digits,random". At the paper's size, a strategy
searches with its authors' settings (`AUTHORS`); adding the word "fair", as in "gdas,fair", keeps
the one budget that all strategies share at every size.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from asap_jax.data.autoaugment import POLICIES
from asap_jax.host import precisions
from asap_jax.host.errors import UserError
from asap_jax.methods import STRATEGIES
from asap_jax.methods.derive import EDGES
from asap_jax.networks.models import OUTPUTS, SQUEEZES, STEMS
from asap_jax.networks.plans import PLANS
from asap_jax.networks.spaces import SPACES


def paper() -> ConfigDict:
    """The paper's search on CIFAR-10 (section 4.1), followed by a training of stated length.

    Where the paper contradicts itself or is silent, docs/paper.md lists the choice made here.
    """
    config = ConfigDict()
    config.seed = 0
    config.mode = ""  # "search" or "train"; "" runs one after the other. Overridden by --mode
    config.genotype = ""  # cells to train: a published name, a file, a search's workdir, or text
    config.searches = 1  # with consecutive seeds; the best derived network is trained fully
    config.selection = ConfigDict({"epochs": 20})  # short trainings on one half to rank searches
    config.check_memory = True  # refuse a run whose estimate exceeds the device's memory
    config.tensorboard = False  # write event files for TensorBoard too, in workdir/tensorboard
    config.data = ConfigDict(
        {
            "source": "tfds:cifar10",  # docs/data.md lists all
            "dir": "",  # folder of prepared tfds data sets; "" for tfds' default
            "prepare": False,  # let tfds download and prepare missing data sets
            "train_examples": 0,  # 0 for all
            "test_examples": 0,
            "at_most": False,  # accept fewer than train_ and test_examples, with smaller batches
            "image_size": 0,  # side to resize to; 0 keeps the images' own, or 64 where they differ
            "color": "",  # "rgb", "grey"; "" keeps the images' own
            "resize": "stretch",  # each side independently; or "crop", "random_crop": docs/data.md
            "bits": 0,  # bit depth of images above 8 bits; 0 infers it from their largest value
            "streaming": "auto",  # "on" reads images during training, "off" before it
            "workers": -1,  # processes that read streamed images; -1 for one per core, 0 for none
            "test_share": 0.2,  # held out if the source has no test images
            "split_seed": 0,  # of that split
            "skip_unreadable": False,  # skip such images and count them
            "train": "",  # folder of the training classes, if the layout is ambiguous
            "test": "",  # same for testing; both relative to the source's folder, or absolute
            "images": "",  # folder that paths in a CSV file are relative to; "" for the file's
            "path_column": "",  # of a CSV file, by name or number from 1; "" goes by the names
            "label_column": "",
            "split_column": "",
            "group": "",  # pattern on paths, or CSV column: keeps images of one object together
            "max_pixels": 0,  # limit for an image file; 0 for Pillow's, 179 million
            "sparse_labels": False,  # map ids with gaps, in arrays and npz files, to classes
            "class_weights": "none",  # "balanced" reweights the losses for uneven classes
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every_seconds": 300.0,  # 0 to disable
            "every_steps": 0,  # 0 to disable
            "keep": 2,
        }
    )
    config.search = ConfigDict(
        {
            "strategy": _asap(),
            "space": "asap",
            "candidates": (),  # () for the space's own; else names of operations
            "edges": "top2",  # inputs that a node keeps in the genotype: "top2" or "all"
            "channels": 16,
            "cells": 8,
            "epochs": 50,  # at most: the search stops once every edge holds one candidate
            "batch_size": 96,
            "eval_batch_size": 256,
            "plan": "auto",  # how the supernet is computed: "loop" or "unrolled"; see plans.py
            "precision": "auto",  # or "float32", "tf32", "bfloat16"; see precisions.py
            "omega": {
                "learning_rate": 0.025,  # cosine, updated once per epoch
                "final_learning_rate": 0.001,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 3e-4,
                "clip": 5.0,
            },
            "alpha": {"learning_rate": 1e-3, "b1": 0.5, "b2": 0.999, "weight_decay": 1e-3},
            "augmentation": {"pad": 4, "flip": True},
            "drop_path": 0.0,  # probability that an edge of the supernet drops a sample
            "cost_weight": 0.0,  # weight of the cells' expected cost in the alphas' loss: costs.py
            "watch": {
                "images": 1024,  # of the alpha half, for the gap after each epoch; 0 to disable
                "eigenvalue": False,  # the dominant one of the alphas' Hessian; expensive
                "eigenvalue_every": 2,  # epochs from one measurement to the next; RobustDARTS: 2
                "eigenvalue_from": 10,  # earliest epoch to return to, after the first measurement
            },
            "early_stop": False,  # stop where RobustDARTS does, with the cells it returns
            "benchmark": "",  # CSV file of NAS-Bench-201 accuracies, to log the derived cell's
        }
    )
    config.train = ConfigDict(
        {
            "channels": 36,
            "cells": 20,
            "stem": "cifar",  # "imagenet" divides the image sides by 8
            "output": "concat",  # concatenates a cell's nodes; "conv" adds a 1 x 1 convolution
            "squeeze": "",  # squeeze and excitation: after the "early" cells, or "every" one
            "epochs": 100,  # the paper trains for 1,500, DARTS for 600
            "batch_size": 96,
            "eval_batch_size": 256,
            "precision": "auto",  # as in the search
            "learning_rate": 0.025,
            "final_learning_rate": 0.0,
            "schedule": "cosine",  # "cosine", "power_cosine", "exponential"; updated every epoch
            "cycles": 5,  # of "power_cosine"
            "amplitude": 0.5,  # of "power_cosine": a cycle's learning rate, in the last one's
            "power": 2.0,  # of "power_cosine"; 1 for the plain cosine
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 3e-4,
            "clip": 5.0,
            "auxiliary_weight": 0.4,  # 0 for no auxiliary head
            "label_smoothing": 0.0,
            "drop_path": 0.2,  # reached linearly over the epochs; 0 to disable
            "average": 0.0,  # decay of the moving average of the weights that is tested; 0 for none
            "accumulate": 1,  # pieces that a batch is computed in, one by one, to save memory
            "remat": False,  # compute the cells twice to save memory (not on CPU)
            "validation_share": 0.0,  # of the training images, held out in place of the test images
            "seeds": 1,  # trainings, with seeds from `seed` on; results.json has mean and deviation
            "start_from": "",  # workdir of a trained network of these cells to start from
            "augmentation": {
                "pad": 4,
                "flip": True,
                "cutout": 16,
                "policy": "",  # AutoAugment's: "cifar10", "svhn", "imagenet"; "" for none
                "jitter": (),  # brightness, contrast, saturation, hue; DARTS': (.4, .4, .4, .2)
            },
        }
    )
    return config


def digits() -> ConfigDict:
    """scikit-learn's 8 x 8 digits: end-to-end in a few minutes on two CPU cores."""
    config = paper()
    config.data.source = "digits"
    config.search.update(
        {
            "channels": 8,
            "cells": 3,
            "epochs": 20,
            "batch_size": 64,
            "omega": {"learning_rate": 0.05},
            "alpha": {"learning_rate": 0.06},
            "augmentation": {"pad": 1, "flip": False},
        }
    )
    config.train.update(
        {
            "channels": 16,
            "cells": 3,
            "epochs": 30,
            "batch_size": 64,
            "learning_rate": 0.05,
            "auxiliary_weight": 0.0,
            "drop_path": 0.0,
            "augmentation": {"pad": 1, "flip": False, "cutout": 0},
        }
    )
    return config


def tiny() -> ConfigDict:
    """A quarter of the digits, a few epochs: shows that a method runs, not how well.

    With other data it uses the same number of images, or all if there are fewer.
    """
    config = digits()
    config.data.update({"train_examples": 360, "test_examples": 180, "at_most": True})
    config.search.update({"epochs": 6, "batch_size": 30, "alpha": {"learning_rate": 0.15}})
    config.train.update({"channels": 8, "epochs": 6, "batch_size": 30})
    return config


def small() -> ConfigDict:
    """A small supernet for a few thousand images: end-to-end in minutes on two CPU cores."""
    config = paper()
    config.search.update(
        {
            "channels": 8,
            "cells": 4,
            "epochs": 9,
            "batch_size": 32,
            "alpha": {"learning_rate": 0.05},
        }
    )
    config.train.update(
        {"channels": 8, "cells": 4, "epochs": 14, "batch_size": 32, "drop_path": 0.0}
    )
    config.train.augmentation.cutout = 8
    return config


def cifar10_small() -> ConfigDict:
    """`small` on a subset of CIFAR-10."""
    config = small()
    config.data.update({"train_examples": 2000, "test_examples": 1000})
    return config


def nb201() -> ConfigDict:
    """NAS-Bench-201's space and network on CIFAR-10, trained with its recipe of 200 epochs.

    From Dong and Yang, 2020, arXiv:2001.00326; searched with ASAP's settings.
    """
    config = paper()
    config.search.update({"space": "nasbench201", "edges": "all", "cells": 15})
    config.train.update(
        {
            "channels": 16,
            "cells": 15,
            "epochs": 200,
            "batch_size": 256,
            "learning_rate": 0.1,
            "nesterov": True,
            "weight_decay": 5e-4,
            "clip": 1e9,  # no clipping
            "auxiliary_weight": 0.0,
            "drop_path": 0.0,
        }
    )
    config.train.augmentation.cutout = 0
    return config


def nb201_small() -> ConfigDict:
    """`nb201` on a subset of CIFAR-10: one cell per stage, half the width in the search."""
    config, size = nb201(), cifar10_small()
    config.data.update(size.data)
    config.search.update({"channels": 8, "cells": 3, "epochs": 9, "batch_size": 32})
    config.search.alpha.learning_rate = size.search.alpha.learning_rate
    config.train.update({"channels": 16, "cells": 3, "epochs": 14, "batch_size": 32})
    config.train.learning_rate = 0.05
    return config


def _asap() -> dict:
    """ASAP's options."""
    return {
        "name": "asap",
        "initial_temperature": 1.3,  # T0
        "decay": placeholder(float),  # factor of T per epoch; unset: 0.95 ** (50 / epochs)
        "final_temperature": placeholder(float),  # instead of decay: T in the last epoch
        "grace_temperature": 1.0,  # tau: alphas learn and candidates are pruned while T < tau
        "threshold": 0.4,  # theta, in units of 1 / N
    }


def _with_asap(config: ConfigDict) -> None:
    """ASAP, the default strategy of every size."""


def _with_asap_pac(config: ConfigDict) -> None:
    """ASAP with Theorem 2's schedule."""
    config.search.strategy = ConfigDict(
        {"name": "asap_pac", "delta": 0.1, "gradient_bound": 0.01, "grace": 0.1}
    )


def _with_darts(config: ConfigDict) -> None:
    """DARTS, in its own space of eight candidates; order "second" or "exact" looks a step ahead."""
    config.search.strategy = ConfigDict({"name": "darts", "order": "first"})
    _as_darts(config)


def _with_snas(config: ConfigDict) -> None:
    """SNAS, in DARTS' space."""
    config.search.strategy = ConfigDict(
        {"name": "snas", "initial_temperature": 1.0, "final_temperature": 0.03}
    )
    _as_darts(config)


def _with_gdas(config: ConfigDict) -> None:
    """GDAS, in DARTS' space."""
    config.search.strategy = ConfigDict(
        {
            "name": "gdas",
            "initial_temperature": 10.0,
            "final_temperature": 0.1,
            "pairs": True,  # a node's strongest (operation, source) pairs, not its strongest edges
        }
    )
    _as_darts(config)


def _as_darts(config: ConfigDict) -> None:
    """DARTS' space, and 0.3 times ASAP's learning rate of alpha."""
    _in_darts_space(config, 0.3)


def _in_darts_space(config: ConfigDict, alpha_rate: float) -> None:
    """DARTS' candidates instead of ASAP's, and `alpha_rate` times ASAP's learning rate of alpha."""
    if config.search.space == "asap":
        config.search.space = "darts"
    config.search.alpha.learning_rate *= alpha_rate


def _with_pc_darts(config: ConfigDict) -> None:
    """PC-DARTS, in DARTS' space."""
    config.search.strategy = ConfigDict(
        {
            "name": "pc_darts",
            "partial_channels": 4,  # K: candidates see 1 / K of the channels
            "grace": 0.3,  # share of the epochs in which only omega learns
        }
    )
    _in_darts_space(config, 0.6)


def _with_p_darts(config: ConfigDict) -> None:
    """P-DARTS, in DARTS' space: three stages that share the epochs."""
    search = config.search
    full, benchmark = search.cells == paper().search.cells, search.space == "nasbench201"
    extra = (0, 6, 12) if full else (0, 3, 6) if benchmark else (0, 1, 2)
    search.strategy = ConfigDict(
        {
            "name": "p_darts",
            "extra_cells": extra,  # per stage, in addition to search.cells
            "keep": (4, 2) if benchmark else (5, 3),  # candidates per edge after each stage
            "skip_dropout": (0.0, 0.4, 0.7),  # per stage
            "grace": 0.4,  # share of a stage's epochs in which only omega learns
            "max_skips": 2,  # in the derived normal cell
        }
    )
    _in_darts_space(config, 0.6)
    search.epochs = 3 * -(-search.epochs // 3)
    search.cells = 5 if full else search.cells


def _with_edas(config: ConfigDict) -> None:
    """EDAS. Keeps all edges, as in its supernet, unless `edges` is overridden."""
    config.search.strategy = ConfigDict({"name": "edas"})
    config.search.edges = "all"


def _with_gradual(
    name: str, power: float, start: float, start_epoch: int | None = None, **options
) -> Callable:
    """Gradual pruning. `start_epoch` is the paper's t0; other lengths use `start`, a share."""

    def change(config: ConfigDict) -> None:
        config.search.strategy = ConfigDict(
            {
                "name": name,
                "power": power,  # p of eq. 13: 1 or 3
                "start": start,  # t0, as a share of the epochs
                "sparsity": placeholder(float),  # s_f; unset: 1 - 1 / N
                **options,
            }
        )
        if start_epoch is not None:
            config.search.strategy.start_epoch = placeholder(int)  # t0 in epochs; unset: `start`
            if config.search.epochs == paper().search.epochs:
                config.search.strategy.start_epoch = start_epoch

    return change


def _with_random(config: ConfigDict) -> None:
    """Random search with weight sharing."""
    inputs = EDGES[config.search.edges] or placeholder(int)  # per node of a sampled cell
    full = config.search.cells == paper().search.cells
    config.search.strategy = ConfigDict(
        {
            "name": "random",
            "inputs_per_node": inputs,
            "samples": 1000 if full else 100,  # per round, ranked on `images` of the alpha half
            "images": 640,
            "best": 10,  # of each round, ranked on the whole half
            "rounds": 3 if full else 1,
        }
    )


# The authors' settings on CIFAR-10 where they differ from ASAP's search. Those of EDAS and NAP are
# not public; the two baselines of ASAP use ASAP's. docs/methods.md has the table.
AUTHORS: dict[str, dict] = {
    "darts": {"batch_size": 64},
    "snas": {"batch_size": 64, "epochs": 150, "drop_path": 0.3, "cost_weight": 0.01},
    "gdas": {
        "batch_size": 256,
        "epochs": 250,
        "omega": {"nesterov": True, "weight_decay": 5e-4},
    },
    "pc_darts": {
        "batch_size": 256,
        "omega": {"learning_rate": 0.1, "final_learning_rate": 0.0},
    },
    "p_darts": {"epochs": 75, "omega": {"final_learning_rate": 0.0}},
    "random": {"batch_size": 64, "epochs": 100},
}
FAIR = "fair"  # gives all strategies one budget

MODES = ("", "search", "train")
SCHEDULES = ("cosine", "power_cosine", "exponential")
CLASS_WEIGHTS = ("none", "balanced")
STREAMING = ("auto", "on", "off")

SIZES: dict[str, Callable[[], ConfigDict]] = {
    "paper": paper,
    "digits": digits,
    "tiny": tiny,
    "small": small,
    "cifar10_small": cifar10_small,
    "nb201": nb201,
    "nb201_small": nb201_small,
}
METHODS: dict[str, Callable[[ConfigDict], None]] = {
    "asap": _with_asap,
    "asap_pac": _with_asap_pac,
    "darts": _with_darts,
    "snas": _with_snas,
    "gdas": _with_gdas,
    "edas": _with_edas,
    "magnitude": _with_gradual("magnitude", 1.0, 0.4, 20),
    "accum_grad": _with_gradual("accum_grad", 1.0, 0.4, 20),
    "nap": _with_gradual("nap", 3.0, 0.1, relaxation="identity"),
    "pc_darts": _with_pc_darts,
    "p_darts": _with_p_darts,
    "random": _with_random,
}


def get_config(name: str = "") -> ConfigDict:
    """The config of a preset; raises UserError for an unknown name.

    Args:
      name: a size, a strategy or "size,strategy", optionally with "fair"; "" is the paper's search.
    """
    parts = [part for part in (name or "paper").split(",") if part]
    fair = FAIR in parts
    parts = [part for part in parts if part != FAIR]
    sizes = [part for part in parts if part in SIZES]
    methods = [part for part in parts if part in METHODS]
    for part in parts:
        if part not in SIZES and part not in METHODS:
            raise UserError(
                f"unknown preset {part!r}{nearest(part, [*SIZES, *METHODS, FAIR])}: sizes are "
                f"{', '.join(SIZES)}; strategies are {', '.join(METHODS)}; {FAIR!r} gives them all "
                "one budget"
            )
    if len(sizes) > 1 or len(methods) > 1:
        raise UserError(f"preset {name!r} names more than one size or more than one strategy")
    size = sizes[0] if sizes else "paper"
    config = SIZES[size]()
    if methods:
        METHODS[methods[0]](config)
        if size == "paper" and not fair:
            config.search.update(AUTHORS.get(methods[0], {}))
    config.lock()
    return config


def update(config: ConfigDict, changes: Mapping, name: str = "config") -> None:
    """Sets values by key; a dict updates the group of that name. UserError for an unknown key.

    Args:
      config: a locked config or a part of one; changed in place.
      changes: {key: value}.
      name: how error messages refer to `config`.
    """
    for key, value in changes.items():
        if key not in config:
            raise UserError(f"unknown config key {name}.{key}{nearest(key, config.keys())}")
        if isinstance(value, Mapping) and isinstance(config[key], ConfigDict):
            if "name" in value and value["name"] != config[key].get("name"):
                with config.unlocked():  # another strategy has its own options
                    config[key] = ConfigDict(dict(value))
            else:
                update(config[key], value, f"{name}.{key}")
            continue
        try:
            config[key] = value
        except TypeError as error:
            raise UserError(f"{name}.{key} cannot be {value!r}: {error}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or '' if no known word is close."""
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that no run can use, whatever the data."""

    def require(holds, key, value, expected):
        if not holds:
            raise UserError(f"config.{key} is {value!r}, but has to be {expected}")

    search, train = config.search, config.train
    require(config.seed >= 0, "seed", config.seed, "0 or more")
    require(config.mode in MODES, "mode", config.mode, f"one of {', '.join(map(repr, MODES))}")
    for key, value in (
        ("searches", config.searches),
        ("selection.epochs", config.selection.epochs),
        ("train.seeds", train.seeds),
        ("train.accumulate", train.accumulate),
        ("checkpoint.keep", config.checkpoint.keep),
    ):
        require(value >= 1, key, value, "at least 1")
    for key in ("every_seconds", "every_steps"):
        value = config.checkpoint[key]
        require(value >= 0, f"checkpoint.{key}", value, "0 or more")
    for key in ("train_examples", "test_examples", "image_size", "split_seed", "max_pixels"):
        require(config.data[key] >= 0, f"data.{key}", config.data[key], "0 or more")
    share, weights = config.data.test_share, config.data.class_weights
    require(0 < share < 1, "data.test_share", share, "above 0 and below 1")
    require(weights in CLASS_WEIGHTS, "data.class_weights", weights, " or ".join(CLASS_WEIGHTS))
    streaming, workers = config.data.streaming, config.data.workers
    require(streaming in STREAMING, "data.streaming", streaming, " or ".join(STREAMING))
    require(workers >= -1, "data.workers", workers, "-1, 0 or more")
    for key, value, known in (
        ("search.space", search.space, SPACES),
        ("search.edges", search.edges, EDGES),
        ("search.strategy.name", search.strategy.name, STRATEGIES),
        ("search.plan", search.plan, ("auto", *PLANS)),
    ):
        expected = f"one of {', '.join(known)}{nearest(value, known)}"
        require(value in known, key, value, expected)
    for part, options in (("search", search), ("train", train)):
        # With fewer than three cells there is no normal cell besides the two reductions.
        require(options.cells >= 3, f"{part}.cells", options.cells, "at least 3")
        for key in ("channels", "epochs", "batch_size", "eval_batch_size"):
            require(options[key] >= 1, f"{part}.{key}", options[key], "at least 1")
        known, precision = ", ".join(precisions.PRECISIONS), options.precision
        require(
            precision in precisions.PRECISIONS, f"{part}.precision", precision, f"one of {known}"
        )
        pad = options.augmentation.pad
        require(pad >= 0, f"{part}.augmentation.pad", pad, "0 or more pixels")
    for key, group in (("search.omega", search.omega), ("train", train)):
        require(group.learning_rate > 0, f"{key}.learning_rate", group.learning_rate, "above 0")
        final = group.final_learning_rate
        require(final >= 0, f"{key}.final_learning_rate", final, "0 or more")
        require(0 <= group.momentum < 1, f"{key}.momentum", group.momentum, "in [0, 1)")
        require(group.weight_decay >= 0, f"{key}.weight_decay", group.weight_decay, "0 or more")
        require(group.clip > 0, f"{key}.clip", group.clip, "above 0")
    alpha = search.alpha
    require(alpha.learning_rate > 0, "search.alpha.learning_rate", alpha.learning_rate, "above 0")
    for key in ("b1", "b2"):
        require(0 <= alpha[key] < 1, f"search.alpha.{key}", alpha[key], "in [0, 1)")
    require(alpha.weight_decay >= 0, "search.alpha.weight_decay", alpha.weight_decay, "0 or more")
    images = search.watch.images
    require(images >= 0, "search.watch.images", images, "0 or more")
    every, start = search.watch.eigenvalue_every, search.watch.eigenvalue_from
    require(every >= 1, "search.watch.eigenvalue_every", every, "at least 1 epoch")
    require(start >= 0, "search.watch.eigenvalue_from", start, "0 or more epochs")
    require(
        search.watch.eigenvalue or not search.early_stop,
        "search.early_stop",
        search.early_stop,
        "False unless config.search.watch.eigenvalue=True, which tells when to stop",
    )
    require(0 <= search.drop_path < 1, "search.drop_path", search.drop_path, "in [0, 1)")
    require(search.cost_weight >= 0, "search.cost_weight", search.cost_weight, "0 or more")
    for key, known in (
        ("schedule", SCHEDULES),
        ("stem", STEMS),
        ("output", OUTPUTS),
        ("squeeze", SQUEEZES),
    ):
        expected = f"one of {', '.join(map(repr, known))}{nearest(train[key], known)}"
        require(train[key] in known, f"train.{key}", train[key], expected)
    schedule, final = train.schedule, train.final_learning_rate
    require(
        final > 0 or schedule != "exponential",
        "train.final_learning_rate",
        final,
        "above 0: the exponential schedule falls to it by a constant factor an epoch",
    )
    require(train.cycles >= 1, "train.cycles", train.cycles, "at least 1")
    for key in ("amplitude", "power"):
        require(train[key] > 0, f"train.{key}", train[key], "above 0")
    auxiliary, cutout = train.auxiliary_weight, train.augmentation.cutout
    require(auxiliary >= 0, "train.auxiliary_weight", auxiliary, "0 or more")
    require(cutout >= 0, "train.augmentation.cutout", cutout, "0 or more pixels")
    policy, jitter = train.augmentation.policy, train.augmentation.jitter
    expected = f"empty or one of {', '.join(POLICIES)}{nearest(policy, POLICIES)}"
    require(policy in ("", *POLICIES), "train.augmentation.policy", policy, expected)
    require(
        not jitter or _is_jitter(jitter),
        "train.augmentation.jitter",
        jitter,
        "empty or four numbers from 0 on: brightness, contrast, saturation, and hue up to 0.5",
    )
    require(
        not (policy and jitter),
        "train.augmentation.jitter",
        jitter,
        f"empty beside config.train.augmentation.policy={policy}: choose one of the two",
    )
    require(0 <= train.drop_path < 1, "train.drop_path", train.drop_path, "in [0, 1)")
    smoothing = train.label_smoothing
    require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "in [0, 1)")
    share = train.validation_share
    require(0 <= share < 1, "train.validation_share", share, "in [0, 1)")
    require(0 <= train.average < 1, "train.average", train.average, "in [0, 1)")
    require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"a divisor of config.train.batch_size, which is {train.batch_size}",
    )


def _is_jitter(strengths) -> bool:
    numbers = all(isinstance(strength, int | float) for strength in strengths)
    return len(strengths) == 4 and numbers and min(strengths) >= 0 and strengths[3] <= 0.5
