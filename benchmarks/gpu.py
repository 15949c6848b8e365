"""The most important measurements of one GPU, in order of importance, in nine minutes.

    python benchmarks/gpu.py --out=runs/gpu.json
    python benchmarks/gpu.py --out=runs/gpu.json --peer=PATH/TO/darts

Each case is one of search_step.py or train_step.py at the paper's sizes. A few build in parallel
and are then timed one after another: steps one by one, then several in a row, as in a search; ours
is also profiled by kernel. Cases that do not fit into --minutes are cut off or skipped, and marked
as such. Each result is written as it arrives, and another call with --from starts further down the
list. The memory bandwidth of the device comes first: the bytes accessed by a step, divided by it,
are a lower bound on its time.
"""

import argparse
import time
from pathlib import Path

from measure import Results, Worker, passed, spread, timed_in_turn

OURS, EAGER, COMPILED = "ours", "darts_channels_last", "darts_compiled"
SEARCH, TRAIN = "search_step.py", "train_step.py"

# XLA's own graphs leave out cuDNN's convolutions, see `compile_cache.options`.
XLAS_GRAPHS = {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"}
# (script, what distinguishes the case, workers); the peer's are skipped without --peer.
CASES = (
    (SEARCH, {"plan": "unrolled", "masks": "full"}, (OURS, EAGER)),
    (SEARCH, {"plan": "unrolled", "masks": "one"}, (OURS,)),
    (TRAIN, {"genotype": "ASAP"}, (OURS, EAGER)),
    (SEARCH, {"plan": "unrolled", "masks": "full", "precision": "bfloat16"}, (OURS,)),
    (SEARCH, {"plan": "unrolled", "masks": "half"}, (OURS,)),
    (SEARCH, {"plan": "unrolled", "masks": "one", "compiler_options": XLAS_GRAPHS}, (OURS,)),
    (TRAIN, {"genotype": "ASAP", "precision": "bfloat16"}, (OURS,)),
    (SEARCH, {"plan": "loop", "masks": "one"}, (OURS,)),
    (SEARCH, {"plan": "loop", "masks": "full"}, (OURS,)),
    (SEARCH, {"plan": "unrolled", "masks": "full"}, (OURS, COMPILED)),
    (SEARCH, {"plan": "unrolled", "masks": "grace"}, (OURS,)),
)
LAST = 60  # seconds reserved for timing the cases that are built
SIZES = {SEARCH: {"channels": 16, "cells": 8}, TRAIN: {"channels": 36, "cells": 20}}


def bandwidth(size: int, repeats: int) -> dict:
    """Bytes per second that adding `size` float32 numbers reads and writes."""
    import jax
    import jax.numpy as jnp

    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, seconds = jax.block_until_ready(add(jnp.zeros(size))), []
    for _ in range(repeats):
        begin = time.perf_counter()
        x = jax.block_until_ready(add(x))
        seconds.append(time.perf_counter() - begin)
    moved = 2 * 4 * size
    return {"bytes_a_second": moved / spread(seconds)["median"], "device": str(x.device)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON file")
    parser.add_argument("--peer", help="checkout of quark0/darts")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--from", type=int, default=0, dest="start", help="case to start with")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many at most")
    parser.add_argument("--side_by_side", type=int, default=4, help="cases that build at a time")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--channels", type=int, help="in place of the papers' 16 and 36")
    parser.add_argument("--cells", type=int, help="in place of the papers' 8 and 20")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--row", type=int, default=10, help="steps that are not waited for")
    parser.add_argument("--compiler_options", help="of ours, JSON: see search_step.py")
    parser.add_argument("--numbers", type=int, default=2**28, help="to measure the bandwidth with")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    results = Results(options.out, vars(options))
    changes = {"channels": options.channels, "cells": options.cells, "peer": options.peer}
    changes |= {"compiler_options": options.compiler_options}
    changes = {key: value for key, value in changes.items() if value is not None}

    def begin(script, case, names):
        """Starts its workers, which have to finish building some time before the end."""
        chosen = SIZES[script] | {"batch": options.batch, "size": options.size} | changes | case
        path = str(Path(__file__).with_name(script))
        names = [name for name in names if name == OURS or options.peer]
        return [Worker(name, path, passed(chosen), end - LAST) for name in names]

    cases = list(enumerate(CASES))[options.start :][: options.cases]
    results.add({"bandwidth": bandwidth(options.numbers, options.repeats)})
    for first in range(0, len(cases), options.side_by_side):
        started = []
        for number, (script, case, names) in cases[first : first + options.side_by_side]:
            told = {"number": number, "script": script} | case
            if time.monotonic() > end - LAST - 20:
                results.add(told | {"left_out": "no time was left"})
            else:
                started.append((told, begin(script, case, names)))
        # Built in parallel, timed one after another while nothing builds.
        built = [
            (told, workers)
            for told, workers in started
            if attempt(results, told, workers, lambda workers: [each.built for each in workers])
        ]
        for told, workers in built:
            for worker in workers:
                worker.deadline = end
            record = attempt(
                results,
                told,
                workers,
                lambda w: timed_in_turn(w, options.repeats, 60, options.row, profile=True),
            )
            if record:
                results.add(told | record)


def attempt(results, told, workers, function):
    """function(workers); None if it failed, which is added to the results."""
    try:
        return function(workers)
    except (RuntimeError, TimeoutError) as error:
        for worker in workers:
            worker.kill()
        results.add(told | {"failed": str(error)})


if __name__ == "__main__":
    main()
