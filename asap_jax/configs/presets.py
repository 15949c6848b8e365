"""Presets: functions that return a config, so that an installed package has them.

`configs/search.py` is a thin wrapper around `get_config`. A preset is named by a size, a strategy,
or both, separated by a comma: "digits", "darts", "digits,random". At the paper's size, a strategy
searches with its authors' settings (`Method.authors`); the word "fair", as in "gdas,fair", keeps
the one budget that all strategies share at every size.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from asap_jax import methods
from asap_jax.host.errors import UserError, nearest
from asap_jax.methods import STRATEGIES
from asap_jax.methods.base import PAPER_CELLS, PAPER_EPOCHS


def paper() -> ConfigDict:
    """The paper's search on CIFAR-10 (section 4.1), followed by a training of 100 epochs.

    Where the paper contradicts itself or is silent, docs/paper.md lists the choice made here.
    """
    config = ConfigDict()
    config.seed = 0
    config.mode = ""  # "search" or "train"; "" runs one after the other. Overridden by --mode
    config.genotype = ""  # cells to train: a published name, a file, a search's workdir, or text
    config.searches = 1  # with consecutive seeds; the best derived network is trained fully
    config.selection = ConfigDict({"epochs": 20})  # short trainings on one half to rank searches
    config.check_memory = True  # refuse a run whose estimate exceeds the device's memory
    config.devices = 0  # that share each batch; 0 for all of the run's processes
    config.deterministic = False  # the same bits at each run on a GPU too: docs/reliability.md
    config.on_nan = "stop"  # at a loss or weight that is not finite; or "skip" the step, counted
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
            "strategy": {"name": "asap", **_options("asap")},  # options: docstrings of methods/*.py
            "space": "asap",
            "candidates": (),  # () for the space's own; else names of operations
            "edges": "top2",  # inputs that a node keeps in the genotype: "top2" or "all"
            "channels": 16,
            "cells": PAPER_CELLS,
            "epochs": PAPER_EPOCHS,  # the search stops earlier once every edge holds one candidate
            "budget_minutes": 0.0,  # fits the length of the epochs to so much time: pace.py
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
            "target_params": 0.0,  # parameters of the trained network to search for; 0 for any
            "target_macs": 0.0,  # the same in multiply-adds; at most one of the two
            "target_weight": 1.0,  # of the term in the alphas' loss: targets.py
            "watch": {
                "images": 1024,  # of the alpha half, for the gap after each epoch; 0 to disable
                "eigenvalue": False,  # the dominant one of the alphas' Hessian; expensive
                "eigenvalue_every": 2,  # epochs from one measurement to the next; RobustDARTS: 2
                "eigenvalue_from": 10,  # earliest epoch to return to, after the first measurement
            },
            "early_stop": False,  # stop where RobustDARTS does, with the cells it returns
            "max_skips": -1,  # stop at more skips in the normal cell, with the cells of before
            "benchmark": "",  # CSV file of NAS-Bench-201 accuracies, to log the derived cell's
            "benchmark_cells": 0,  # of its cells that the shared weights rank at the end
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
            "amplitude": 0.5,  # of "power_cosine": factor from a cycle's first rate to the next's
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
    """`nb201` on images of 16 x 16 pixels, one cell per stage, half the width in the search.

    1,000 steps of 32 images, with the learning rates that docs/search_quality.md gives reasons for.
    Fewer steps on larger images cost as much and find cells that are no better than random ones.
    """
    config = nb201()
    config.data.update({"train_examples": 6400, "test_examples": 1000, "image_size": 16})
    config.search.update({"channels": 8, "cells": 3, "epochs": 10, "batch_size": 32})
    config.search.omega.learning_rate = 0.3
    config.search.alpha.learning_rate = 0.01  # times the steps it is 10, in the paper 13
    config.train.update({"channels": 16, "cells": 3, "epochs": 14, "batch_size": 32})
    config.train.learning_rate = 0.05
    return config


FAIR = "fair"  # gives all strategies one budget

SIZES: dict[str, Callable[[], ConfigDict]] = {
    "paper": paper,
    "digits": digits,
    "tiny": tiny,
    "small": small,
    "cifar10_small": cifar10_small,
    "nb201": nb201,
    "nb201_small": nb201_small,
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
    chosen = [part for part in parts if part in STRATEGIES]
    for part in parts:
        if part not in SIZES and part not in STRATEGIES:
            raise UserError(
                f"unknown preset {part!r}{nearest(part, [*SIZES, *STRATEGIES, FAIR])}: sizes are "
                f"{', '.join(SIZES)}; strategies are {', '.join(STRATEGIES)}; {FAIR!r} gives them "
                "all one budget"
            )
    if len(sizes) > 1 or len(chosen) > 1:
        raise UserError(f"preset {name!r} names more than one size or more than one strategy")
    size = sizes[0] if sizes else "paper"
    config = SIZES[size]()
    if chosen:
        method = methods.named(chosen[0])
        config.search.strategy = ConfigDict({"name": chosen[0], **_options(chosen[0])})
        method.adapt(config.search)
        if size == "paper" and not fair:
            config.search.update(method.authors)
    config.lock()
    return config


def _options(name: str) -> dict:
    """The strategy's options with their defaults; those that may be None keep their type."""
    method = methods.named(name)
    options = method.options()
    return options | {key: FieldReference(options[key], t) for key, t in method.types().items()}


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
                known = value["name"] in STRATEGIES  # otherwise `rules.check` refuses it
                with config.unlocked():  # another strategy has its own options
                    config[key] = ConfigDict(
                        (_options(value["name"]) if known else {}) | dict(value)
                    )
            else:
                update(config[key], value, f"{name}.{key}")
            continue
        try:
            config[key] = value
        except TypeError as error:
            why = " ".join(str(error).split())
            raise UserError(f"{name}.{key} cannot be {value!r}: {why}") from error
