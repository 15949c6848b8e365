"""Compiles for an NVIDIA GPU on a machine without one, and reads the compiled program.

    target = deviceless.Target("h200")  # before anything has used a device
    compiled, seconds = target.compile(jax.jit(step), *operands)
    print(deviceless.read(compiled.as_text()))

Besides jax this needs two plugin packages of jax's version and CUDA's assembler, all without their
dependencies. A CUDA toolkit on the machine also provides the assembler.

    pip install --no-deps jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION nvidia-cuda-nvcc-cu12

Nothing runs. XLA shows whether a program compiles at all (if not, it often aborts the process), how
long that takes and what the program contains, but not how fast a kernel is. Autotuning, which times
kernels to choose between them, needs a device and is off: the program on a real GPU may use other
kernels.
"""

import os
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
from jax.experimental import topologies

from asap_jax.host.devices import Devices

FOLDER = Path(__file__).parent / "gpus"
CARDS = tuple(sorted(path.stem for path in FOLDER.glob("*.txtpb")))


def ampere(card: str) -> bool:
    """Whether a card has TF32 and bfloat16 units, by its description: 8.0 and later."""
    text = (FOLDER / f"{card}.txtpb").read_text()
    return int(re.search(r"cuda_compute_capability\s*{\s*major: (\d+)", text)[1]) >= 8


class Target:
    """A card to compile for, or several, by its description's name in the folder gpus.

    Several are of one host, or multiples of eight of hosts with eight each.

    Switches the whole process to run without a GPU and without autotuning.

    A description is XLA's `GpuTargetConfigProto`; on a machine with the card, jax provides it:
    `jax._src.lib._jax.get_topology_for_devices(jax.devices()).target_config`. Those here are
    shortened to what every jax from 0.10 on can read.
    """

    def __init__(self, card: str, count: int = 1):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
        jax.config.update("jax_platforms", "cpu")  # otherwise JAX takes the plugin for a GPU
        text = (FOLDER / f"{card}.txtpb").read_text()
        place = f"1x{-(-count // 8)}x{min(count, 8)}"  # slices, hosts, cards of each
        found = topologies.get_topology_desc("", "cuda", target_config=text, topology=place)
        self.devices = Devices.of(found.devices)
        self.sharding = self.devices.whole or jax.sharding.SingleDeviceSharding(found.devices[0])

    def compile(self, jitted, *operands):
        """Returns (compiled program, {"trace_seconds", "compile_seconds"}).

        Args:
          jitted: a function from `jax.jit`.
          operands: trees of arrays or of `jax.ShapeDtypeStruct`, which every card holds whole.
        """

        def on_card(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding)

        begin = time.perf_counter()
        lowered = jitted.lower(*jax.tree.map(on_card, operands))
        traced = time.perf_counter()
        compiled = lowered.compile()
        seconds = {
            "trace_seconds": traced - begin,
            "compile_seconds": time.perf_counter() - traced,
        }
        return compiled, seconds


def as_on_gpu():
    """A context in which the package makes its backend-dependent choices as on a GPU."""
    return mock.patch.object(jax, "default_backend", lambda: "gpu")


class Work(NamedTuple):
    """The work of a program; of each conditional one branch counts, see `Reading`.

    starts: kernels and library calls launched, including the copies by which conditionals and loops
      fetch their predicates.
    convolutions: library convolutions among them.
    conditionals, turns: conditionals evaluated; loop iterations started.
    moved: bytes of operands and results over all starts, including what a start finds in the cache.
    """

    starts: int = 0
    convolutions: int = 0
    conditionals: int = 0
    turns: int = 0
    moved: int = 0

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int):
        return Work(*(count * each for each in self))


class Reading(NamedTuple):
    """What the text of a compiled program shows.

    most, least: the work with the branch of most bytes in every conditional and the most iterations
      of every loop, and with the fewest.
    calls: {library call: number of occurrences in the text}.
    loops: loops in the text; unknown_loops: those of unknown iteration count.
    collectives: {kind: (number of occurrences in the text, bytes of their results)}.
    """

    most: Work
    least: Work
    calls: dict[str, int]
    loops: int
    unknown_loops: int
    collectives: dict[str, tuple[int, int]]


class _Instruction(NamedTuple):
    name: str
    shape: str
    kind: str
    operands: list[str]
    rest: str
    root: bool


_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*{$")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "domain"),
}
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_SIZES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "bf16": 2}  # other names end in their bits


def read(text: str, turns: tuple[int, int] = (0, 1)) -> Reading:
    """Counts the operations in a compiled program's text.

    The body of a loop counts once per iteration. If the text does not show the number, it is
    between `turns[0]` and `turns[1]`; inside another such loop, between 0 and 1.
    """
    computations, entry = _parse(text)

    @cache
    def work(name, worst, within=False):
        body = computations[name]
        return sum((of(each, body, worst, within) for each in body.values()), Work())

    def of(instruction, body, worst, within):
        kind = instruction.kind
        if kind in _FREE or kind.endswith("-done"):
            return Work()
        if kind == "while":
            count = _trip_count(instruction)
            if count is None:
                count, within = ((0, 1) if within else turns)[worst], True
            parts = [_called(instruction, each) for each in ("condition", "body")]
            turn = sum((work(each, worst, within) for each in parts), Work(starts=1, turns=1))
            return turn.times(count)
        if kind == "conditional":
            branches = [work(each, worst, within) for each in _branches(instruction)]
            chosen = (max if worst else min)(branches, key=lambda each: (each.moved, each.starts))
            return chosen + Work(starts=1, conditionals=1)
        if kind == "call":
            return work(_called(instruction, "to_apply"), worst, within)
        if kind == "async-start" and (called := _called(instruction, "calls")):
            return work(called, worst, within)
        convolution = kind == "custom-call" and _target(instruction).startswith("__cudnn$conv")
        moved = _moved(instruction, body, computations)
        return Work(1, int(convolution), moved=moved)

    every = [each for body in computations.values() for each in body.values()]
    loops = [each for each in every if each.kind == "while"]
    return Reading(
        work(entry, True),
        work(entry, False),
        dict(Counter(_target(each) for each in every if each.kind == "custom-call")),
        len(loops),
        sum(_trip_count(each) is None for each in loops),
        _collectives(every),
    )


def _collectives(instructions) -> dict[str, tuple[int, int]]:
    found = {}
    for each in instructions:
        kind = each.kind.removesuffix("-start")
        if kind in _COLLECTIVES:
            count, size = found.get(kind, (0, 0))
            found[kind] = count + 1, size + _bytes(each.shape)
    return found


def _parse(text):
    """Returns ({computation: {name: instruction}}, the entry computation)."""
    computations, entry, body = {}, None, {}
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = _HEAD.match(line)
            if head:
                body = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            root, name, shape, kind, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", _arguments(rest))
            body[name] = _Instruction(name, shape, kind, operands, rest, bool(root))
    return computations, entry


def _arguments(rest):
    """The text up to the bracket that closes an instruction's arguments."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:i]
    return rest


def _called(instruction, key):
    """The computation that an attribute names, or None."""
    found = re.search(rf"\b{key}=%?([\w.\-]+)", instruction.rest)
    return found and found[1]


def _target(instruction):
    return re.search(r'custom_call_target="([^"]+)"', instruction.rest)[1]


def _trip_count(loop):
    found = re.search(r'"known_trip_count":{"n":"(\d+)"}', loop.rest)
    return found and int(found[1])


def _branches(condition):
    """The computations that a conditional chooses from."""
    listed = re.search(r"branch_computations={([^}]*)}", condition.rest)
    if listed:
        return listed[1].replace("%", "").split(", ")
    return [_called(condition, f"{each}_computation") for each in ("true", "false")]


def _moved(instruction, body, computations) -> int:
    """Bytes that a start reads and writes; where it slices or updates an array, only the slice."""
    called = _called(instruction, "calls") if instruction.kind == "fusion" else None
    if called is None:
        operands = [body[name].shape for name in instruction.operands if name in body]
        return _bytes(instruction.shape) + sum(map(_bytes, operands))
    fused, total = computations[called], 0
    for each in fused.values():
        if each.kind == "parameter":
            users = [user for user in fused.values() if each.name in user.operands]
            sliced = [_slice_of(user, each.name, fused) for user in users]
            total += _bytes(each.shape) if None in sliced else sum(sliced)
    root = next(each for each in fused.values() if each.root)
    while root.kind == "bitcast":
        root = fused[root.operands[0]]
    if root.kind == "dynamic-update-slice":
        return total + _bytes(fused[root.operands[1]].shape)
    return total + _bytes(instruction.shape)


def _slice_of(user, name, fused) -> int | None:
    """Bytes that an instruction reads from an operand of which it uses a slice; else None."""
    if user.operands[0] != name:
        return None
    if user.kind == "dynamic-update-slice":
        return 0
    return _bytes(user.shape) if user.kind in ("dynamic-slice", "slice", "gather") else None


def _bytes(shape: str) -> int:
    total = 0
    for dtype, sides in re.findall(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]", shape):
        size = _SIZES.get(dtype)
        if size is None:
            size = int(re.search(r"\d+", dtype)[0]) // 8
        for side in filter(None, sides.split(",")):
            size *= int(side)
        total += size
    return total
