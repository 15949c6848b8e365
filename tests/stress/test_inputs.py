"""Property-based: whatever the input, an error is one paragraph that a user can read.

ASAP_JAX_STRESS=20 tries that many times as many cases. docs/reliability.md has the counts.
"""

import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from command import each_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ml_collections import ConfigDict
from tiny import leaves, tiny

from asap_jax import GENOTYPES, Genotype, data
from asap_jax.configs import presets, rules
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.runs import inputs, trained
from asap_jax.searching import stages

MORE = int(os.environ.get("ASAP_JAX_STRESS", "1"))
WORDS = st.text(string.printable, max_size=12)
NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12), st.floats(allow_nan=True, allow_infinity=True), st.booleans()
)
VALUES = st.one_of(NUMBERS, WORDS, st.none(), st.lists(NUMBERS | WORDS, max_size=3).map(tuple))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
CONFIG = tiny()
KEYS = sorted(path for path, _ in leaves(CONFIG.to_dict()))
DATASET = data.load("digits")


def cases(count):
    return settings(
        max_examples=count * MORE,
        deadline=None,
        derandomize=MORE == 1,
        suppress_health_check=list(HealthCheck),
    )


def accepted(call, *refusals) -> bool:
    """Whether the call succeeds; any error must be one of `refusals`, and a single paragraph."""
    try:
        call()
    except refusals as error:
        assert str(error).strip()
        assert "\n" not in str(error).strip(), str(error)
        assert "Traceback" not in str(error)
        return False
    return True


@cases(60)
@given(st.sampled_from(KEYS), VALUES)
def test_configs(key, value):
    """Any value at any key: refused when it is set, by the rules, or by the search it builds."""
    config = CONFIG.copy_and_resolve_references()
    nested = value
    for name in reversed(key.split(".")):
        nested = {name: nested}

    def use():
        presets.update(config, nested)
        rules.check(config)
        space = stages.make_space(config.search)
        stages.make_strategy(config.search, space, 4)

    accepted(use, UserError)


GENOTYPE_TEXTS = [
    *(cell.to_json() for cell in (GENOTYPES["ASAP"], GENOTYPES["DARTS_V2"])),
    repr(GENOTYPES["ASAP"]),
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|",
]


@st.composite
def spoiled(draw, texts):
    """A text with a piece cut out, doubled, or replaced."""
    text = draw(st.sampled_from(texts))
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(len(text), begin + 40)))
    middle = draw(st.one_of(st.just(""), st.just(2 * text[begin:end]), WORDS))
    return text[:begin] + middle + text[end:]


@cases(150)
@given(st.one_of(spoiled(GENOTYPE_TEXTS), WORDS, JSON.map(json.dumps)))
def test_genotype_texts(text):
    found = []
    if accepted(lambda: found.append(Genotype.parse(text)), ValueError):
        assert Genotype.from_json(found[0].to_json()) == found[0]


@cases(60)
@given(JSON)
def test_genotype_json(record):
    """Of the right format and version, with anything else inside."""
    record = record if isinstance(record, dict) else {"normal": record, "reduce": record}
    base = json.loads(GENOTYPES["ASAP"].to_json())
    accepted(lambda: Genotype.from_json(json.dumps(base | record)), ValueError)


@cases(60)
@given(
    st.one_of(
        arrays.arrays(
            st.one_of(
                arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(),
                arrays.boolean_dtypes(), arrays.unicode_string_dtypes(max_len=3),
            ),
            arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
        ),
        JSON,
    ),
    st.one_of(
        arrays.arrays(
            st.sampled_from([np.int64, np.float32, np.bool_]),
            arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=6),
        ),
        JSON,
    ),
)  # fmt: skip
def test_arrays(images, labels):
    accepted(lambda: data.as_dataset((images, labels)), UserError)


@st.composite
def trees(draw):
    """{path: bytes} of a folder that may or may not be a data set."""
    names = st.sampled_from(["cat", "dog", "train", "test", "val", "a b", ".hidden", "ü", "images"])
    files = st.sampled_from(["1.png", "2.jpg", "3.gif", "x.txt", "README", "4.PNG", "5"])
    contents = st.one_of(st.just(_png()), st.binary(max_size=30), st.just(_png()[:-20]))
    paths = st.lists(names, max_size=3).flatmap(lambda p: files.map(lambda f: "/".join([*p, f])))
    return draw(st.dictionaries(paths, contents, max_size=8))


def _png():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@cases(60)
@given(trees(), st.booleans())
def test_folders(tmp_path_factory, files, skip):
    root = tmp_path_factory.mktemp("folder")
    for name, content in files.items():
        path = root / name
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    config = CONFIG.copy_and_resolve_references()
    config.data.update({"source": f"folder:{root}", "train_examples": 0, "test_examples": 0})
    config.data.skip_unreadable = skip
    accepted(lambda: inputs.load_data(config, searches=True), UserError)


@cases(40)
@given(st.binary(max_size=60) | JSON.map(lambda each: json.dumps(each).encode()))
def test_files_of_a_workdir(tmp_path_factory, content):
    """A hostile or broken workdir: its JSON is anything at all."""
    root = tmp_path_factory.mktemp("workdir")
    for name in ("config.json", "network.json", "genotype.json", "results.json"):
        (root / name).write_bytes(content)
    accepted(lambda: workdir.check(root, json.loads(CONFIG.to_json())), UserError)
    accepted(lambda: trained.load(root), UserError)
    config = CONFIG.copy_and_resolve_references()
    accepted(lambda: inputs.find_genotype(config, root), UserError)


def test_command_lines(tmp_path):
    """Each is refused with exit code 2 and one line, and leaves no workdir behind."""
    rng = np.random.default_rng(None if MORE > 1 else 0)
    config = presets.get_config("digits")
    usual = dict(leaves(config.to_dict()))
    letters = [*string.ascii_lowercase, "=", ".", ",", "(", "'", "-", " "]

    def word():
        return "".join(rng.choice(letters, rng.integers(1, 9)))

    def malformed(i):
        key = str(rng.choice([k for k, v in usual.items() if isinstance(v, int | float)]))
        whole = "--config=search:digits"
        return [
            [whole, f"--config.{key}={word()}x"],
            [whole, f"--config.{key}x={rng.integers(9)}"],
            [whole, f"--{word().strip('-=. ')}zz=1"],
            [whole, f"--mode={word()}zz"],
            [f"--config=search:digits,{word().replace(',', '')}zz"],
            [f"--config=nowhere/{word()}.py"],
            [whole, "--config.search.epochs=-1"],
            [whole, word().replace("-", "a").replace(" ", "b") + "zz"],
        ][i % 8]

    lines = [[*malformed(i), f"--workdir={tmp_path}/{i}"] for i in range(24 * MORE)]
    for line, done in zip(lines, each_command(lines), strict=True):
        assert done.returncode == 2, (line, done.stderr)
        assert done.stderr.startswith("asap_jax: "), (line, done.stderr)
        assert done.stderr.count("\n") == 1, (line, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_workdir_runs_nothing(tmp_path):
    """Paths that leave the folder, absurd sizes, code in place of numbers."""
    ran = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    folder = tmp_path / "run"
    config = ConfigDict(json.loads(presets.get_config("digits").to_json()))
    workdir.claim(folder, json.loads(config.to_json()))
    base = json.loads(GENOTYPES["ASAP"].to_json())
    hostile = [
        json.dumps(base | {"normal": code}),
        json.dumps(base | {"normal": [[[code, 0]]] * 4}),
        f"Genotype(normal={code}, normal_concat=[2], reduce=[], reduce_concat=[2])",
        "Genotype(normal=[('skip_connect', 0)] * 10**9, normal_concat=range(10**12))",
        json.dumps(base | {"normal": [[["skip_connect", 10**30]]] * 4}),
        "[" * 100_000,
    ]
    for text in hostile:
        (folder / "genotype.json").write_text(text)
        assert not accepted(lambda: inputs.find_genotype(tiny(), folder), UserError)
    network = {"format": trained.FORMAT, "version": trained.VERSION, "genotype": base}
    network |= {"class_names": ["a", "b"], "stem": "cifar", "auxiliary": False, "results": {}}
    network |= {"preparation": {"height": 8, "width": 8, "color": "grey"}, "config": {}}
    network |= {"mean": [0.5], "std": [0.5], "cells": 3}
    for channels in (10**15, -1, code, None, 1.5):
        (folder / "network.json").write_text(json.dumps(network | {"channels": channels}))
        assert not accepted(lambda: trained.load(folder), UserError)
    assert not ran.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_no_pickle_and_no_eval():
    """The package neither unpickles nor evaluates text."""
    package = Path(inputs.__file__).parents[1]
    for path in package.rglob("*.py"):
        text = path.read_text()
        for barred in ("import pickle", "pickle.load", " eval(", " exec(", "allow_pickle=True"):
            assert barred not in text, (path, barred)


if __name__ == "__main__":
    pytest.main([__file__, "-n", "2"])
