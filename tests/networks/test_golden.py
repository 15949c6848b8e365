"""PyTorch's numbers (quark0/darts, float64), without torch: see compare_with_torch.py."""

import json
from pathlib import Path

import jax
import numpy as np
import ours
import parity
import pytest

from asap_jax import from_torch, to_torch

GOLDEN = Path(__file__).parent / "golden"
QUICK = ("search", "imagenet_ASAP")


def torch_shapes(case):
    """{key: shape} of PyTorch's state dict, derived from ours."""
    x = jax.numpy.zeros((1, 64, 64, 3))
    if case.kind == "search":
        full = parity.full_mixtures()
        make = lambda: case.network.init(jax.random.key(0), x, full)  # noqa: E731
    else:
        make = lambda: case.network.init(jax.random.key(0), x)  # noqa: E731
    shapes = jax.eval_shape(make)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    return {key: value.shape for key, value in to_torch(empty, case.network).items()}


def check(case):
    golden = json.loads((GOLDEN / f"{case.name}.json").read_text())
    images, labels, alphas = parity.inputs(case)
    with jax.enable_x64(True):
        state_dict = parity.weights(torch_shapes(case), case.seed)
        got = ours.run(case, state_dict, images, labels, alphas, "float64")
    for key in ("eval_logits", "train_logits", "aux_logits"):
        if golden[key] is not None:
            np.testing.assert_allclose(got[key], golden[key], rtol=1e-8, atol=1e-10)
    for key in ("stats", "gradients", "alpha_gradients"):
        digest, want = parity.digest(got[key]), golden[key] or {}
        assert digest.keys() == want.keys()
        scale = max((abs(number) for numbers in want.values() for number in numbers), default=0)
        for name in want:
            np.testing.assert_allclose(
                digest[name], want[name], rtol=1e-8, atol=1e-11 * scale, err_msg=f"{key} {name}"
            )


@pytest.mark.parametrize("case", [c for c in parity.CASES if c.name in QUICK], ids=lambda c: c.name)
def test_golden(case):
    check(case)


@pytest.mark.parametrize("name", ["cifar_ASAP"])
@pytest.mark.slow
def test_golden_in_float32(name):
    """The logits and auxiliary logits to 1e-4; compare_with_torch.py covers the rest."""
    case = next(c for c in parity.CASES if c.name == name)
    golden = json.loads((GOLDEN / f"{case.name}.json").read_text())
    images, labels, alphas = parity.inputs(case)
    state_dict = parity.weights(torch_shapes(case), case.seed)
    got = ours.run(case, state_dict, images, labels, alphas, "float32")
    for key in ("eval_logits", "train_logits", "aux_logits"):
        if golden[key] is not None:
            np.testing.assert_allclose(got[key], golden[key], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for c in parity.CASES if c.name not in QUICK], ids=lambda c: c.name
)
def test_golden_of_every_other_genotype(case):
    check(case)


@pytest.mark.parametrize("name", ["search", "cifar_DARTS_V1", "imagenet_ASAP"])
def test_to_torch_is_the_reverse(name):
    case = next(c for c in parity.CASES if c.name == name)
    state_dict = parity.weights(torch_shapes(case), case.seed)
    with jax.enable_x64(True):
        back = to_torch(from_torch(state_dict, case.network), case.network)
    assert back.keys() == state_dict.keys()
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value)


def test_one_error_names_every_key():
    case = next(c for c in parity.CASES if c.name == "cifar_DARTS_V1")
    state_dict = parity.weights(torch_shapes(case), case.seed)
    del state_dict["classifier.bias"]
    state_dict["cells.9.extra"] = np.zeros(2)
    state_dict["stem.1.weight"] = np.zeros(5)
    with pytest.raises(ValueError) as caught:
        from_torch(state_dict, case.network)
    message = str(caught.value)
    assert "missing: classifier.bias" in message
    assert "not expected: cells.9.extra" in message
    assert "stem.1.weight is (5,), expected (12,)" in message


def test_the_auxiliary_head_is_optional():
    case = next(c for c in parity.CASES if c.name == "cifar_DARTS_V1")
    state_dict = parity.weights(torch_shapes(case), case.seed)
    without = case.network.clone(auxiliary=False)
    variables = from_torch(state_dict, without)
    assert "auxiliary_head" not in variables["params"]
    assert not any(key.startswith("auxiliary_head") for key in to_torch(variables, without))


def test_alphas_travel_along_where_the_state_dict_has_them():
    case = parity.CASES[0]
    state_dict = parity.weights(torch_shapes(case), case.seed)
    state_dict |= {"alphas_normal": np.ones((14, 8)), "alphas_reduce": np.zeros((14, 8))}
    variables = from_torch(state_dict, case.network)
    assert variables["alphas"]["normal"].sum() == 112
    assert to_torch(variables, case.network)["alphas_reduce"].shape == (14, 8)
    del state_dict["alphas_reduce"]
    with pytest.raises(ValueError, match="holds none of alphas_normal, alphas_reduce or both"):
        from_torch(state_dict, case.network)
