"""Every program of the package compiles for NVIDIA GPUs, with XLA's compiler and no GPU.

    pytest -m gpu_compile
    ASAP_JAX_GPUS=a100 pytest -m gpu_compile

Few layers, but the paper's batch and map sizes (`gpu_programs.SIZES`). An abort of the compiler
kills its process, so the programs are compiled in groups, each in its own process.
"""

import json
import os
import re

import pytest
from command import ROOT

GROUPS = {
    "loop": "search/*/loop",
    "unrolled": "search/*/unrolled*",
    "spaces": "space/*",
    "rest": "search/first-state,search/eigenvalue,search/accuracy*,search/mixtures,use/*",
    "trainings": "train/*",
}
# Before Ampere XLA makes no matmul kernels of its own, so programs differ less there.
TELLING = ",".join(
    (
        *("search/asap/loop", "search/asap/unrolled", "search/darts-second/loop"),
        *("space/own/*", "train/asap_small", "use/apply"),
    )
)
GPUS = os.environ.get("ASAP_JAX_GPUS", "h200,t4").split(",")
FEW = "search/asap/loop,search/asap/unrolled,train/asap_small"
SHARED = "search/asap/loop,search/asap/unrolled,search/accuracy,train/accumulate,train/test"
CASES = []  # the longest first: two workers then end at about the same time
for gpu in GPUS:
    if gpu == "t4":
        CASES.append((gpu, "float32", "telling", 1))
    else:
        CASES += [(gpu, "tf32", name, 1) for name in GROUPS]
        CASES += [(gpu, precision, "few", 1) for precision in ("float32", "bfloat16")]
        CASES.append((gpu, "tf32", "shared", 4))
LONGEST = "trainings", "unrolled", "spaces", "loop", "telling", "shared", "few", "rest"
CASES.sort(key=lambda case: LONGEST.index(case[2]))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.gpu_compile
@pytest.mark.parametrize(("gpu", "precision", "group", "devices"), CASES)
def test_programs_compile(gpu, precision, group, devices):
    import gpu_compile
    import gpu_programs

    if lacks := gpu_compile.missing():
        pytest.skip(lacks)
    patterns = GROUPS | {"telling": TELLING, "few": FEW, "shared": SHARED}
    names = gpu_compile.names_of(patterns[group])
    names = [name for name in names if name not in gpu_programs.ALIKE]
    how = gpu, "tiny" if devices == 1 else "wide", precision, len(names), devices
    records = list(gpu_compile.compile_all(names, *how))
    assert [record["program"] for record in records] == names
    died = [record for record in records if record["result"] != "compiled"]
    told = "\n".join(f"{each['program']} {each['result']}: {each['error']}" for each in died)
    assert not died, f"of {len(names)} programs for {gpu} {len(died)} do not compile:\n{told}"
    for record in records:  # cards exchange sums, and a test's five classes of each image: no maps
        exchanged = record["collectives"]
        gathered = exchanged.pop("all-gather", (0, 0))[1]
        assert gathered <= (10_000 if record["program"] == "train/test" else 0)
        assert set(exchanged) <= ({"all-reduce"} if devices > 1 else set())
        assert bool(exchanged or gathered) == (devices > 1)


def test_each_program_is_of_a_group():
    import gpu_compile
    import gpu_programs

    grouped = [name for patterns in GROUPS.values() for name in gpu_compile.names_of(patterns)]
    assert sorted(grouped) == sorted(gpu_programs.PROGRAMS)
    assert set(gpu_programs.ALIKE) < set(gpu_programs.PROGRAMS)
    assert set(gpu_programs.ALIKE.values()).isdisjoint(gpu_programs.ALIKE)


HEAVY = re.compile(r"stablehlo\.(convolution|dot_general|reduce_window|select_and_scatter)\b.*")


@pytest.mark.slow
def test_a_program_that_is_left_out_is_within_another():
    """All its convolutions, products and windows, by shapes, but those of other classifiers."""
    import deviceless
    import gpu_programs

    def heavy(name):
        with deviceless.as_on_gpu():
            program = gpu_programs.PROGRAMS[name](gpu_programs.SIZES["tiny"], "tf32")
            lowered = program.jitted.trace(*program.operands).lower(lowering_platforms=("cuda",))
        return {re.sub(r"%\S+", "", found[0]) for found in HEAVY.finditer(lowered.as_text())}

    known = {name: heavy(name) for name in set(gpu_programs.ALIKE.values())}
    for name, other in gpu_programs.ALIKE.items():
        found = heavy(name)
        assert len(found) > 6
        assert len(found - known[other]) <= 6, (name, other)  # two classifiers, both directions


TEXT = """\
HloModule jit_f, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%fused (param_0: f32[8,4], param_1: s32[]) -> f32[2,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %constant_1 = s32[] constant(0)
  ROOT %slice_2 = f32[2,4]{1,0} dynamic-slice(%param_0, %param_1, %constant_1)
}

%dear (p: (f32[2,4])) -> f32[2,4] {
  %p = (f32[2,4]{1,0}) parameter(0)
  %get = f32[2,4]{1,0} get-tuple-element(%p), index=0
  ROOT %conv = f32[2,4]{1,0} custom-call(%get, %get), custom_call_target="__cudnn$convForward"
}

%cheap (q: (f32[2,4])) -> f32[2,4] {
  %q = (f32[2,4]{1,0}) parameter(0)
  ROOT %got = f32[2,4]{1,0} get-tuple-element(%q), index=0
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %part = f32[2,4]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %tuple = (f32[2,4]{1,0}) tuple(%part)
  %cond = f32[2,4]{1,0} conditional(%i, %tuple, %tuple), branch_computations={%cheap, %dear}
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%test (t: (s32[], f32[8,4])) -> pred[] {
  %t = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %false = pred[] constant(false)
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%test, body=%bodyKNOWN
  ROOT %end = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_program_is_read():
    """By hand: an iteration evaluates its condition, slices 32 bytes (and an index) and branches.

    The expensive branch reads 32 bytes twice and writes them once.
    """
    import deviceless

    known = TEXT.replace("KNOWN", ', backend_config={"known_trip_count":{"n":"3"}}')
    found = deviceless.read(known)
    assert (found.loops, found.unknown_loops) == (1, 0)
    assert found.calls == {"__cudnn$convForward": 1}
    assert found.most == deviceless.Work(12, 3, 3, 3, 3 * (32 + 4 + 32 + 96))
    assert found.least == deviceless.Work(9, 0, 3, 3, 3 * (32 + 4 + 32))
    unknown = deviceless.read(TEXT.replace("KNOWN", ""), turns=(0, 2))
    assert (unknown.loops, unknown.unknown_loops) == (1, 1)
    assert unknown.most == deviceless.Work(8, 2, 2, 2, 2 * (32 + 4 + 32 + 96))
    assert unknown.least == deviceless.Work()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("F1126 1 t.cc:627] Check failed: 2 vs. 3\n*** Check failure:\n @ 0x1 f\n", "F1126 1 t.cc"),
        ("Traceback (most recent call last):\nValueError: no\n", "ValueError: no"),
        ("", ""),
    ],
)
def test_what_a_process_said_last(stderr, said):
    import gpu_compile

    assert gpu_compile.last_words(stderr).startswith(said)
    assert bool(said) == bool(gpu_compile.last_words(stderr))


def test_a_process_that_dies_does_not_end_the_run(monkeypatch, tmp_path):
    """The worker here is a script that aborts at its second program."""
    import gpu_compile

    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "for name in sys.argv[2].partition('=')[2].split(','):\n"
        "    if name == 'b':\n"
        "        print('F1 Check failed', file=sys.stderr, flush=True)\n"
        "        os.abort()\n"
        "    print(json.dumps({'program': name, 'result': 'compiled'}), flush=True)\n"
    )
    monkeypatch.setattr(gpu_compile, "__file__", str(worker))
    for together in (1, 2, 3):
        records = list(
            gpu_compile.compile_all(["a", "b", "c"], "h200", "tiny", "float32", together)
        )
        assert [each["program"] for each in records] == ["a", "b", "c"]
        assert [each["result"] for each in records] == ["compiled", "aborted", "compiled"]
        assert records[1]["error"] == "F1 Check failed"
        assert records[1]["exit"] < 0


def test_a_table_keeps_the_columns_of_other_versions(tmp_path):
    import gpu_compile

    path = tmp_path / "gpus.md"
    path.write_text(f"before\n\n{gpu_compile.BEGIN}\n{gpu_compile.END}\n\nafter\n")
    case = {"program": "train/paper", "gpu": "h200", "precision": "float32"}
    gpu_compile.write_table(path, [case | {"result": "aborted"}], "0.11.2")
    gpu_compile.write_table(path, [case | {"result": "compiled"}], "0.12.0")
    gpu_compile.write_table(path, [case | {"program": "use/apply", "result": "compiled"}], "0.12.0")
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\n\nafter\n")
    assert "| program | h200 float32, jax 0.11.2 | h200 float32, jax 0.12.0 |" in text
    assert "| `train/paper` | aborted | compiled |" in text
    assert "| `use/apply` |  | compiled |" in text


def test_every_card_is_described():
    import deviceless

    assert set(deviceless.CARDS) == {"h200", "a100", "t4"}
    assert [deviceless.ampere(card) for card in ("h200", "a100", "t4")] == [1, 1, 0]
    import gpu_compile

    work = json.loads(json.dumps(deviceless.Work(moved=1)._asdict()))
    assert all(gpu_compile.predict(work, card) > 0 for card in deviceless.CARDS)
