"""Shared by the benchmarks: workers in their own processes, timed in turns; incremental JSON.

A worker is a process that builds something once, reports what that took, and then does one step
each time it is asked to. Two workers that take turns see the same noise, so their ratio comes from
one run; each has its own memory, so peaks are separate.
"""

import argparse
import gzip
import importlib.metadata
import itertools
import json
import math
import os
import platform
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("asap_jax", "jax", "jaxlib", "flax", "grain", "optax", "numpy", "pillow", "torch")


def environment() -> dict:
    """Machine, libraries and date of a measurement."""

    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES if version(name)},
    }


def spread(seconds: list[float]) -> dict:
    """Median, extremes and count."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "count": len(seconds),
    }


def timed(function, arguments, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one warm-up call."""
    import jax  # not needed by PyTorch's workers

    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


class Results:
    """A JSON file that is complete after each case."""

    def __init__(self, path: str | None, settings: dict):
        self._path = path and Path(path)
        self._record = {"environment": environment(), "settings": settings, "cases": []}

    def add(self, case: dict) -> None:
        self._record["cases"].append(case)
        print(json.dumps(case), flush=True)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._record, indent=2) + "\n")


class Worker:
    """The client of `serve`: a script in this folder, started with --worker and options.

    It builds in parallel with others; `built` waits for it. An answer later than `deadline` (of
    `time.monotonic`) raises TimeoutError.
    """

    def __init__(self, name: str, script: str, options: Iterable[str], deadline: float = math.inf):
        self.name, self.seconds, self.deadline, self._built = name, [], deadline, None
        self._more = {}
        self._process = subprocess.Popen(
            [sys.executable, script, f"--worker={name}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ},  # leave memory to a peer
        )

    @property
    def built(self) -> dict:
        """What building took."""
        if self._built is None:
            self._built = self._answer()
        return self._built

    def step(self, argument: str = "") -> float:
        """Does one step, with an optional argument; returns its seconds."""
        seconds = self.built and self._ask(f"step {argument}")["seconds"]
        self.seconds.append(seconds)
        return seconds

    def warm_up(self) -> None:
        """Does the first step, which is reported separately."""
        self._more["first_step_seconds"] = self.step()
        self.seconds.clear()

    def in_a_row(self, steps: int) -> None:
        """Seconds per step of `steps` steps, each started before the last one's end is known."""
        self._more["seconds_in_a_row"] = self._ask(f"row {steps}")["seconds"]

    def profile(self) -> None:
        """Profiles the kernels of a step on the device; see `kernels`."""
        self._more["profile"] = self._ask("profile")

    def close(self) -> dict:
        """Ends the worker; returns what it measured: build, steps, peak memory."""
        peak = self._ask("close")
        self._process.wait(30)
        return {**self.built, "step_seconds": spread(self.seconds), **self._more, **peak}

    def _ask(self, word):
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self):
        left = self.deadline - time.monotonic()
        wait = None if math.isinf(left) else max(left, 0)
        if not select.select([self._process.stdout], [], [], wait)[0]:
            self.kill()
            raise TimeoutError(f"the worker {self.name} took too long")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self.name} ended with {self._process.wait()}")
        return json.loads(line)


def serve(build: Callable[[], tuple[dict, Callable[..., Callable[[], None]]]]) -> None:
    """Runs a worker: build() -> (what that took, a function that starts a step).

    That function returns another one, which waits for the end of the step.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # libraries' output goes to stderr

    def answer(record):
        os.write(out, (json.dumps(record) + "\n").encode())

    built, step = build()
    answer(built)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "close":
            # Linux counts in kilobytes.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            answer({"peak_bytes": peak} | device_peak())
            return
        if word == "profile":
            answer(kernels(step))
            continue
        steps = int(argument) if word == "row" else 1
        begin = time.perf_counter()
        for _ in range(steps):
            wait = step(*[argument] * (word == "step" and bool(argument)))
        wait()
        answer({"seconds": (time.perf_counter() - begin) / steps})


def device_peak() -> dict:
    """{"device_peak_bytes"}: peak GPU memory of this process's arrays."""
    if "torch" in sys.modules:
        import torch

        return {"device_peak_bytes": torch.cuda.max_memory_allocated()}
    import jax

    told = jax.devices()[0].memory_stats() or {}
    return {"device_peak_bytes": told.get("peak_bytes_in_use", 0)}


def kernels(step: Callable[[], Callable[[], None]], top: int = 40) -> dict:
    """Kernels of a step on a GPU: {"busy_seconds", "kernels", "top": [name, count, seconds]}.

    Busy is the time during which any kernel runs. On other devices there are none.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"
    }
    found, spans = {}, []
    for event in events:
        place = event.get("pid"), event.get("tid")
        on_gpu = "GPU" in processes.get(place[0], "") and "Stream" in threads.get(place, "")
        if event.get("ph") == "X" and on_gpu:
            count, seconds = found.get(event["name"], (0, 0.0))
            found[event["name"]] = count + 1, seconds + event["dur"] / 1e6
            spans.append((event["ts"], event["ts"] + event["dur"]))
    busy, end = 0.0, 0.0
    for first, last in sorted(spans):
        busy, end = busy + max(last - max(first, end), 0), max(end, last)
    longest = sorted(found.items(), key=lambda item: -item[1][1])[:top]
    return {
        "busy_seconds": busy / 1e6,
        "kernels": len(spans),
        "top": [[name[:100], count, seconds] for name, (count, seconds) in longest],
    }


def arguments(description: str, **defaults) -> argparse.ArgumentParser:
    """The options shared by the step benchmarks, with each script's defaults."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--batch", default=defaults["batch"])
    for name in ("channels", "cells", "repeats"):
        parser.add_argument(f"--{name}", type=int, default=defaults[name])
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--cap", type=float, default=300, help="seconds a case may take turns")
    parser.add_argument("--peer", help="checkout of quark0/darts")
    parser.add_argument("--precision", default="auto", help="of ours: see host/precisions.py")
    parser.add_argument(
        "--compiler_options", type=json.loads, default={}, help="of ours: JSON, beside those we set"
    )
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def build(programs: dict[str, tuple[Any, tuple]]) -> tuple[dict, dict[str, Callable]]:
    """Returns (compile times and requirements of the programs, {name: compiled}).

    They are compiled in parallel, as in a search.

    Args:
      programs: {name: (jitted function, its operands)}.
    """
    import jax

    from asap_jax.host.compiling import Compiler

    begin, compiler = time.perf_counter(), Compiler()
    coming = {name: compiler.submit(each, *given) for name, (each, given) in programs.items()}
    compiled = {name: each.result().run for name, each in coming.items()}
    took = {"device": jax.devices()[0].device_kind, "build_seconds": time.perf_counter() - begin}
    compiler.close()
    temporary = [each.memory_analysis().temp_size_in_bytes for each in compiled.values()]
    accessed = [each.cost_analysis().get("bytes accessed", 0) for each in compiled.values()]
    return took | {"temporary_bytes": max(temporary), "bytes_accessed": sum(accessed)}, compiled


def compiler_options(options) -> dict:
    """XLA options for our steps: the package's, plus those given on the command line."""
    from asap_jax.host import compile_cache

    return compile_cache.options() | options.compiler_options


def random_images(count: int, side: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """[count, side, side, 3] float32 and [count] int32."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, side, side, 3)).astype(np.float32)
    return images, rng.integers(0, classes, count).astype(np.int32)


def main(script: str, options: argparse.Namespace, ours: Callable, peer: Callable, keys) -> None:
    """Serves a worker, or compares all combinations of the comma-separated options `keys`."""
    if options.worker:
        serve(lambda: (ours if options.worker == "ours" else peer)(options))
        return
    settings = {key: value for key, value in vars(options).items() if key != "worker"}
    results = Results(options.out, settings)
    names = ["ours", *["darts_channels_last", "darts_nchw"] * bool(options.peer)]
    kept = {key: value for key, value in settings.items() if key not in ("out", *keys)}
    for values in itertools.product(*(settings[key].split(",") for key in keys)):
        case = dict(zip(keys, values, strict=True))
        compare(results, script, case, kept, names, options.repeats, options.cap)


def load_darts(path: str, device: str) -> None:
    """Makes the modules of a quark0/darts checkout importable, without torchvision or CUDA."""
    import torch

    sys.path.insert(0, str(Path(path) / "cnn"))
    for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    if device == "cpu":
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
        torch.cuda.FloatTensor = torch.FloatTensor


def compare(results: Results, script: str, case: dict, options: dict, names, repeats, cap) -> None:
    """Adds a case in which the workers of a script take turns.

    Args:
      results: receives the record.
      script: the file that serves the workers.
      case: what distinguishes this case from others, and {option: value} in addition to `options`.
      options: {option: value} of the script; None values are left out.
      names: the workers; the first is ours.
      repeats, cap: see `take_turns`.
    """
    workers = [Worker(name, script, passed(options | case)) for name in names]
    results.add(case | timed_in_turn(workers, repeats, cap))


def passed(options: dict) -> list[str]:
    """The options as command-line arguments; None values are left out."""
    told = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in options.items()}
    return [f"--{key}={value}" for key, value in told.items() if value is not None]


def timed_in_turn(
    workers: list[Worker], repeats: int, cap: float, row: int = 0, profile: bool = False
) -> dict:
    """The workers' measurements by name, and how many times as fast the first one, ours, is.

    With `row`, each also does as many steps without waiting; with `profile`, ours also profiles its
    kernels.
    """
    take_turns(workers, repeats, cap)
    for worker in workers if row else ():
        worker.in_a_row(row)
    if profile:
        workers[0].profile()
    record = {worker.name: worker.close() for worker in workers}
    medians = {name: told["step_seconds"]["median"] for name, told in record.items()}
    ours = medians.pop(workers[0].name)
    return record | {f"times_as_fast_as_{name}": each / ours for name, each in medians.items()}


def take_turns(workers: list[Worker], repeats: int, cap: float) -> None:
    """Runs each worker in turn, `repeats` times after a warm-up step, or until `cap` seconds."""
    begin = time.monotonic()
    for worker in workers:
        worker.warm_up()
    for _ in range(repeats):
        for worker in workers:
            worker.step()
        if time.monotonic() - begin > cap:
            break
