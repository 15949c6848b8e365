"""Runs quark0/darts (PyTorch) and this library on the same weights and compares everything.

    python tests/support/compare_with_torch.py --darts=PATH/TO/darts [--write] [CASE ...]

Needs torch and a checkout of github.com/quark0/darts, both provided by the user. Prints the largest
relative difference of each quantity, in float64 and float32; exits with 1 if one exceeds 1e-8 or
1e-4. `--write` records PyTorch's numbers in tests/networks/golden, for `test_golden.py`.
"""

import argparse
import json
import sys
import types
from pathlib import Path

import jax
import numpy as np
import ours
import parity
import torch

LIMITS = {"float64": 1e-8, "float32": 1e-4}


def load_darts(path):
    """Imports the checkout's models on a machine without CUDA or torchvision."""
    sys.path.insert(0, str(Path(path) / "cnn"))
    for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    import genotypes
    import model
    import model_search

    return genotypes, model, model_search


def build(case, darts):
    genotypes, model, model_search = darts
    if case.kind == "search":
        criterion = torch.nn.CrossEntropyLoss()
        return model_search.Network(case.channels, parity.CLASSES, case.cells, criterion)
    cell = case.network.genotype
    flat = genotypes.Genotype(
        normal=[pair for node in cell.normal for pair in node],
        normal_concat=cell.normal_concat,
        reduce=[pair for node in cell.reduce for pair in node],
        reduce_concat=cell.reduce_concat,
    )
    kind = model.NetworkCIFAR if case.kind == "cifar" else model.NetworkImageNet
    network = kind(case.channels, parity.CLASSES, case.cells, True, flat)
    network.drop_path_prob = 0.0
    return network


def run_torch(network, case, state_dict, images, labels, alphas, dtype):
    """PyTorch's side; returns the same keys as `ours.run`."""
    torch_dtype = getattr(torch, dtype)
    network = network.to(torch_dtype)
    network.load_state_dict({k: torch.as_tensor(v) for k, v in state_dict.items()})
    x = torch.as_tensor(images.transpose(0, 3, 1, 2).copy(), dtype=torch_dtype)
    y = torch.as_tensor(labels)
    leaves = {}
    if case.kind == "search":
        for cell, value in alphas.items():
            leaf = torch.tensor(value, dtype=torch_dtype, requires_grad=True)
            setattr(network, f"alphas_{cell}", leaf)
            leaves[cell] = leaf

    def logits():
        out = network(x)
        return out if isinstance(out, tuple) else (out, None)

    network.eval()
    with torch.no_grad():
        plain, _ = logits()
    network.train()
    main, aux = logits()
    loss = torch.nn.functional.cross_entropy(main, y)
    if aux is not None:
        loss = loss + 0.4 * torch.nn.functional.cross_entropy(aux, y)
    loss.backward()
    return {
        "eval_logits": plain.numpy(),
        "train_logits": main.detach().numpy(),
        "aux_logits": None if aux is None else aux.detach().numpy(),
        "stats": {k: v.numpy() for k, v in network.state_dict().items() if "running_" in k},
        "gradients": {
            k: (torch.zeros_like(v) if v.grad is None else v.grad).numpy()
            for k, v in network.named_parameters()
        },
        "alpha_gradients": {cell: leaf.grad.numpy() for cell, leaf in leaves.items()},
    }


def difference(theirs, ours_):
    """Largest norm of a difference, relative to the norm of the whole quantity."""
    if theirs is None:
        return 0.0
    if not isinstance(theirs, dict):
        theirs, ours_ = {"": theirs}, {"": ours_}
    if theirs.keys() != ours_.keys():
        raise KeyError(sorted(theirs.keys() ^ ours_.keys()))
    worst = 0.0
    whole = np.sqrt(sum(np.square(v).sum() / v.size for v in theirs.values()) / max(len(theirs), 1))
    for key, value in theirs.items():
        error = np.linalg.norm(np.subtract(value, ours_[key])) / np.sqrt(value.size)
        scale = max(np.linalg.norm(value) / np.sqrt(value.size), 1e-3 * whole)
        worst = max(worst, error / scale)
    return worst


def record(result):
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value and parity.digest(value)
        for key, value in result.items()
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--darts", required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    darts = load_darts(options.darts)
    failed = False
    for case in parity.CASES:
        if options.cases and case.name not in options.cases:
            continue
        images, labels, alphas = parity.inputs(case)
        for dtype, limit in LIMITS.items():
            network = build(case, darts)
            shapes = {k: v.shape for k, v in network.state_dict().items()}
            state_dict = parity.weights(shapes, case.seed)
            theirs = run_torch(network, case, state_dict, images, labels, alphas, dtype)
            with jax.enable_x64(dtype == "float64"):
                mine = ours.run(case, state_dict, images, labels, alphas, dtype)
            errors = {key: difference(theirs[key], mine[key]) for key in theirs}
            bad = max(errors.values()) > limit
            failed |= bad
            shown = "  ".join(f"{key} {error:.1e}" for key, error in errors.items())
            print(f"{'FAIL' if bad else 'ok  '} {case.name:24} {dtype}  {shown}", flush=True)
            if options.write and dtype == "float64":
                path = Path(__file__).parents[1] / "networks" / "golden" / f"{case.name}.json"
                path.write_text(json.dumps(record(theirs)) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
