"""The configs at the top of the checkout: each says its command, and runs as it says."""

import importlib.util
import re
import shlex

import pytest
from command import ROOT

from asap_jax.configs import presets, recipes, rules

FILES = sorted((ROOT / "configs").glob("*.py"))


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def commands(path):
    """The commands in a docstring, with continued lines joined."""
    text = module(path).__doc__.replace("\\\n", " ")
    return [
        shlex.split(line) for line in re.findall(r"^ +(python -m asap_jax.main .*)$", text, re.M)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_names_its_own_command(path):
    found = commands(path)
    assert found
    for command in found:
        assert any(word.startswith(f"--config=configs/{path.name}") for word in command)


@pytest.mark.parametrize("name", ["cifar10", "photographs", "nasbench201"])
def test_a_config_can_be_run_and_its_keys_changed(name):
    config = module(ROOT / "configs" / f"{name}.py").get_config()
    rules.check(config)
    (command,) = commands(ROOT / "configs" / f"{name}.py")
    for word in command:
        if word.startswith("--config."):
            key, _, value = word.removeprefix("--config.").partition("=")
            config.update_from_flattened_dict({key: value})
    rules.check(config)


def test_the_tables_name_every_size_and_every_recipe():
    search, train = (
        module(ROOT / "configs" / f"{name}.py").__doc__ for name in ("search", "train")
    )
    first = set(re.findall(r"^\| .*?`(\w+)` ", search, re.M))
    assert first == set(presets.SIZES)
    assert set(re.findall(r"^\| `(\w+)` ", train, re.M)) == set(recipes.RECIPES)


def test_the_table_of_recipes_has_their_hours_and_errors():
    text = module(ROOT / "configs" / "train.py").__doc__
    for name, hours, error in re.findall(r"^\| `(\w+)` +\|.*\| +(\d+) \| ([\d.]+)", text, re.M):
        told = " ".join(recipes.RECIPES[name].__doc__.split())
        assert f"{hours} h on one GPU" in told and f"{error} " in told, name


def test_cifar10_is_the_papers_search_and_the_papers_training():
    config = module(ROOT / "configs" / "cifar10.py").get_config()
    assert config.search == presets.get_config("paper").search
    assert config.train == recipes.get_config("asap_small").train
    assert (config.mode, config.genotype) == ("", "")
