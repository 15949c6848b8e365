"""Exported networks give the same logits where this package cannot be imported."""

import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from asap_jax import GENOTYPES, Context, EvalNetwork
from asap_jax.data.augment import normalise
from asap_jax.data.images import Preparation
from asap_jax.host import backend
from asap_jax.host.errors import UserError
from asap_jax.runs.trained import TrainedNetwork
from asap_jax.training import train_loop

ELSEWHERE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("asap_jax", "flax"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
import jax.export, numpy as np
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
np.savez(sys.argv[3], one=program.call(images[:1]), all=program.call(images))
"""


@pytest.fixture(scope="module")
def network():
    module = EvalNetwork(GENOTYPES["ASAP"], 5, channels=4, cells=3, auxiliary=True)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), Context(reference=True))
    rng = np.random.default_rng(0)
    stats = jax.tree.map(
        lambda leaf: leaf + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32),
        variables["batch_stats"],
    )
    variables = jax.device_get({"params": variables["params"], "batch_stats": stats})
    names = tuple("abcde")
    return TrainedNetwork(
        module, variables, names, Preparation(8, 8, "rgb"), (0.5,) * 3, (0.2,) * 3
    )


def expected(network, images):
    seen = normalise(jnp.asarray(images), network.mean, network.std)
    return network.module.apply(network.variables, seen, train_loop.in_use())[0]


def test_the_same_logits_elsewhere_for_any_batch(network, tmp_path):
    files = network.export(tmp_path / "out", ("cpu",))
    assert all(path.exists() for path in files)
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    names = (files[0], tmp_path / "images.npy", tmp_path / "logits.npz")
    subprocess.run([sys.executable, "-c", ELSEWHERE, *map(str, names)], check=True, timeout=120)
    got, want = np.load(tmp_path / "logits.npz"), expected(network, images)
    np.testing.assert_allclose(got["all"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["one"], want[:1], rtol=1e-4, atol=1e-5)


def test_weights_and_description(network, tmp_path):
    network.export(tmp_path, ("cpu",))
    weights = load_file(tmp_path / "network.safetensors")
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    assert len(weights) == len(leaves)
    for at, leaf in leaves:
        name = jax.tree_util.keystr(at, simple=True, separator="/")
        np.testing.assert_array_equal(weights[name], leaf)
    told = json.loads((tmp_path / "network-export.json").read_text())
    assert told["image"] == [8, 8, 3] and told["class_names"] == list("abcde")


def test_a_gpu_gets_a_program_of_its_own(network, tmp_path):
    """Exported for a GPU on a machine without one: XLA's convolutions, full-precision operands."""
    programs = {}
    for path in network.export(tmp_path, ("cpu", "cuda"))[:2]:
        program = jax.export.deserialize(path.read_bytes())
        programs[program.platforms] = program.mlir_module()
    assert set(programs) == {("cpu",), ("cuda",)}
    assert "optimization_barrier" in programs["cuda",]
    assert "optimization_barrier" not in programs["cpu",]
    convolutions = {name: text.count("stablehlo.convolution") for name, text in programs.items()}
    assert convolutions["cuda",] > convolutions["cpu",]
    assert backend.platform() == "cpu"


def test_both_ways_of_writing_give_the_same(network):
    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with backend.traced_for("gpu"):
        got = jax.jit(lambda images: expected(network, images))(images)
    np.testing.assert_allclose(got, expected(network, images), rtol=1e-4, atol=1e-5)


def test_a_platform_that_there_is_not(network, tmp_path):
    with pytest.raises(UserError, match="'gpu' is none of cpu, cuda, rocm, tpu"):
        network.export(tmp_path, ("gpu",))


def test_formats(network, tmp_path):
    def names(*formats):
        return [path.name for path in network.export(tmp_path, ("cpu",), *formats)]

    with_weights = ["network.safetensors", "network_torch.py", "network-export.json"]
    assert names(("torch",)) == names("torch") == with_weights
    told = json.loads((tmp_path / "network-export.json").read_text())
    assert told["files"] == with_weights[:-1]
    assert names(("stablehlo",)) == ["network.cpu.jaxexport", "network-export.json"]
    everything = {*with_weights, "network.cpu.jaxexport", "network_flax.py"}
    assert set(names()) == everything


def test_formats_that_there_are_not(network, tmp_path):
    with pytest.raises(UserError, match="'onnx' is none of stablehlo, safetensors, flax, torch"):
        network.export(tmp_path, formats=("onnx",))
    with pytest.raises(UserError, match="formats names none"):
        network.export(tmp_path, formats=())


def test_without_a_package(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"needs the package safetensors: pip install"):
        network.export(tmp_path, formats=("flax",))
    with pytest.warns(UserWarning, match="without safetensors, flax, torch: .* pip install"):
        files = network.export(tmp_path, ("cpu",))
    assert [path.name for path in files] == ["network.cpu.jaxexport", "network-export.json"]
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match="needs the package flatbuffers"):
        network.export(tmp_path)


def test_a_folder_that_cannot_be_made(network, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to: .* takes another folder"):
        network.export(tmp_path / "file", ("cpu",))
