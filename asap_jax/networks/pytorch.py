"""Converts weights from and to PyTorch state dicts of quark0/darts' three networks.

Its search network corresponds to `Supernet`, its NetworkCIFAR and NetworkImageNet to `EvalNetwork`.
One table of correspondences serves both directions; our side uses NumPy arrays, so torch is not
required.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.layers.ops import Context
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.models import EvalNetwork, Supernet, reductions

# Our layer name -> its position in PyTorch's module.
_SEPARABLE = {
    "depthwise_1": "op.1",
    "pointwise_1": "op.2",
    "norm_1": "op.3",
    "depthwise_2": "op.5",
    "pointwise_2": "op.6",
    "norm_2": "op.7",
}
_DILATED = {"depthwise": "op.1", "pointwise": "op.2", "norm": "op.3"}
_REDUCE = {"conv_1": "conv_1", "conv_2": "conv_2", "norm": "bn"}
_RELU_CONV_NORM = {"conv": "op.1", "norm": "op.2"}
_OPERATIONS = {
    "sep_conv_3x3": _SEPARABLE,
    "sep_conv_5x5": _SEPARABLE,
    "sep_conv_7x7": _SEPARABLE,
    "dil_conv_3x3": _DILATED,
    "dil_conv_5x5": _DILATED,
    "skip_connect": _REDUCE,
    "conv_7x1_1x7": {"conv_1x7": "1", "conv_7x1": "2", "norm": "3"},
    "max_pool_3x3": {"norm": "1"},
    "avg_pool_3x3": {"norm": "1"},
    "none": {},
}
_OUTSIDE_CELLS = {
    "stem": {"conv": "0", "norm": "1"},
    "stem0": {"conv_1": "0", "norm_1": "1", "conv_2": "3", "norm_2": "4"},
    "stem1": {"conv": "1", "norm": "2"},
    "auxiliary_head": {
        "conv_1": "features.2",
        "norm_1": "features.3",
        "conv_2": "features.5",
        "norm_2": "features.6",
        "classifier": "classifier",
    },
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_ALPHAS = {"normal": "alphas_normal", "reduce": "alphas_reduce"}


class _Entry(NamedTuple):
    """One tensor: PyTorch's key, our path, our row in a stack (or None), our shape."""

    key: str
    path: tuple[str, ...]
    row: int | None
    shape: tuple[int, ...]


def from_torch(state_dict: Mapping, network: Supernet | EvalNetwork) -> dict:
    """Converts a PyTorch state dict to our variables.

    Args:
      state_dict: torch tensors or NumPy arrays by PyTorch's keys. `num_batches_tracked` is ignored,
        as is the auxiliary head if the network has none.
      network: the corresponding module. A Supernet's candidates must be in the order of its space:
        `spaces.DARTS` matches quark0/darts.

    Returns:
      {"params", "batch_stats"}, and "alphas" {cell type: [E, O]} if the state dict has
      alphas_normal and alphas_reduce (quark0/darts' own does not: its alphas are not parameters).

    Raises:
      ValueError: keys are missing, unexpected or of another shape; the message lists all of them.
    """
    arrays = {
        key: _array(value)
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }
    alphas = {}
    if isinstance(network, Supernet):
        alphas = {cell: arrays.pop(key) for cell, key in _ALPHAS.items() if key in arrays}
        _check_alphas(alphas, network.space)
    if isinstance(network, EvalNetwork) and not network.auxiliary:
        arrays = {k: v for k, v in arrays.items() if not k.startswith("auxiliary_head.")}
    stem = arrays.get("stem.0.weight", arrays.get("stem0.0.weight"))
    entries = _entries(network, 3 if stem is None or stem.ndim != 4 else stem.shape[1])
    _compare(arrays, entries)
    leaves: dict[tuple[str, ...], list] = {}
    for entry in entries:
        value = _to_ours(arrays[entry.key], entry)
        leaves.setdefault(entry.path, []).append(value)
    variables: dict = {"params": {}, "batch_stats": {}}
    stacked = {entry.path for entry in entries if entry.row is not None}
    for path, values in leaves.items():
        node = variables
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = jnp.asarray(np.stack(values) if path in stacked else values[0])
    if alphas:
        variables["alphas"] = {cell: jnp.asarray(value) for cell, value in alphas.items()}
    return variables


def to_torch(variables: Mapping, network: Supernet | EvalNetwork) -> dict[str, np.ndarray]:
    """Converts our variables to a PyTorch state dict of NumPy arrays; inverse of `from_torch`.

    Load it with `model.load_state_dict({k: torch.as_tensor(v) for k, v in ...})`.
    """
    stem = variables["params"].get("stem", variables["params"].get("stem0"))
    kernel = stem["conv"] if "conv" in stem else stem["conv_1"]
    state_dict = {}
    for entry in _entries(network, kernel["kernel"].shape[2]):
        value = variables
        for name in entry.path:
            value = value[name]
        value = np.asarray(value) if entry.row is None else np.asarray(value)[entry.row]
        state_dict[entry.key] = _to_torch(value, entry)
        if entry.key.endswith("running_var"):
            tracked = entry.key.replace("running_var", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    for cell, key in _ALPHAS.items():
        if "alphas" in variables:
            state_dict[key] = np.asarray(variables["alphas"][cell])
    return state_dict


def _check_alphas(alphas, space):
    shape = (len(space.edges), len(space.candidates))
    if alphas and (set(alphas) != set(_ALPHAS) or any(a.shape != shape for a in alphas.values())):
        found = {_ALPHAS[cell]: value.shape for cell, value in alphas.items()}
        raise ValueError(
            f"a state dict holds none of {', '.join(_ALPHAS.values())} or both, each of shape "
            f"{shape} [edges, candidates]; got {found}"
        )


def _place(name, layer):
    """The position of a layer within PyTorch's operation."""
    if name not in _OPERATIONS:
        raise ValueError(
            f"the operation {name!r} has no counterpart in quark0/darts, so its weights cannot be "
            "exchanged"
        )
    return _OPERATIONS[name][layer]


def _entries(network, image_channels) -> list[_Entry]:
    described = network.space if isinstance(network, Supernet) else network.genotype
    altered = isinstance(network, EvalNetwork) and (network.squeeze or network.output != "concat")
    if described.skeleton != "darts" or getattr(network, "partial_channels", 1) > 1 or altered:
        raise ValueError(
            "weights are exchanged with the networks of quark0/darts; those of another skeleton, "
            "with partial channels, squeeze and excitation or convolved outputs have no "
            "counterpart there"
        )
    size = 64 if getattr(network, "stem", "cifar") == "imagenet" else 32
    x = jax.ShapeDtypeStruct((1, size, size, image_channels), jnp.result_type(float))
    key, plain = jax.random.key(0), Context(reference=True)
    if isinstance(network, Supernet):
        shape = (len(network.space.edges), len(network.space.candidates))
        mixture = Mixture(jnp.ones(shape), jnp.ones(shape, bool))
        mixtures = {"normal": mixture, "reduce": mixture}
        variables = jax.eval_shape(lambda x: network.init(key, x, mixtures, plain), x)
    else:
        variables = jax.eval_shape(lambda x: network.init(key, x, plain), x)
    entries = []
    for path, leaf in jax.tree.flatten_with_path(variables)[0]:
        names = tuple(entry.key for entry in path)
        _, top, *rest = names
        if top.startswith("cell"):
            index = int(top.removeprefix("cell"))
            entries += _cell_entries(network, index, names, rest, leaf.shape)
        else:
            prefix = _OUTSIDE_CELLS.get(top, {}).get(rest[0])
            prefix = f"{top}.{prefix}" if prefix else top
            entries.append(_Entry(f"{prefix}.{_LEAVES[rest[-1]]}", names, None, leaf.shape))
    return entries


def _cell_entries(network, index, names, rest, shape):
    group, layer, leaf = rest[0], rest[-2], _LEAVES[rest[-1]]
    reduction = index in reductions(network.cells)
    if group.startswith("stride"):
        name = rest[1]
        place = f"{network.space.candidates.index(name)}.{_place(name, layer)}"
        edges = network.space.by_stride(reduction)[int(group.removeprefix("stride"))]
        return [
            _Entry(f"cells.{index}._ops.{edge}._ops.{place}.{leaf}", names, row, shape[1:])
            for row, edge in enumerate(edges)
        ]
    if group.startswith("edge"):
        edge = int(group.removeprefix("edge"))
        nodes = network.genotype.reduce if reduction else network.genotype.normal
        name = [op for node in nodes for op, _ in node][edge]
        place = f"_ops.{edge}.{_place(name, layer)}"
    else:
        reduces = group == "preprocess0" and _follows_reduction(network, index)
        place = f"{group}.{(_REDUCE if reduces else _RELU_CONV_NORM)[layer]}"
    return [_Entry(f"cells.{index}.{place}.{leaf}", names, None, shape)]


def _follows_reduction(network, index):
    if index == 0:
        return getattr(network, "stem", "cifar") == "imagenet"
    return index - 1 in reductions(network.cells)


def _torch_shape(entry):
    return _to_torch(np.empty(entry.shape, np.bool_), entry).shape


def _to_torch(value, entry):
    if entry.path[-1] != "kernel":
        return value
    if entry.path[-2].startswith("depthwise"):
        return value.transpose(2, 0, 1)[:, None]
    if entry.path[-2] == "classifier":
        return value.T
    if value.ndim == 2:
        return value.T[:, :, None, None]
    return value.transpose(3, 2, 0, 1)


def _to_ours(value, entry):
    if entry.path[-1] != "kernel":
        return value
    if entry.path[-2].startswith("depthwise"):
        return value[:, 0].transpose(1, 2, 0)
    if entry.path[-2] == "classifier":
        return value.T
    if len(entry.shape) == 2:
        return value[:, :, 0, 0].T
    return value.transpose(2, 3, 1, 0)


def _array(value) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _compare(arrays, entries):
    expected = {entry.key: _torch_shape(entry) for entry in entries}
    missing = sorted(expected.keys() - arrays.keys())
    extra = sorted(arrays.keys() - expected.keys())
    misshapen = [
        f"{key} is {arrays[key].shape}, expected {shape}"
        for key, shape in expected.items()
        if key in arrays and arrays[key].shape != shape
    ]
    problems = [
        f"{kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("not expected", extra), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise ValueError(
            "the state dict does not belong to this network (genotype, channels, cells, classes or "
            f"candidates differ); {'; '.join(problems)}"
        )
