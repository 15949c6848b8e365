"""Compiling for an NVIDIA GPU on a machine that has none, and reading what came out.

    target = deviceless.Target("h200")  # before anything has used a device
    compiled, seconds = target.compile(jax.jit(step), *operands)
    print(deviceless.read(compiled.as_text()))

Beside jax it takes two packages of the same version as jax's, and CUDA's assembler, all without
their dependencies. A CUDA toolkit on the machine has the assembler too.

    pip install --no-deps jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION nvidia-cuda-nvcc-cu12

Nothing runs. XLA tells whether it can compile a program at all (where it cannot, it often aborts
the process), how long that takes and what the program holds; how fast a kernel is it cannot tell.
To choose between kernels by timing them (autotuning) takes a device, so it is off: a GPU's own
program may choose others.
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

FOLDER = Path(__file__).parent / "gpus"
CARDS = tuple(sorted(path.stem for path in FOLDER.glob("*.txtpb")))


def ampere(card: str) -> bool:
    """Whether a card has units for TF32 and bfloat16, by its description: 8.0 and later."""
    text = (FOLDER / f"{card}.txtpb").read_text()
    return int(re.search(r"cuda_compute_capability\s*{\s*major: (\d+)", text)[1]) >= 8


class Target:
    """A card to compile for, by the name of its description in the folder gpus.

    Has the whole process do without a GPU and without autotuning.

    A description is XLA's `GpuTargetConfigProto`; on a machine with the card, jax tells it:
    `jax._src.lib._jax.get_topology_for_devices(jax.devices()).target_config`. The ones here are
    shortened to what each jax from 0.10 on can read.
    """

    def __init__(self, card: str):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
        jax.config.update("jax_platforms", "cpu")  # else JAX takes the plugin for a GPU
        text = (FOLDER / f"{card}.txtpb").read_text()
        found = topologies.get_topology_desc("", "cuda", target_config=text, topology="1x1x1")
        self.sharding = jax.sharding.SingleDeviceSharding(found.devices[0])

    def compile(self, jitted, *operands):
        """(the compiled program, {"trace_seconds", "compile_seconds"}).

        Args:
          jitted: what `jax.jit` gave.
          operands: trees of arrays or of `jax.ShapeDtypeStruct`.
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
    """A context in which the package's choices by backend are those that it makes on a GPU."""
    return mock.patch.object(jax, "default_backend", lambda: "gpu")


class Work(NamedTuple):
    """What a program does; of a condition's branches, the sum over the dearest of each.

    starts: kernels and library calls that are started, the copies that conditions and loops ask
      their predicates by included.
    convolutions: library convolutions among them.
    conditionals, turns: conditions that are asked; turns of loops that are begun.
    moved: bytes of the operands and results of all starts. What a start finds in the cache counts
      as well.
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
    """What the text of a compiled program tells.

    most, least: with the branch of most bytes of every condition and the most turns of every loop,
      and with the fewest.
    calls: {library call: how often it stands in the text}.
    loops: loops in the text; unknown_loops: those whose turns it does not tell.
    """

    most: Work
    least: Work
    calls: dict[str, int]
    loops: int
    unknown_loops: int


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
_SIZES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "bf16": 2}  # others end in their bits


def read(text: str, turns: tuple[int, int] = (0, 1)) -> Reading:
    """Counts what stands in a compiled program's text.

    A loop's body counts as often as it turns. Where the text does not tell, that is `turns`, at
    least and at most; within another loop of which it does not tell, 0 and 1.
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
    )


def _parse(text):
    """({computation: {name: instruction}}, the one that the program enters)."""
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
    """What stands before the bracket that closes an instruction's arguments."""
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
    """The computations that a condition chooses from."""
    listed = re.search(r"branch_computations={([^}]*)}", condition.rest)
    if listed:
        return listed[1].replace("%", "").split(", ")
    return [_called(condition, f"{each}_computation") for each in ("true", "false")]


def _moved(instruction, body, computations) -> int:
    """Bytes that a start reads and writes: of what it takes a slice of, or updates, the slice."""
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
    """Bytes that an instruction reads of an operand that it touches a slice of; else None."""
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
