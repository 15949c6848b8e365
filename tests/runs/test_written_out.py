"""Exported source files give the network's numbers where this package cannot be imported."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest
from command import ROOT

from asap_jax import GENOTYPES, SPACES, Context, EvalNetwork, Genotype
from asap_jax.data.augment import normalise
from asap_jax.data.images import Preparation
from asap_jax.host.errors import UserError
from asap_jax.layers import ops
from asap_jax.layers.batch_norm import MOMENTUM, blend
from asap_jax.networks.spaces import SKELETONS
from asap_jax.runs.trained import TrainedNetwork
from asap_jax.runs.written_out import code, flax_code, source, torch_code
from asap_jax.training import train_loop

CLASS_NAMES = ("plain", 'with "quotes"', "it's", "Stra\u00dfe", "back\\slash\n")

# Runs network_flax.py or network_torch.py of each folder; answers are in PyTorch's or our layout.
BEGIN = """
import importlib.util, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "asap_jax":
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
import numpy as np
def imported(folder, name):
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
for folder in sys.argv[1:]:
    images = np.load(f"{folder}/images.npy")
    weights = f"{folder}/network.safetensors"
"""
ELSEWHERE = {
    "flax": """
    import jax
    n = imported(folder, "network_flax")
    variables = n.load(weights)
    train = jax.jit(lambda v, x: n.Network().apply(v, x, train=True, mutable=["batch_stats"]))
    trained, new = train(variables, n.normalize(images))
    stem = new["batch_stats"].get("stem") or new["batch_stats"]["stem0"]
    mean = (stem.get("norm") or stem["norm_1"])["mean"]
    tested, names = n.logits(variables, images), n.predict(variables, images)
    np.savez(f"{folder}/flax.npz", tested=tested, trained=trained, mean=mean, names=names)
""",
    "torch": """
    import torch
    torch.set_num_threads(1)
    n = imported(folder, "network_torch")
    network = n.load(weights)
    with torch.no_grad():
        x = n.normalize(images)
        tested, names = network(x), n.predict(network, images)
        trained = network.train()(x)
    stem = network.stem if hasattr(network, "stem") else network.stem0
    mean = (stem.norm if hasattr(stem, "norm") else stem.norm_1).running_mean
    np.savez(f"{folder}/torch.npz", tested=tested, trained=trained, mean=mean, names=names)
""",
}


def random_genotype(space, seed):
    """Nodes of one to five inputs, the first from the node before; some stay unused."""
    rng, space = np.random.default_rng(seed), SPACES[space]
    effective = [name for name in space.candidates if name != "none"]

    def node(number):
        others = [
            (str(rng.choice(space.candidates)), int(rng.integers(number)))
            for _ in range(rng.integers(0, 5))
        ]
        return [(str(rng.choice(effective)), number - 1), *others]

    def cell():
        nodes = [node(number) for number in space.intermediate]
        if space.skeleton == "nasbench201":
            return nodes, (space.nodes,)
        return nodes, sorted(rng.choice(space.intermediate, rng.integers(1, 5), replace=False))

    cells = [each for _ in SKELETONS[space.skeleton].cell_types for each in cell()]
    return Genotype(*cells, skeleton=space.skeleton)


def untrained(genotype, cells=3, size=8, color="rgb", **options):
    """A network with random weights."""
    preparation = Preparation(size, size, color)
    module = EvalNetwork(genotype, len(CLASS_NAMES), channels=4, cells=cells, **options)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if path[-1].key == "kernel":
            value = rng.normal(size=leaf.shape) * (leaf.size / leaf.shape[-1]) ** -0.5
        else:
            value = rng.uniform(0.5, 1.5, leaf.shape) - (path[-1].key in ("bias", "mean"))
        return value.astype(np.float32)

    shapes = train_loop.variable_shapes(module, preparation.shape)
    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    channels = preparation.shape[-1]
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    return TrainedNetwork(module, variables, CLASS_NAMES, preparation, mean, std)


class Answers(NamedTuple):
    """Logits [N, K] by running statistics and by those of the batch, and the stem's new mean."""

    tested: np.ndarray
    trained: np.ndarray
    mean: np.ndarray


def with_statistics(network, images):
    """The network with running statistics near those of the images, and its answers."""
    module = dataclasses.replace(network.module, auxiliary=False)

    @jax.jit
    def run(variables, images):
        seen, old = normalise(images, network.mean, network.std), variables["batch_stats"]
        context = Context(train=True, reference=True)
        (trained, _), new = module.apply(variables, seen, context, mutable=["batch_stats"])
        new = {**old, **new["batch_stats"]}  # the auxiliary head keeps its own
        batch = jax.tree.map(lambda old, new: (new - MOMENTUM * old) / (1 - MOMENTUM), old, new)
        stats = jax.tree.map(lambda value: 1.1 * value + 0.05, batch)
        tested, _ = module.apply({**variables, "batch_stats": stats}, seen, train_loop.in_use())
        mean = stem_mean(blend(stats, batch))
        return {**variables, "batch_stats": stats}, Answers(tested, trained, mean)

    variables, answers = jax.device_get(run(network.variables, images))
    return dataclasses.replace(network, variables=variables), answers


def stem_mean(stats):
    return stats["stem"]["norm"]["mean"] if "stem" in stats else stats["stem0"]["norm_1"]["mean"]


EMPTY = Genotype(
    [[], [("skip_connect", 0)], [("none", 2), ("conv_7x1_1x7", 1), ("nor_conv_3x3", 3)]],
    [2, 3, 4],
    [[("skip_connect", 1)], [], [("sep_conv_7x7", 2), ("nor_conv_1x1", 1), ("conv_7x1_1x7", 1)]],
    [3, 4],
)
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|skip_connect~2|"
FEW = {
    "asap": lambda: untrained(GENOTYPES["ASAP"], squeeze="early", auxiliary=True),
    "darts": lambda: untrained(
        random_genotype("darts", 1), color="grey", output="conv", squeeze="every"
    ),
    "imagenet": lambda: untrained(random_genotype("asap", 2), size=32, stem="imagenet"),
    "nasbench201": lambda: untrained(Genotype.parse(CELL)),
    "empty": lambda: untrained(EMPTY),
}
OPTIONS = [(output, squeeze) for output in ("concat", "conv") for squeeze in ("", "early", "every")]


def many_networks():
    """(name, a function that makes the network) of published and random cells."""
    for index, (name, genotype) in enumerate(GENOTYPES.items()):
        given = {"stem": "imagenet", "size": 32} if index % 2 else {}
        yield name, partial(untrained, genotype, **given)
    for seed, (output, squeeze) in enumerate(OPTIONS * 2):
        color = "rgb" if seed < len(OPTIONS) else "grey"
        genotype = random_genotype("asap" if (seed % 2) ^ (color == "grey") else "darts", seed)
        yield (
            f"random-{seed}",
            partial(untrained, genotype, 5, color=color, output=output, squeeze=squeeze),
        )
    for seed in range(3):
        yield f"nasbench201-{seed}", partial(untrained, random_genotype("nasbench201", seed))


def exported(networks, folder):
    """{folder: answers}, with the images in the folder."""
    told = {}
    for name, make in networks.items():
        network, place = make(), folder / name
        images = np.random.default_rng(1).integers(0, 256, (6, *network.preparation.shape))
        network, told[place] = with_statistics(network, images.astype(np.uint8))
        network.export(place, formats=("flax", "torch"))
        np.save(place / "images.npy", images.astype(np.uint8))
    return told


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return exported(FEW, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return exported(dict(many_networks()), tmp_path_factory.mktemp("many"))


def check(framework, networks):
    program = BEGIN + ELSEWHERE[framework]
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-I", "-c", program, *map(str, networks)]
    subprocess.run(command, check=True, timeout=1200, env={**os.environ, **kept})
    for folder, answers in networks.items():
        got = np.load(folder / f"{framework}.npz")
        for kind, tolerance in (("tested", 1e-5), ("trained", 1e-4), ("mean", 1e-5)):
            np.testing.assert_allclose(
                got[kind],
                getattr(answers, kind),
                rtol=tolerance,
                atol=tolerance,
                err_msg=f"{kind} of {folder.name}",
            )
        assert got["names"].tolist() == [CLASS_NAMES[i] for i in answers.tested.argmax(-1)]
        # The logits depend on the images, by far more than the tolerance.
        assert np.ptp(answers.tested, 0).max() > 0.01, folder


def test_flax_elsewhere(few):
    check("flax", few)


def test_torch_elsewhere(few):
    pytest.importorskip("torch", reason="PyTorch is not installed, nor a dependency")
    check("torch", few)


@pytest.mark.slow
def test_flax_elsewhere_for_many_networks(many):
    check("flax", many)


@pytest.mark.slow
def test_torch_elsewhere_for_many_networks(many):
    pytest.importorskip("torch", reason="PyTorch is not installed, nor a dependency")
    check("torch", many)


@pytest.mark.slow
def test_onnx_by_the_documented_way(few):
    for package in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed, nor a dependency")
    (snippet,) = re.findall(
        r"```python\n([^`]*torch\.onnx\.export[^`]*)```", (ROOT / "docs/running.md").read_text()
    )
    for folder, answers in few.items():
        program = snippet + IN_ONNX
        subprocess.run([sys.executable, "-c", program], check=True, timeout=300, cwd=folder)
        got = np.load(folder / "onnx.npz")
        np.testing.assert_allclose(got["all"], answers.tested, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got["one"], answers.tested[:1], rtol=1e-5, atol=1e-5)


IN_ONNX = """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("network.onnx")
x = normalize(np.load("images.npy")).numpy()
everything, one = (session.run(None, {session.get_inputs()[0].name: part}) for part in (x, x[:1]))
np.savez("onnx.npz", all=everything[0], one=one[0])
"""


def check_style(networks):
    files = [str(path) for folder in networks for path in folder.glob("*.py")]
    assert len(files) == 2 * len(networks)
    for command in (
        ("check", "--select=E,F,I,B,UP,C4", "--ignore=E741,E501"),
        ("format", "--diff"),
        ("format", "--diff", "--line-length=100"),
    ):
        arguments = [sys.executable, "-m", "ruff", *command, "--isolated", *files]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_formatted(few):
    check_style(few)


@pytest.mark.slow
def test_many_files_are_formatted(many):
    check_style(many)


def test_only_needed_operations_are_in_a_file(few):
    (folder,) = (folder for folder in few if folder.name == "nasbench201")
    for name in ("network_flax.py", "network_torch.py"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "class ReluConvNorm" in text and "def avg_pool" in text
        assert not any(word in text for word in ("Separable", "depthwise(", "max_pool", "Squeeze"))


def test_every_operation_can_be_written_out():
    own = {name for name, build in ops.OPERATIONS.items() if build.__module__ == ops.__name__}
    assert own == flax_code.OPERATIONS.keys() == torch_code.OPERATIONS.keys()


def mine(channels, stride, affine):
    return ops.OPERATIONS["max_pool_3x3"](channels, stride, affine)


@pytest.fixture
def with_own_operation(monkeypatch):
    monkeypatch.setitem(ops.OPERATIONS, "mine", mine)
    node = [("mine", 0), ("sep_conv_3x3", 1)]
    return untrained(Genotype([node], [2], [node], [2]))


def test_own_operations_are_refused_by_name(with_own_operation, tmp_path):
    with pytest.raises(UserError, match=r"'mine' is not one of asap_jax's own.*stablehlo"):
        with_own_operation.export(tmp_path, formats=("flax",))
    assert not list(tmp_path.iterdir())


def test_an_export_of_everything_says_what_it_goes_without(with_own_operation, tmp_path):
    with pytest.warns(UserWarning, match=r"goes without flax, torch: .*'mine'"):
        files = with_own_operation.export(tmp_path, ("cpu",))
    names = [path.name for path in files]
    assert names == ["network.cpu.jaxexport", "network.safetensors", "network-export.json"]


def test_an_operation_that_took_the_name_of_one_of_ours_is_refused(monkeypatch):
    monkeypatch.setitem(ops.OPERATIONS, "max_pool_3x3", mine_too)
    with pytest.raises(UserError, match="'max_pool_3x3' is not one of asap_jax's own"):
        source.written(untrained(GENOTYPES["ASAP"]), "torch")


def mine_too(channels, stride, affine):
    return ops.stateless(lambda x, context: x[:, ::stride, ::stride])


def test_long_sums_and_lists_are_broken():
    terms = [f"self.edge{index}(x0)" for index in range(9)]
    lines = code.summed("x9", terms)
    assert len(lines) == 3 and all(line.startswith("x9 = x9 + ") for line in lines[1:])
    assert all(len(line) <= 80 for line in lines)
    assert code.listed("a = (", ["1"], ")") == ["a = (1,)"]
    assert code.listed("a = f(", ["1"], ")") == ["a = f(1)"]
    assert code.listed("a = [", ["1" * 90], "]") == ["a = [", "    " + "1" * 90 + ",", "]"]
    for text in (*CLASS_NAMES, "'\"", "''\"", '\'""'):
        assert ast.literal_eval(code.string(text)) == text
