"""What is worth knowing of one GPU, the most important first, in nine minutes.

    python benchmarks/gpu.py --out=runs/gpu.json
    python benchmarks/gpu.py --out=runs/gpu.json --peer=PATH/TO/darts

Each case is one of search_step.py or train_step.py at the paper's sizes. What does not fit into
--minutes is cut off, or left out, and says so; every result is written as it comes, and a second
call with another --from starts further down the list. The bandwidth of the device's memory comes
first: bytes accessed by a step, over that, is the least time it could take.
"""

import argparse
import time
from pathlib import Path

from measure import Results, compare, spread

OURS, EAGER, COMPILED = "ours", "darts_channels_last", "darts_compiled"
SEARCH, TRAIN = "search_step.py", "train_step.py"

# (script, what tells the case from others, workers); the peer's are left out without --peer.
CASES = (
    (SEARCH, {"plan": "unrolled", "masks": "one"}, (OURS,)),
    (SEARCH, {"plan": "unrolled", "masks": "full"}, (OURS, EAGER)),
    (SEARCH, {"plan": "unrolled", "masks": "full", "precision": "bfloat16"}, (OURS,)),
    (TRAIN, {"genotype": "ASAP"}, (OURS, EAGER)),
    (TRAIN, {"genotype": "ASAP", "precision": "bfloat16"}, (OURS,)),
    (SEARCH, {"plan": "loop", "masks": "one"}, (OURS,)),
    (SEARCH, {"plan": "loop", "masks": "full"}, (OURS,)),
    (SEARCH, {"plan": "unrolled", "masks": "half"}, (OURS,)),
    (SEARCH, {"plan": "unrolled", "masks": "full"}, (OURS, COMPILED)),
    (SEARCH, {"plan": "unrolled", "masks": "grace"}, (OURS,)),
)
SIZES = {SEARCH: {"channels": 16, "cells": 8}, TRAIN: {"channels": 36, "cells": 20}}


def bandwidth(size: int, repeats: int) -> dict:
    """Bytes a second that an addition reads and writes, of `size` float32 numbers."""
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
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--channels", type=int, help="in place of the papers' 16 and 36")
    parser.add_argument("--cells", type=int, help="in place of the papers' 8 and 20")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--numbers", type=int, default=2**28, help="to measure the bandwidth with")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    results = Results(options.out, vars(options))
    results.add({"bandwidth": bandwidth(options.numbers, options.repeats)})
    for number, (script, case, workers) in list(enumerate(CASES))[options.start :][: options.cases]:
        chosen = SIZES[script] | {"batch": options.batch, "size": options.size}
        changes = {"channels": options.channels, "cells": options.cells, "peer": options.peer}
        chosen |= {key: value for key, value in changes.items() if value is not None}
        names = [name for name in workers if name == OURS or options.peer]
        told = {"number": number, "script": script}
        if time.monotonic() > end - 20:
            results.add(told | case | {"left_out": "no time was left"})
            continue
        path = str(Path(__file__).with_name(script))
        compare(results, path, case, chosen, names, options.repeats, 60, end, told)


if __name__ == "__main__":
    main()
