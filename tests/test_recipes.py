"""Recipes: the papers' values, the hours in the docstrings, a run whose mode the config tells."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from command import command

import asap_jax as asap
from asap_jax import GENOTYPES, Genotype, multiply_adds, presets, recipes, train_loop
from asap_jax.errors import UserError

# Images that are trained on, their shape, classes.
DATA = {
    "tfds:cifar10": (50_000, (32, 32, 3), 10),
    "tfds:cifar100": (50_000, (32, 32, 3), 100),
    "tfds:svhn_cropped+extra": (604_388, (32, 32, 3), 10),
    "tfds:fashion_mnist": (60_000, (28, 28, 1), 10),
    "cinic10:CINIC-10": (180_000, (32, 32, 3), 10),
    "freiburg:freiburg_groceries_dataset": (4_000, (64, 64, 3), 25),
    "tfds:imagenet2012": (1_281_167, (224, 224, 3), 1000),
}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_what_a_docstring_says_of_its_cost(name):
    """Hours, multiply-adds, images and epochs are those of the config it makes."""
    config, said = recipes.get_config(name), recipes.RECIPES[name].__doc__
    presets.check(config)
    images, shape, classes = DATA[config.data.source]
    network = train_loop.make_network(config.train, GENOTYPES[config.genotype], classes)
    network = network.clone(auxiliary=False)
    cost, epochs = multiply_adds(network, shape), config.train.epochs
    assert f"configs/train.py:{name} " in said
    assert f"({cost / 1e6:,.0f}M multiply-adds" in said
    assert f"{images:,} images, {epochs:,} epochs)" in said
    hours = recipes.gpu_hours(cost, images, epochs)
    assert int(re.search(r"([\d,]+) h on one GPU", said)[1]) == round(hours)


def test_hours_by_hand():
    assert recipes.gpu_hours(400_000_000, 60_000, 100) == pytest.approx(5)  # 7.2e15 / 4e11 s


def test_asaps_training_is_the_papers():
    config = recipes.get_config("asap_small")
    assert (config.mode, config.genotype) == ("train", "ASAP")
    train = config.train.to_dict()
    want = {
        "channels": 36,
        "cells": 20,
        "epochs": 1500,
        "batch_size": 128,
        "learning_rate": 0.025,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 3e-4,
        "clip": 5.0,
        "auxiliary_weight": 0.4,
        "drop_path": 0.2,
        "augmentation": {"pad": 4, "flip": True, "cutout": 16, "policy": "cifar10", "jitter": ()},
    }
    assert {key: train[key] for key in want} == want
    widths = [recipes.RECIPES[f"asap_{size}"]().train.channels for size in ("medium", "large")]
    assert widths == [44, 50]


def test_imagenets_training_is_the_papers():
    train = recipes.get_config("imagenet").train
    assert (train.channels, train.cells, train.epochs, train.batch_size) == (50, 14, 250, 256)
    assert (train.learning_rate, train.weight_decay, train.label_smoothing) == (0.2, 1e-4, 0.1)
    assert train.nesterov and train.schedule == "cosine" and train.augmentation.policy == "imagenet"


@pytest.mark.parametrize("name", ["cifar100", "svhn", "fashion_mnist", "cinic10", "freiburg"])
def test_transfer_trains_as_cifar10_but_for_the_colours(name):
    theirs, ours = (recipes.get_config(each).train.to_dict() for each in ("asap_small", name))
    assert ours["epochs"] == (400 if name == "cinic10" else 600)
    assert ours["augmentation"].pop("jitter") == (0.4, 0.4, 0.4, 0.2)
    assert ours["augmentation"].pop("policy") == ""
    for each in ("jitter", "policy"):
        theirs["augmentation"].pop(each)
    assert ours | {"epochs": 1500} == theirs


def test_epochs_stretch_the_whole_schedule():
    config = recipes.get_config("asap_small")
    config.train.epochs = 15
    rate = train_loop.make_schedule(config.train, 2)
    got = [float(rate(jnp.int32(2 * epoch))) for epoch in range(0, 15, 3)]
    np.testing.assert_allclose(got, 0.025 * 0.5 ** np.arange(5), rtol=1e-6)


def test_unknown_recipes_are_named():
    with pytest.raises(UserError, match=r"no recipe: name one .* asap_small"):
        recipes.get_config()
    with pytest.raises(UserError, match=r"unknown recipe 'cifar10'.*did you mean 'cifar100'"):
        recipes.get_config("cifar10")


CELL = ((("dil_conv_3x3", 0), ("skip_connect", 1)),)
SMALL = Genotype(CELL, (2,), CELL, (2,))


def test_a_recipe_runs_and_its_network_comes_back(tmp_path):
    """The mode is the recipe's; every option of the network kept beside its weights."""
    config = recipes.get_config("imagenet")
    config.genotype = SMALL.to_json()
    config.data.update(
        {"source": "digits", "image_size": 32, "train_examples": 100, "test_examples": 60}
        | {"resize": "stretch"}  # random crops are for streams
    )
    config.train.update({"channels": 4, "cells": 3, "epochs": 2, "batch_size": 50})
    config.train.update({"output": "conv", "squeeze": "every", "auxiliary_weight": 0.0})
    config.train.augmentation.policy = ""
    outcome = asap.run(config, workdir=tmp_path, quiet=True)
    assert outcome.genotype == SMALL
    assert outcome.results["epochs"] == {"search": 0, "train": 2}
    network = asap.load(tmp_path)
    assert network.module == outcome.network.module
    assert (network.module.output, network.module.squeeze) == ("conv", "every")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    got, want = (each.predict_proba(images) for each in (network, outcome.network))
    np.testing.assert_array_equal(got, want)


def test_the_command_knows_recipes_outside_the_checkout(tmp_path):
    done = command("--config=train:asap_smal", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'asap_small'" in done.stderr
    assert done.stderr.count("\n") == 1


def _spoilt(change):
    record = json.loads(SMALL.to_json())
    change(record)
    return f"--config.genotype={json.dumps(record)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (_spoilt(lambda r: r["normal"][0][0].__setitem__(0, "conv_9x9")),),
            "normal cell, node 2: unknown operation 'conv_9x9'; known are none, max_pool_3x3",
        ),
        (
            (_spoilt(lambda r: r["reduce"][0][1].__setitem__(1, 4)),),
            "reduce cell, node 2: input 4 does not exist yet; it can be 0 to 1",
        ),
        (
            (_spoilt(lambda r: r.update(normal_concat=[2, 3])),),
            "concatenates nodes [2, 3], but the intermediate nodes are 2 to 2",
        ),
        (("--config.genotype={",), "config.genotype holds no genotype"),
        (
            ("--config.train.stem=imagenet", "--config.train.channels=35"),
            "config.train.channels is 35, but the imagenet stem halves it: choose an even number",
        ),
        (
            ("--config.data.image_size=30",),
            "images are 30x30, but the reductions of config.train.cells=20 need a multiple of 4: "
            "the nearest good size is 32 (--config.data.image_size=32)",
        ),
        (
            ("--config.train.stem=imagenet", "--config.data.image_size=100"),
            "and the imagenet stem need a multiple of 32: the nearest good size is 96",
        ),
    ],
)
def test_cells_and_sizes_that_no_network_can_take(arguments, message, tmp_path):
    data = ("--config.data.source=digits", "--config.data.image_size=32")
    done = command("--config=train:asap_small", *data, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
