"""Recipes: the papers' values, the hours in the docstrings, a run whose mode the config sets."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT, command

import asap_jax as asap
from asap_jax import GENOTYPES, Genotype, multiply_adds
from asap_jax.configs import presets, recipes, rules
from asap_jax.host.errors import UserError
from asap_jax.runs import inputs
from asap_jax.training import train_loop

# Number of training images, their shape, classes.
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
    """Hours, multiply-adds, images and epochs are those of the config."""
    config, said = recipes.get_config(name), recipes.RECIPES[name].__doc__
    rules.check(config)
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
        "final_learning_rate": 1e-8,
        "schedule": "power_cosine",
        "cycles": 5,
        "amplitude": 0.5,
        "power": 2.0,
        "weight_decay": 3e-4,
        "clip": 5.0,
        "auxiliary_weight": 0.4,
        "drop_path": 0.2,
        "label_smoothing": 0.1,
        "augmentation": {"pad": 4, "flip": True, "cutout": 16, "policy": "cifar10", "jitter": ()},
    }
    assert {key: train[key] for key in want} == want
    for size, channels in (("medium", 44), ("large", 50), ("large_6m", 56)):
        wider = recipes.get_config(f"asap_{size}").train.to_dict()
        assert wider == train | {"channels": channels}


def test_darts_training_is_its_own():
    config = recipes.get_config("darts")
    assert (config.mode, config.genotype) == ("train", "DARTS_V2")
    train = config.train.to_dict()
    want = {
        "channels": 36,
        "cells": 20,
        "epochs": 600,
        "batch_size": 96,
        "learning_rate": 0.025,
        "final_learning_rate": 0.0,
        "schedule": "cosine",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 3e-4,
        "clip": 5.0,
        "auxiliary_weight": 0.4,
        "drop_path": 0.2,
        "label_smoothing": 0.0,
        "augmentation": {"pad": 4, "flip": True, "cutout": 16, "policy": "", "jitter": ()},
    }
    assert {key: train[key] for key in want} == want


# Shared by both: 224 pixels, cropped at random by the stream, so nothing is padded or cut out.
ON_IMAGENET = {
    "cells": 14,
    "stem": "imagenet",
    "epochs": 250,
    "momentum": 0.9,
    "clip": 5.0,
    "auxiliary_weight": 0.4,
    "drop_path": 0.0,
    "label_smoothing": 0.1,
}


@pytest.mark.parametrize(
    ("name", "own", "colours"),
    [
        (
            "imagenet",
            {
                "channels": 50,
                "squeeze": "early",
                "batch_size": 256,
                "learning_rate": 0.2,
                "final_learning_rate": 0.0,
                "schedule": "cosine",
                "nesterov": True,
                "weight_decay": 1e-4,
            },
            {"policy": "imagenet", "jitter": ()},
        ),
        (
            "darts_imagenet",
            {
                "channels": 48,
                "squeeze": "",
                "batch_size": 128,
                "learning_rate": 0.1,
                "schedule": "exponential",
                "nesterov": False,
                "weight_decay": 3e-5,
            },
            {"policy": "", "jitter": (0.4, 0.4, 0.4, 0.2)},
        ),
    ],
)
def test_imagenets_trainings_are_the_papers(name, own, colours):
    config = recipes.get_config(name)
    assert (config.data.image_size, config.data.resize) == (224, "random_crop")
    train = config.train.to_dict()
    want = {**ON_IMAGENET, **own}
    assert {key: train[key] for key in want} == want
    assert train["augmentation"] == {"pad": 0, "flip": True, "cutout": 0, **colours}


def test_darts_learning_rate_on_imagenet_falls_by_3_percent_an_epoch():
    rate = train_loop.make_schedule(recipes.get_config("darts_imagenet").train, 2)
    got = [float(rate(jnp.int32(2 * epoch))) for epoch in (0, 1, 100, 249)]
    np.testing.assert_allclose(got, 0.1 * 0.97 ** np.array([0, 1, 100, 249]), rtol=1e-4)


@pytest.mark.parametrize("name", ["cifar100", "svhn", "fashion_mnist", "cinic10", "freiburg"])
def test_transfer_trains_as_cifar10_but_for_the_colours(name):
    sizes = {"cinic10": 32, "freiburg": 64}  # of folders, which do not state it
    assert recipes.get_config(name).data.image_size == sizes.get(name, 0)
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
    """The recipe sets the mode; every option of the network is saved with its weights."""
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


SIDES = {"fashion_mnist": (28, 28, 1), "freiburg": (64, 64, 3)}
CLASSES = {"cifar100": 100, "freiburg": 25}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_sizes_are_known_without_the_data(name, tmp_path):
    """For every recipe: what describing its network needs."""
    config = recipes.get_config(name)
    config.data.dir = str(tmp_path)
    sizes = inputs.load_sizes(config)
    large = "imagenet" in name
    assert sizes.preparation.shape == SIDES.get(name, (224, 224, 3) if large else (32, 32, 3))
    assert len(sizes.class_names) == CLASSES.get(name, 1000 if large else 10)
    assert (sizes.nbytes == 0) == large  # streamed
    assert "no image was looked at" in sizes.notes[0]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["svhn", "cinic10", "freiburg", "imagenet"])
def test_a_recipe_is_described_without_the_data(name, tmp_path, capsys):
    config = recipes.get_config(name)
    config.data.dir = str(tmp_path)
    config.train.update({"cells": 3, "channels": 4, "batch_size": 2})
    told = asap.describe(config, None)
    assert told["parameters"] > 1000
    assert "no image was looked at" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["no_such_set", "cifar10+test", "imagenet2012"])
def test_a_set_whose_sizes_are_not_known_is_opened(place, tmp_path):
    config = recipes.get_config("asap_small")
    config.data.update({"source": f"tfds:{place}", "dir": str(tmp_path)})
    message = "no_such_set|has to be another split|is not prepared"
    with pytest.raises(UserError, match=message):
        asap.describe(config, None)


def test_224_pixels_enter_the_first_cell_as_28():
    """The paper's "from 224 to 56 (3 reductions)" cannot be right: three halvings give 28."""
    config = recipes.get_config("imagenet")
    network = train_loop.make_network(config.train, GENOTYPES["ASAP"], 1000)

    def run(key, x):
        _, kept = network.init_with_output(
            key, x, capture_intermediates=lambda module, name: module.name == "cell0"
        )
        return kept["intermediates"]["cell0"]["__call__"]

    x = jnp.zeros((1, 224, 224, 3))
    (seen,) = jax.eval_shape(run, jax.random.key(0), x)
    assert seen.shape == (1, 28, 28, 4 * config.train.channels)


PAPER = (ROOT / "docs" / "paper.md").read_text()


def test_the_docs_name_every_choice_that_the_config_says_they_do():
    rows = {line.split("|")[1].strip(): line for line in PAPER.splitlines() if line[:2] == "| "}
    for point, words in (
        ("other data sets", ("4.3", "6.2.2", "600")),
        ("ImageNet's stem", ("224 to 56", "28")),
        ('"PC-DARTS DL2" of table 1', ("Prune and Replace",)),
        ('"SNAS" of tables 1 and 2', ("moderate",)),
        ("gradual pruning (4.4)", ("softmax weights", "each cell type")),
        ("L of Theorem 2", ("0.01",)),
    ):
        assert all(word in rows[point] for word in words), point
    assert recipes.get_config("cifar100").train.epochs == 600
    assert presets.get_config("asap_pac").search.strategy.gradient_bound == 0.01


def test_the_code_that_the_docs_map_the_paper_to_exists():
    table = PAPER.split("## From the paper to the code")[1].split("| paper |")[1].split("\n## ")[0]
    names = re.findall(r"`([a-z_/]+)\.(?!py`)([\w.]+)", table)
    assert len(names) > 40
    for module, name in names:
        source = (ROOT / "asap_jax" / f"{module}.py").read_text()
        for part in name.split("."):
            assert re.search(rf"^( *(def|class) {part}\b|{part}\b.*=)", source, re.M), name


def test_the_papers_sections_that_the_code_cites_exist():
    sections = set("3.1 3.2 3.3 4.1 4.2 4.3 4.4 4.5 6.1 6.2 6.2.1 6.2.2".split())
    cited = set()
    for path in (ROOT / "asap_jax").rglob("*.py"):
        for found in re.findall(r"[Ss]ections? ((?:\d(?:\.\d)+(?:, | and )?)+)", path.read_text()):
            cited |= set(re.findall(r"\d(?:\.\d)+", found))
    assert {"3.2", "4.1", "6.2.2"} <= cited <= sections
