"""Every command and snippet of the documentation: run, or taken as far as it goes without a run.

Python is executed; searches and trainings in it are checked but not begun, and end with a small
network that is not trained. Commands are read by their own parsers (`tests/support/rehearsal.py`).
What can be neither has its reason in `UNCHECKED`.
"""

import ast
import configparser
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
import snippets
from command import ROOT
from PIL import Image

import asap_jax
from asap_jax import EvalNetwork, Genotype, TrainedNetwork
from asap_jax.configs import command_line, comparisons, presets, recipes
from asap_jax.data.images import Preparation
from asap_jax.host import checkpoint, workdir
from asap_jax.layers import ops
from asap_jax.methods import METHODS
from asap_jax.networks import spaces
from asap_jax.runs import resolve, runner, trained
from asap_jax.searching import stages
from asap_jax.training import evaluation, train_loop

# (page, beginning of the block): why nothing of it is checked.
UNCHECKED = {
    ("README.md", "digits: 1437 training"): "what a run prints",
    ("CONTRIBUTING.md", "asap_jax/\n  main.py"): "a tree of folders",
    ("docs/data.md", "photographs/  "): "a tree of folders",
    ("docs/data.md", "path,label,split"): "two lists of images",
    ("docs/data.md", "CINIC-10/train"): "a tree of folders",
    ("docs/gpus.md", "bytes / bandwidth"): "a formula",
}
# (beginning of a command): why it is not parsed.
UNPARSED = {
    "pip install --no-deps jax-cuda12-plugin==VERSION": "packages that are not ours",
    "pip install torch onnx onnxscript": "packages that are not ours",
    "mkdocs serve": "serves until it is stopped; .ci/run builds the site",
    "tensorboard --logdir": "serves until it is stopped; tests/host reads its files",
}
# Code within a line that looks like an option, but stands for any, or is no option of ours.
UNKNOWN_OPTIONS = {
    "--config.KEY=VALUE": "stands for any key",
    "--config=mine.py": "the reader's own file",
    "--source=RECIPE=SOURCE": "of benchmarks/transfer.py, in the block below it",
    "--write": "of compare_with_torch.py, in the command before it",
    "--out": "of the tables in the block above it",
    "--": "of the tables in the block above it",
    "--xla_gpu_autotune_level=0": "XLA's",
}
LAUNCHERS = ("launch/local.sh", "sbatch", "kubectl")
PROGRAMS = (
    *("python", "asap-jax", "pip", "pytest", "ruff", "pyright", "mkdocs", "tensorboard"),
    *LAUNCHERS,
)
BLOCKS = snippets.blocks()


def commands_of(text: str) -> list[list[str]]:
    """The commands of a block, without variables set before them; [] if it holds none."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe in a text
            return []
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command = command[1:]
            found.append(command)
    return found if found and all(each and each[0] in PROGRAMS for each in found) else []


def is_commands(block) -> bool:
    return block.language == "" and bool(commands_of(block.text))


def all_commands() -> list[tuple[str, list[str]]]:
    """(where it stands, the command)."""
    known = [
        (block, each) for block in BLOCKS if is_commands(block) for each in commands_of(block.text)
    ]
    for each in snippets.inline():
        words = each.text.split()
        if len(words) > 1 and words[0] in PROGRAMS and words != ["python", "-m", "asap_jax.main"]:
            known += [(each, command) for command in commands_of(each.text)]
    return [(snippet.place, command) for snippet, command in known]


def test_every_block_is_checked_or_says_why_not():
    used = set()
    for block in BLOCKS:
        if block.language in ("python", "math") or is_commands(block):
            continue
        reasons = [
            key for key in UNCHECKED if block.page == key[0] and block.text.startswith(key[1])
        ]
        assert len(reasons) == 1, f"{block.place} is no command, no Python and not excused"
        used.add(reasons[0])
    assert used == set(UNCHECKED)


def test_commands_are_what_their_parsers_take():
    parsed, unparsed = [], set()
    for place, (program, *arguments) in all_commands():
        excuse = [each for each in UNPARSED if shlex.join([program, *arguments]).startswith(each)]
        if excuse:
            unparsed.update(excuse)
        elif program == "python":
            parsed.append((place, arguments))
        elif program == "asap-jax":
            parsed.append((place, ["-m", "asap_jax.main", *arguments]))
        elif program == "pip":
            check_pip(place, arguments)
        elif program == "pytest":
            check_pytest(place, arguments)
        elif program == "kubectl":
            assert (ROOT / arguments[-1]).is_file(), f"{place}: there is no {arguments[-1]}"
        elif program in LAUNCHERS:
            words = [program, *arguments]
            script = next(i for i, word in enumerate(words) if word.endswith(".sh"))
            assert (ROOT / words[script]).is_file(), f"{place}: there is no {words[script]}"
            parsed.append((place, ["-m", "asap_jax.main", *words[script + 1 :]]))
        else:
            line = shlex.join([program, *arguments])
            assert line in (ROOT / ".ci" / "run").read_text(), f"{place}: .ci/run has no {line}"
    assert unparsed == set(UNPARSED)
    assert len(parsed) > 50
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "rehearsal.py")],
        input=json.dumps([arguments for _, arguments in parsed]),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    wrong = [
        f"{place}: {shlex.join(arguments)}: {said}"
        for (place, arguments), (code, said) in zip(parsed, json.loads(done.stdout), strict=True)
        if code
    ]
    assert not wrong, "\n".join(wrong)


def check_pip(place, arguments) -> None:
    """It installs this package, with extras that there are."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    assert arguments[0] == "install" and set(arguments[1:-1]) <= {"-e"}, place
    told = re.fullmatch(r"\.(?:\[([\w,]+)\])?", arguments[-1])
    assert told, f"{place}: {arguments[-1]} is not this checkout, and no index has the package"
    assert set((told[1] or "").split(",")) - {""} <= set(extras), f"{place}: no extra {told[1]}"


def check_pytest(place, arguments) -> None:
    """Its files exist, its markers are ours."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = [each.partition(":")[0] for each in told["markers"]]
    words = iter(arguments)
    for word in words:
        if word == "-m":
            assert next(words) in markers, place
        elif word in ("-n", "-k"):
            next(words)
        else:
            assert (ROOT / word).exists(), f"{place}: there is no {word}"


def test_options_and_keys_within_lines():
    def is_key(path: str) -> bool:
        return any(holds(config, path.split(".")) for config in configs)

    configs = [presets.get_config(f"digits,{method}") for method in METHODS]
    configs += [recipes.get_config("imagenet"), comparisons.get_config("tiny")]
    used, count = set(), 0
    for snippet in snippets.inline():
        option = re.match(r"-(?=-)", snippet.text)
        if snippet.text.split()[0] in UNKNOWN_OPTIONS:
            used.add(snippet.text.split()[0])
            continue
        for word in shlex.split(snippet.text) if option else [snippet.text]:
            name, _, value = word.partition("=")
            name = name.strip()
            if re.fullmatch(r"(--)?config(\.\w+)+", name) and not name.endswith(".json"):
                path = name.partition(".")[2]
                assert is_key(path), f"{snippet.place}: no key {path}"
            elif name.endswith(".json"):
                continue  # a file of a workdir
            elif re.fullmatch(r"(search|train|data|strategy|checkpoint)(\.\w+)+", name):
                path = f"search.{name}" if name.startswith("strategy") else name
                assert is_key(path) or is_name(f"asap_jax.{name}"), f"{snippet.place}: {name}"
            elif name == "--config" and value:
                file, _, preset = value.partition(":")
                kind = re.fullmatch(r"(?:configs/)?(search|train|compare)(?:\.py)?", file)
                assert kind, f"{snippet.place}: no file {file}"
                if preset.islower():
                    command_line.PACKAGED[kind[1]].get_config(preset)
            elif name == "--mode":
                assert value in (*runner.MODES, ""), f"{snippet.place}: no mode {value}"
            elif option:
                known = ("--workdir", "--data", "--split", "--config", "--dry_run", "--distributed")
                assert name in known, snippet.place
            elif re.fullmatch(r"(asap|asap_jax)(\.[A-Za-z_]\w*)+(\(.*\))?", word):
                assert is_name(word.partition("(")[0]), f"{snippet.place}: no name {word}"
            else:
                continue
            count += 1
    assert used == set(UNKNOWN_OPTIONS)
    assert count > 100


def holds(config, path) -> bool:
    for part in path:
        if not hasattr(config, "keys") or part not in config:
            return False
        config = config[part]
    return True


def is_name(path: str) -> bool:
    """Whether `asap.a.b` or `asap_jax.a.b` is a module or something in one."""
    here = asap_jax
    for part in path.split(".")[1:]:
        if not hasattr(here, part):
            try:
                importlib.import_module(f"{here.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        here = getattr(here, part)
    return True


def test_links_lead_to_files_and_their_names_to_code():
    for text, target in snippets.links():
        if re.match(r"[a-z]+:", target):
            continue
        path = (ROOT / text.page).parent / target.partition("#")[0]
        assert path.exists(), f"{text.place}: there is no {target}"
        named = re.fullmatch(r"\w+\.(\w+)", text.text)
        if path.suffix == ".py" and named and named[1] != "py":
            module = path.resolve().relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            assert text.text.startswith(f"{path.stem}."), f"{text.place}: {text.text}"
            assert hasattr(importlib.import_module(module), named[1]), f"{text.place}: {text.text}"


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text()
    names = re.findall(r"^::: asap_jax\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(asap_jax.__all__)


# Python. What a page's blocks find: the names a reader has, and files in the current folder.

ELIDED = {'"|skip_connect~0|+|...|"': '"|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|"'}


NODES = ((("skip_connect", 0), ("max_pool_3x3", 1)),) * 2
CELLS = Genotype(NODES, (2, 3), NODES, (2, 3))  # few and cheap operations, soon compiled


def blank(module, shape):
    """Weights for images of a shape, drawn from nothing, so that nothing is compiled."""
    shapes = train_loop.variable_shapes(module, shape)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def network():
    """Of the digits' size, and not trained."""
    module = EvalNetwork(CELLS, 10, channels=2, cells=3)
    names, preparation = tuple("0123456789"), Preparation(8, 8, "grey")
    variables = blank(module, preparation.shape)
    results = {"test_accuracy": 0.1}
    return TrainedNetwork(module, variables, names, preparation, (0.5,), (0.2,), results)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """What the pages take for granted."""
    here = tmp_path_factory.mktemp("pages")
    digits = here / "runs" / "digits"
    workdir.claim(digits, json.loads(presets.get_config("digits").to_json()))
    network.save(digits)
    checkpoint.save(
        digits / "checkpoints" / "search-0" / "440" / "state",
        {"arch": {"alphas": np.zeros(3)}, "step": np.int32(440)},
    )
    network.export(here / "export", ("cpu",))
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    picture.save(here / "new.png")
    for name in ("cat", "dog"):
        (here / "photographs" / name).mkdir(parents=True)
        for i in range(64):
            picture.rotate(90 * i).save(here / "photographs" / name / f"{i}.png")
    cell = "|skip_connect~0|+|none~0|nor_conv_3x3~1|+|nor_conv_1x1~0|none~1|skip_connect~2|"
    (here / "nasbench201.csv").write_text(f"architecture,accuracy\n{cell},90.0\n")
    return here


@pytest.fixture
def rehearsed(network, folder, monkeypatch):
    """Runs are checked in place of run, and give the network above."""

    def run(config, place, *, mode="", dataset=None, callbacks=None, quiet=False):
        space = stages.make_space(config.search)
        config.check_memory = config.search.space not in BUILT_IN  # traces the operations
        done = resolve.resolve(config, place, mode, dataset)
        stages.make_strategy(config.search, space, 4)
        for each in filter(None, callbacks):
            each({"entropy": 0.5, "pruned": []})
        if place is not None:
            workdir.claim(done.folder, done.described)
            network.save(done.folder)
        found = done.genotype or CELLS
        return runner.Outcome(found, {}, network, network.results)

    def train(config, genotype, dataset, seed, session, **_):
        module = train_loop.make_network(config, genotype, len(dataset.class_names))
        variables = blank(module, dataset.preparation.shape)
        classes = len(dataset.class_names)
        answers = evaluation.add_answers(
            evaluation.no_answers(classes), np.eye(classes), np.arange(classes)
        )
        return train_loop.TrainOutcome(answers, config.epochs, 1.0, module, variables, "", {})

    monkeypatch.chdir(folder)
    monkeypatch.setattr(asap_jax.api.runner, "run", run)
    monkeypatch.setattr(trained.train_loop, "train", train)
    for registry in (spaces.SPACES, ops.OPERATIONS):
        for name in list(registry):
            monkeypatch.setitem(registry, name, registry[name])  # restores what a page changes


BUILT_IN = tuple(spaces.SPACES)
# Beginnings of blocks for exported files, which tests/runs/test_written_out.py runs.
EXPORTED = ("import network_flax", "import network_torch", "import torch\n\nfrom network_torch")


@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.language == "python"}))
def test_python_runs(page, rehearsed, network, folder):
    """The blocks of a page one after the other, in one namespace."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 8, 8, 1), np.uint8)
    labels = np.arange(256) % 10
    known = {"asap": asap_jax, "images": images, "labels": labels, "network": network}
    known |= {"test_images": images, "test_labels": labels, "__name__": "__main__"}
    for block in BLOCKS:
        if block.text.startswith(EXPORTED):
            continue
        if block.page == page and block.language == "python":
            text = block.text.replace("/absolute/path", str(folder))
            for old, new in ELIDED.items():
                text = text.replace(old, new)
            code = ast.parse(text, block.place)
            ast.increment_lineno(code, block.line)
            exec(compile(code, str(ROOT / page), "exec"), known)
