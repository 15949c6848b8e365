"""Imports point one way; nothing imports TensorFlow, nor what only the host loops may use."""

import ast
import graphlib
import subprocess
import sys

from command import ROOT

PACKAGE = ROOT / "asap_jax"

# From the ground up: a room's modules import from their own room and from earlier ones.
ROOMS = "host data layers networks methods training searching configs report runs api main".split()

# Exported files begin as these, which the package reads as text.
TEMPLATES = {"runs.written_out.network_flax", "runs.written_out.network_torch"}


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


def dependencies():
    """{module: the modules of the package that it imports}."""
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    files.pop("")

    def own(name):
        parts = name.removeprefix("asap_jax").strip(".").split(".")
        candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((each for each in candidates if each in files), None)

    return {
        module: {own(name) for name in imports(path) if name.startswith("asap_jax")}
        for module, path in files.items()
    }


def test_rooms_import_one_way_and_no_modules_in_a_circle():
    found = dependencies()
    for module, targets in found.items():
        for target in targets:
            assert target is not None, f"{module} imports a name from the top of the package"
            rooms = [ROOMS.index(name.split(".")[0]) for name in (target, module)]
            assert rooms == sorted(rooms), f"{module} imports {target}"
    assert {module.split(".")[0] for module in found} == set(ROOMS)
    graphlib.TopologicalSorter(found).prepare()


def test_networks_know_no_strategy_and_only_the_host_sees_configs():
    sees_configs = ("configs.", "runs.", "api", "main")
    exceptions = (
        "data.streams",  # grain takes its options from absl's flags
        "host.run_log",  # a progress bar
    )
    for path in PACKAGE.rglob("*.py"):
        module, names = module_name(path), list(imports(path))
        if module.startswith(("layers.", "networks.")):
            assert not any("asap_jax.methods" in name for name in names)
        if not module.startswith(sees_configs) and module not in exceptions:
            assert not any(name.startswith(("ml_collections", "absl", "tqdm")) for name in names)
        if module not in TEMPLATES:
            barred = {"tensorflow", "torch", "pickle"}
            assert not barred & {name.split(".")[0] for name in names}


def test_nothing_imports_a_template_of_an_export():
    found = dependencies()
    assert found.keys() >= TEMPLATES
    assert not any(TEMPLATES & targets for targets in found.values())


def test_reading_data_needs_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from asap_jax import data\n"
        "assert data.load('digits').train_images.shape == (1437, 8, 8, 1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
