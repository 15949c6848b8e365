"""Recipes: functions that return the configs of the papers' trainings of published cells.

`configs/train.py` is a thin wrapper around `get_config`. A recipe trains ASAP's cells (DARTS' own
recipes train DARTS_V2) unless `config.genotype` names others, and stretches every schedule to
`config.train.epochs`.

The hours in the docstrings are `gpu_hours`: three times the network's multiply-adds per image (one
forward pass, two backward), times images and epochs, at 4e11 multiply-adds per second. This is
about the rate of DARTS' trainings of 1.5 days (CIFAR-10) and 12 days (ImageNet) on one GPU of 2018,
float32; newer GPUs are faster.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from asap_jax.configs import presets
from asap_jax.host.errors import UserError, nearest

RATE = 4e11  # multiply-adds per second
JITTER = (0.4, 0.4, 0.4, 0.2)  # DARTS' brightness, contrast, saturation, hue


def gpu_hours(multiply_adds: int, images: int, epochs: int) -> float:
    """Hours of training on one GPU of 2018, see the module docstring."""
    return 3 * multiply_adds * images * epochs / RATE / 3600


def asap_small() -> ConfigDict:
    """ASAP's training on CIFAR-10 (sections 4.2 and 6.2.2), 36 channels, 2.5M parameters.

        python -m asap_jax.main --config=configs/train.py:asap_small --config.data.dir=DIR

    63 h on one GPU (401M multiply-adds, 50,000 images, 1,500 epochs). The paper's error: 1.99 %.

    The paper does not state the label smoothing (0.1 here, as on ImageNet) or the cosine's power (2
    here, sharpDARTS' default).
    """
    config = _base("ASAP")
    config.train.update(
        {
            "epochs": 1500,
            "batch_size": 128,
            "learning_rate": 0.025,
            "final_learning_rate": 1e-8,
            "schedule": "power_cosine",
            "cycles": 5,
            "amplitude": 0.5,
            "power": 2.0,
            "nesterov": True,
            "weight_decay": 3e-4,
            "auxiliary_weight": 0.4,
            "drop_path": 0.2,
            "label_smoothing": 0.1,
            "augmentation": {"cutout": 16, "policy": "cifar10"},
        }
    )
    return config


def asap_medium() -> ConfigDict:
    """`asap_small` with 44 channels, 3.7M parameters.

        python -m asap_jax.main --config=configs/train.py:asap_medium --config.data.dir=DIR

    92 h on one GPU (592M multiply-adds, 50,000 images, 1,500 epochs). The paper's error: 1.75 %.
    """
    return _wider(44)


def asap_large() -> ConfigDict:
    """`asap_small` with the 50 channels that the paper states for ASAP-Large: 4.83M parameters.

        python -m asap_jax.main --config=configs/train.py:asap_large --config.data.dir=DIR

    119 h on one GPU (759M multiply-adds, 50,000 images, 1,500 epochs). The paper's error: 1.68 %,
    with 6.0M parameters, which require 56 channels: `asap_large_6m`.
    """
    return _wider(50)


def asap_large_6m() -> ConfigDict:
    """`asap_small` with 56 channels: the 6.0M parameters that the paper reports for ASAP-Large.

        python -m asap_jax.main --config=configs/train.py:asap_large_6m --config.data.dir=DIR

    148 h on one GPU (948M multiply-adds, 50,000 images, 1,500 epochs). The paper's error: 1.68 %.
    """
    return _wider(56)


def darts() -> ConfigDict:
    """DARTS' own training of its second-order cell on CIFAR-10, 36 channels, 3.3M parameters.

        python -m asap_jax.main --config=configs/train.py:darts --config.data.dir=DIR

    33 h on one GPU (528M multiply-adds, 50,000 images, 600 epochs). DARTS' error: 2.76 +- 0.09 %.
    """
    config = _base("DARTS_V2")
    config.train.epochs = 600
    return config


def cifar100() -> ConfigDict:
    """CIFAR-100 of table 2: the CIFAR-10 recipe for 600 epochs, color jitter for AutoAugment.

        python -m asap_jax.main --config=configs/train.py:cifar100 --config.data.dir=DIR

    25 h on one GPU (401M multiply-adds, 50,000 images, 600 epochs). The paper's error: 15.6 %.

    The paper does not state the strengths of the jitter; these are DARTS' for ImageNet.
    """
    return _transfer("tfds:cifar100")


def svhn() -> ConfigDict:
    """SVHN of table 2, including its extra images ("600,000 images"), trained like `cifar100`.

        python -m asap_jax.main --config=configs/train.py:svhn --config.data.dir=DIR

    303 h on one GPU (401M multiply-adds, 604,388 images, 600 epochs). The paper's error: 1.81 %.
    With --config.data.source=tfds:svhn_cropped, only the 73,257 images of the train split: 37 h.
    """
    return _transfer("tfds:svhn_cropped+extra")


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST of table 2, 28 x 28 and grey, trained like `cifar100`.

        python -m asap_jax.main --config=configs/train.py:fashion_mnist --config.data.dir=DIR

    23 h on one GPU (305M multiply-adds, 60,000 images, 600 epochs). The paper's error: 3.73 %.
    """
    return _transfer("tfds:fashion_mnist")


def cinic10() -> ConfigDict:
    """CINIC-10 of table 2, its train and valid images, trained like `cifar100` for 400 epochs.

        python -m asap_jax.main --config=configs/train.py:cinic10 \
            --config.data.source=cinic10:PATH

    60 h on one GPU (401M multiply-adds, 180,000 images, 400 epochs). The paper's error: 6.83 %.
    """
    config = _transfer("cinic10:CINIC-10")
    config.data.image_size = 32  # their own, not known for folders until they are read
    config.train.epochs = 400
    return config


def freiburg() -> ConfigDict:
    """Freiburg Groceries of table 2, split 0, resized to 64 x 64, trained like `cifar100`.

        python -m asap_jax.main --config=configs/train.py:freiburg \
            --config.data.source=freiburg:PATH

    8 h on one GPU (1,603M multiply-adds, some 4,000 images, 600 epochs). The paper's error: 10.7 %.
    """
    config = _transfer("freiburg:freiburg_groceries_dataset")
    config.data.image_size = 64
    return config


def imagenet() -> ConfigDict:
    """ASAP's training on ImageNet (section 6.2.2): 14 cells, 50 channels, squeeze and excitation.

        python -m asap_jax.main --config=configs/train.py:imagenet --config.data.dir=DIR

    305 h on one GPU (457M multiply-adds, 1,281,167 images, 250 epochs). The paper's top-1 error:
    24.4 %.

    The gates are placed as in XNAS' public code, which gives 4.56M parameters; one gate after each
    cell (config.train.squeeze=every) gives 5.20M. The paper's 5.7M remain unexplained.
    """
    config = _on_imagenet("ASAP")
    config.train.update(
        {
            "channels": 50,
            "squeeze": "early",
            "batch_size": 256,
            "learning_rate": 0.2,
            "nesterov": True,
            "weight_decay": 1e-4,
            "augmentation": {"policy": "imagenet"},
        }
    )
    return config


def darts_imagenet() -> ConfigDict:
    """DARTS' own training of its second-order cell on ImageNet: 14 cells, 48 channels.

        python -m asap_jax.main --config=configs/train.py:darts_imagenet --config.data.dir=DIR

    354 h on one GPU (530M multiply-adds, 1,281,167 images, 250 epochs). DARTS' top-1 error: 26.7 %.
    """
    config = _on_imagenet("DARTS_V2")
    config.train.update(
        {
            "channels": 48,
            "batch_size": 128,
            "learning_rate": 0.1,
            "final_learning_rate": 0.1 * 0.97**249,  # reached in the last of 250 epochs
            "schedule": "exponential",
            "weight_decay": 3e-5,
            "augmentation": {"jitter": JITTER},
        }
    )
    return config


def _base(genotype: str) -> ConfigDict:
    """A training of published cells with DARTS' settings, as in the search presets."""
    config = presets.paper()
    config.mode, config.genotype = "train", genotype
    return config


def _wider(channels: int) -> ConfigDict:
    config = asap_small()
    config.train.channels = channels
    return config


def _transfer(source: str) -> ConfigDict:
    config = asap_small()
    config.data.source = source
    config.train.epochs = 600
    config.train.augmentation.update({"policy": "", "jitter": JITTER})
    return config


def _on_imagenet(genotype: str) -> ConfigDict:
    """What both ImageNet recipes share: network shape, 250 epochs, 224 pixels."""
    config = _base(genotype)
    config.data.update({"source": "tfds:imagenet2012", "image_size": 224, "resize": "random_crop"})
    config.train.update(
        {
            "cells": 14,
            "stem": "imagenet",
            "epochs": 250,
            "auxiliary_weight": 0.4,
            "drop_path": 0.0,
            "label_smoothing": 0.1,
            "augmentation": {"pad": 0, "cutout": 0},
        }
    )
    return config


RECIPES: dict[str, Callable[[], ConfigDict]] = {
    "asap_small": asap_small,
    "asap_medium": asap_medium,
    "asap_large": asap_large,
    "asap_large_6m": asap_large_6m,
    "darts": darts,
    "cifar100": cifar100,
    "svhn": svhn,
    "fashion_mnist": fashion_mnist,
    "cinic10": cinic10,
    "freiburg": freiburg,
    "imagenet": imagenet,
    "darts_imagenet": darts_imagenet,
}


def get_config(name: str = "") -> ConfigDict:
    """The config of a recipe; raises UserError for an unknown name."""
    if name not in RECIPES:
        what = f"unknown recipe {name!r}{nearest(name, RECIPES)}" if name else "no recipe"
        raise UserError(
            f"{what}: name one after the colon (configs/train.py:asap_small); recipes are "
            f"{', '.join(RECIPES)}"
        )
    config = RECIPES[name]()
    config.lock()
    return config
