"""Takes commands up to the point where they would begin to compute, by their own parsers.

    python tests/support/rehearsal.py < COMMANDS > RESULTS

COMMANDS is JSON, a list of argument lists that begin with a module (`-m NAME`) or a script. RESULTS
is JSON, for each (exit code, output). Each command runs in a fork of this process, which is as good
as a process of its own, without the seconds that imports take. What it leads to is replaced: a run
is checked but not begun, a script ends when its options are parsed.
"""

import argparse
import importlib.util
import json
import os
import runpy
import sys
import traceback
import types
import warnings
from pathlib import Path

# Imported before the forks, but not `asap_jax.main`: it reads the arguments when it is imported.
from asap_jax import data
from asap_jax.configs import comparisons, rules
from asap_jax.data.sources import KINDS
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.networks.genotypes import GENOTYPES, is_text
from asap_jax.report import page
from asap_jax.runs import (
    comparing,
    inputs,
    inspection,
    look,
    resolve,
    runner,
    sweep,
    trained,
    watch,
)
from asap_jax.searching import stages

ROOT = Path(__file__).parents[2]
TABLES = ("ablations.py", "transfer.py")


def check_source(source: str) -> None:
    """A known kind, and of tfds' sets a known one; PATH need not exist."""
    kind, _, place = source.partition(":")
    if source != "digits" and not (place and kind in (*KINDS, "tfds")):
        raise UserError(f"unknown data source {source!r}")
    if kind == "tfds" and place.isidentifier():
        data.describe_source(source)


def check_run(config, folder, mode="", command=()) -> None:
    """`runner.run` as far as it needs neither data nor files."""
    rules.check(config)
    mode = mode or config.mode
    resolve._check_mode(config, mode)
    space = stages.make_space(config.search)
    stages.make_strategy(config.search, space, 4)
    check_source(config.data.source)
    cells = config.genotype
    if cells in GENOTYPES or (is_text(cells) and "..." not in cells):
        inputs.find_genotype(config, folder)
    elif cells and not is_text(cells) and "/" not in cells:  # a workdir or file need not exist
        raise UserError(f"config.genotype={cells} is no published name")


def check_comparison(config, folder) -> None:
    """The first run of each method of a comparison."""
    for arguments in comparisons.cases(config).values():
        assert arguments[0].startswith("--config=search:")
    check_source(config.run.data.source)


def check_evaluation(folder, source, split, data_dir) -> None:
    if source:
        check_source(source)


class _Network:
    def export(self, folder):
        return [folder]


def run_command(arguments) -> None:
    sys.argv = ["asap_jax.main", *arguments]
    from asap_jax import main

    runner.run = check_run
    comparing.compare = check_comparison
    inspection.describe = lambda config, folder: check_run(config, folder, "train")
    inspection.evaluate = check_evaluation
    look.look = check_run
    watch.watch = lambda folder: True
    page.write = lambda folder: folder
    trained.load = lambda folder: _Network()
    workdir.read_config = lambda folder: {}
    main.run()


def run_table(runs, *_):
    """`sweep.sweep`: the first of the runs of a table."""
    run_command(list(runs[0].arguments))
    sys.exit(0)


def run_script(name, arguments, run) -> None:
    sys.argv = [name, *arguments]
    if name.endswith("compare_with_torch.py") and importlib.util.find_spec("torch") is None:
        sys.modules["torch"] = types.ModuleType("torch")  # imported before its options are parsed
        sys.modules["torch"].Tensor = object
    sweep.sweep = run_table
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *given):
        found = parse(self, *given)
        if self.prog not in TABLES:
            sys.exit(0)
        return found

    argparse.ArgumentParser.parse_args = parsed
    run(name, run_name="__main__")


def run(arguments) -> None:
    if arguments[0] != "-m":
        run_script(arguments[0], arguments[1:], runpy.run_path)
    elif arguments[1] == "asap_jax.main":
        run_command(arguments[2:])
    else:
        run_script(arguments[1], arguments[2:], runpy.run_module)


def rehearse(arguments) -> tuple[int, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(reader)
        try:
            run(arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as output:
        said = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    check_source("tfds:cifar10")  # imports tfds
    print(json.dumps([rehearse(each) for each in json.load(sys.stdin)]))
