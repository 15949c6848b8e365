"""Imports point one way, and nothing imports TensorFlow or what only the host loops may see."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "asap_jax"

METHODS = "asap asap_pac darts edas gdas gradual p_darts pc_darts random snas".split()

# From the root up: a module may import from its own line's modules' predecessors only.
LAYERS = [
    {
        "backend",
        "compiling",
        "errors",
        "starting",
        "windows",
        "report.charts",
        "report.pictures",
    },
    {
        "batch_norm",
        "convolution",
        "schedules",
        "metrics",
        "compile_cache",
        "compiling",
        "losses",
    },
    {"depthwise", "pooling", "checkpoint", "memory", "workdir", "interruption", "data.operations"},
    {"ops", "lock", "loop", "precisions", "data.autoaugment", "data.jitter"},
    {"spaces"},
    {"genotypes", "passes"},
    {"benchmarks", "relaxation", "edge_scan", "report.cells"},
    {"edges_unrolled"},
    {"plans"},
    {"cells", "derive", "pruning"},
    {"networks", "bilevel", "optim", "parallel", "data.splits", "data.batches", "data.augment"},
    {
        "collapse",
        "theory",
        "export",
        "data.images",
        "data.tfds_prepare",
        "costs",
        "strategies.base",
        "evaluation",
    },
    {"data.dataset", "data.kept"},
    {"data.opened"},
    {"data.layouts"},
    {"data.tables"},
    {"data.archives", "data.folders", "data.reading", "data.roles", "data.tfds_read"},
    {"data.sources"},
    {"data.streams"},
    {"data", *(f"strategies.{name}" for name in METHODS)},
    {"strategies", "report"},
    {"search_step"},
    {"train_step", "presets", "planned_step"},
    {"search_loop", "train_loop", "recipes"},
    {"portable"},
    {"trained", "inputs", "command_line"},
    {"report.page"},
    {"job", "inspection"},
    {"api", "main"},
]


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def own(name, known):
    """The package's module that an import name belongs to."""
    parts = name.removeprefix("asap_jax").strip(".").split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in known:
            return ".".join(parts[:length])
    return None


def test_direction():
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    files.pop("")
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    assert files.keys() == level.keys()
    for module, path in files.items():
        for name in imports(path):
            if name.startswith("asap_jax"):
                target = own(name, level)
                assert target is not None, f"{module} imports {name}"
                assert level[target] < level[module], f"{module} imports {target}"


def test_networks_know_no_strategy_and_only_the_host_sees_configs():
    host = {
        "api",
        "command_line",
        "data.streams",  # grain takes its options from absl's flags
        "inputs",
        "inspection",
        "job",
        "main",
        "presets",
        "metrics",
        "recipes",
        "trained",
    }
    for path in PACKAGE.rglob("*.py"):
        module, names = module_name(path), list(imports(path))
        if module in ("ops", "cells", "networks", "edge_scan", "relaxation"):
            assert not any("strategies" in name for name in names)
        if module not in host:
            assert not any(name.startswith(("ml_collections", "absl", "tqdm")) for name in names)
        assert not any(name.split(".")[0] in ("tensorflow", "torch", "pickle") for name in names)


def test_reading_data_needs_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from asap_jax import data\n"
        "assert data.load('digits').train_images.shape == (1437, 8, 8, 1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
