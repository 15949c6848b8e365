"""Compiles the package's programs for NVIDIA GPUs, on a machine that needs none.

    python benchmarks/gpu_compile.py --gpu=h200,t4 --size=tiny --table=docs/gpus.md
    python benchmarks/gpu_compile.py --gpu=h200 --size=paper --programs='search/asap/*,train/paper'

Prints a JSON object per program, then a table: whether it compiles, how many seconds that takes,
what the compiled program launches and moves, and the predicted seconds of a run (`predict`). Each
program is compiled in its own process (--together=N puts N into one, which is faster); if XLA
aborts, the record says so and the others continue. docs/gpus.md describes the accuracy of the
prediction, deviceless.py the required environment.
"""

import argparse
import fnmatch
import gc
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from measure import Results

PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt")
ASSEMBLER = "nvidia-cuda-nvcc-cu12"
BANDWIDTH = {"h200": 4.3e12, "a100": 1.7e12, "t4": 2.6e11}  # bytes per second that a copy reaches
START = 4e-6  # seconds from one kernel's start to the next one's, with next to no work
CONVOLUTION = 1e-4  # seconds of a library convolution in addition to a start
ASKED = 2e-5  # seconds until the host knows the branch, or whether a loop continues


def predict(work: dict, card: str) -> float:
    """Seconds of one run: bytes over bandwidth, plus a constant for each start."""
    return (
        work["moved"] / BANDWIDTH[card]
        + START * work["starts"]
        + CONVOLUTION * work["convolutions"]
        + ASKED * (work["conditionals"] + work["turns"])
    )


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing() -> str:
    """What this environment lacks for compiling for a GPU, in words; "" if nothing."""
    jax = installed("jax")
    for name in PLUGINS:
        found = installed(name)
        if found is None:
            return f"{name} is not installed"
        if found != jax:
            return f"{name} {found} does not belong to jax {jax}"
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/ptxas"
    if not installed(ASSEMBLER) and not shutil.which("ptxas") and not toolkit.exists():
        return f"{ASSEMBLER} is not installed, nor a CUDA toolkit"
    return ""


def names_of(patterns: str) -> list[str]:
    """The programs that match a comma-separated list of patterns."""
    from gpu_programs import PROGRAMS

    found = []
    for pattern in patterns.split(","):
        matched = fnmatch.filter(PROGRAMS, pattern)
        if not matched:
            sys.exit(f"--programs={pattern} names none of the programs: {', '.join(PROGRAMS)}")
        found += [name for name in matched if name not in found]
    return found


def compile_all(
    names: list[str],
    card: str,
    size: str,
    precision: str,
    together: int = 1,
    devices: int = 1,
    batch: int = 0,
) -> Iterator[dict]:
    """Yields a record per program; `together` of them are compiled in one process.

    With `devices` above 1, that many cards share each batch of a step, eight to a host; `batch` is
    its size, 0 for the preset's.
    """
    left = list(names)
    while left:
        group = left[:together]
        command = [sys.executable, __file__, "--worker", f"--programs={','.join(group)}"]
        command += [f"--gpu={card}", f"--size={size}", f"--precision={precision}"]
        command += [f"--devices={devices}", f"--batch={batch}"]
        done = 0
        with tempfile.TemporaryFile("w+") as told:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True)
            for line in process.stdout:
                yield json.loads(line)
                done += 1
            code = process.wait()
            told.seek(0)
            error = last_words(told.read())
        if done < len(group):
            case = {"program": group[done], "gpu": card, "size": size, "precision": precision}
            what = "aborted" if code < 0 else "failed"
            yield case | {"result": what, "exit": code, "error": error}
            done += 1
        left = left[done:]


def last_words(stderr: str) -> str:
    """The last informative line: not a stack frame, nor the line that introduces one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = [
        line for line in lines if not re.match(r"@ |\*\*\*|#\d|File |Fatal Python|Extension", line)
    ]
    fatal = [line for line in said if re.match(r"F\d{4} ", line)]
    return (fatal or said or [""])[-1][:500]


def work_on(options) -> None:
    """A worker: compiles the named programs one after another, and writes a record per line."""
    out = os.dup(1)
    os.dup2(2, 1)  # libraries' output goes to stderr
    import deviceless
    import jax
    from gpu_programs import PROGRAMS, SIZES

    gc.set_threshold(20_000, 10, 10)  # a trace is many objects, all alive
    target = deviceless.Target(options.gpu, options.devices)
    size = SIZES[options.size]._replace(devices=target.devices)
    if options.batch:
        parts = ({**part, "batch_size": options.batch} for part in (size.search, size.train))
        size = size._replace(**dict(zip(("search", "train"), parts, strict=True)))
    for name in options.programs.split(","):
        record = {"program": name, "gpu": options.gpu, "jax": jax.__version__}
        record |= {"size": options.size, "precision": options.precision}
        record |= {"devices": options.devices, "batch": options.batch}
        try:
            with deviceless.as_on_gpu():
                program = PROGRAMS[name](size, options.precision)
                compiled, seconds = target.compile(program.jitted, *program.operands)
        except Exception as error:
            traceback.print_exc()
            record |= {"result": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
        else:
            record |= {"result": "compiled", **seconds, **measured(compiled, program, options.gpu)}
        os.write(out, (json.dumps(record) + "\n").encode())
        jax.clear_caches()


def measured(compiled, program, card) -> dict:
    """What a compiled program needs, launches and moves, and how long it should take."""
    import deviceless

    found, memory = deviceless.read(compiled.as_text(), program.turns), compiled.memory_analysis()
    record = {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "loops": found.loops,
        "loops_of_unknown_turns": found.unknown_loops,
    }
    if found.unknown_loops:
        record["turns_taken_for_those"] = program.turns
    for name in ("most", "least"):
        work = getattr(found, name)._asdict()
        record[name] = work | {"seconds": predict(work, card)}
    return record | {"calls": found.calls, "collectives": found.collectives}


def row(record: dict) -> str:
    """A line of the table that the command prints."""
    told = [record["program"], record["gpu"], record["precision"], record["result"]]
    if record["result"] == "compiled":
        most, least = record["most"], record["least"]
        told += [f"{record['trace_seconds']:.1f}", f"{record['compile_seconds']:.1f}"]
        for key, unit in (("starts", 1), ("convolutions", 1), ("conditionals", 1), ("moved", 1e9)):
            low, high = least[key] / unit, most[key] / unit
            digits = 0 if unit == 1 else 2
            told.append(
                f"{high:.{digits}f}" if low == high else f"{low:.{digits}f}-{high:.{digits}f}"
            )
        told.append(f"{record['temporary_bytes'] / 1e9:.2f}")
        told.append(f"{1e3 * least['seconds']:.1f}-{1e3 * most['seconds']:.1f}")
        told.append(str(record["loops_of_unknown_turns"] or ""))
    else:
        told += [record["error"]]
    return f"| {' | '.join(told)} |"


HEADER = (
    "| program | card | precision | | trace s | compile s | starts | convolutions | conditionals "
    "| GB moved | GB of temporaries | predicted ms | loops of unknown turns |\n" + "|---" * 13 + "|"
)
BEGIN, END = "<!-- written by benchmarks/gpu_compile.py -->", "<!-- until here -->"


def write_table(path: Path, records: list[dict], version: str) -> None:
    """Updates the Markdown table in a file with what compiled, keeping its other columns.

    A column is a card, a precision and a version of jax; a row is a program.
    """
    text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    columns, cells = _parse_table(inside)
    for record in records:
        count = record.get("devices", 1)
        cards = f"{count} x {record['gpu']}" if count > 1 else record["gpu"]
        column = f"{cards} {record['precision']}, jax {version}"
        if column not in columns:
            columns.append(column)
        cells.setdefault(record["program"], {})[column] = record["result"]
    columns.sort()
    lines = ["| program | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in sorted(cells):
        lines.append(f"| `{name}` | {' | '.join(cells[name].get(c, '') for c in columns)} |")
    path.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after)


def _parse_table(text):
    """(columns, {program: {column: cell}}) of the table in a text, if any."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if "|" in line]
    lines = [[cell.strip() for cell in line] for line in lines]
    if not lines:
        return [], {}
    columns = lines[0][1:]
    cells = {line[0].strip("`"): dict(zip(columns, line[1:], strict=True)) for line in lines[2:]}
    return columns, cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="h200", help="cards, by their files in benchmarks/gpus")
    parser.add_argument("--programs", default="*", help="patterns of names, see gpu_programs.py")
    parser.add_argument("--size", default="paper", choices=("tiny", "wide", "paper"))
    parser.add_argument("--precision", default="auto", help="auto, float32, tf32, bfloat16")
    parser.add_argument("--devices", type=int, default=1, help="cards that share each batch")
    parser.add_argument("--batch", type=int, default=0, help="of a step; 0 for the preset's")
    parser.add_argument("--together", type=int, default=1, help="programs a process")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--table", help="Markdown file whose table gets the results as columns")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if lacks := missing():
        sys.exit(f"{lacks}: deviceless.py says what to install")
    if options.worker:
        work_on(options)
        return
    import deviceless

    cards, precisions = options.gpu.split(","), options.precision.split(",")
    for card in cards:
        if card not in deviceless.CARDS:
            sys.exit(f"--gpu={card}: described are {', '.join(deviceless.CARDS)}")
    names = names_of(options.programs)
    settings = {key: value for key, value in vars(options).items() if key != "worker"}
    results, records = Results(options.out, settings), []
    for card in cards:
        for precision in precisions:
            if precision == "auto":
                precision = "tf32" if deviceless.ampere(card) else "float32"
            if precision != "float32" and not deviceless.ampere(card):
                print(f"{card} does not compute in {precision}: left out", file=sys.stderr)
                continue
            how = card, options.size, precision, options.together, options.devices, options.batch
            for record in compile_all(names, *how):
                results.add(record)
                records.append(record)
    print("\n".join(["", HEADER, *map(row, records)]))
    if options.table:
        write_table(Path(options.table), records, importlib.metadata.version("jax"))
    if any(record["result"] != "compiled" for record in records):
        sys.exit(1)


if __name__ == "__main__":
    main()
