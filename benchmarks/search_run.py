"""The cost of each epoch over a whole search: the paper's figure 3.

    python benchmarks/search_run.py --config=digits --out=runs/figure3
    python benchmarks/search_run.py --replay=runs/figure3/search.json --out=runs/replay \
        --batch=16 --peer=PATH/TO/darts

The first command runs a real search and records the seconds and masks of each epoch. The second
times the paper-size supernet under those masks, epoch by epoch, next to PyTorch's DARTS, which has
none. This is an upper bound on the cost of a search with that course, since it uses the masks from
the start of each epoch and counts both halves in grace epochs too. Both write a JSON file and a
plot (.svg).
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from measure import Worker, environment


def real(options) -> dict:
    """The epochs of a search: seconds, candidates left, and the masks at the start."""
    import asap_jax
    from asap_jax.configs import presets
    from asap_jax.host import compile_cache
    from asap_jax.searching import stages

    compile_cache.enable()
    config = presets.get_config(options.config)
    space = stages.make_space(config.search)
    masks = {cell: np.ones(space.shape, int) for cell in space.cell_types}
    begun_with = {cell: mask.tolist() for cell, mask in masks.items()}
    epochs = []

    def on_prune(record):
        for cell, edge, name in record["pruned"]:
            masks[cell][space.edges.index(tuple(edge)), space.candidates.index(name)] = 0

    def on_epoch(record):
        nonlocal begun_with
        epochs.append(
            {
                "seconds": record["seconds"],
                "candidates_left": record["candidates_left"],
                "masks": begun_with,
            }
        )
        begun_with = {cell: mask.tolist() for cell, mask in masks.items()}

    changes = {"epochs": options.epochs} if options.epochs else {}
    asap_jax.search(config, on_epoch=on_epoch, on_prune=on_prune, watch={"images": 0}, **changes)
    return {"config": options.config, "epochs": epochs}


def replay(options) -> dict:
    """Step times of the paper-size supernet under a search's masks."""
    recorded = json.loads(Path(options.replay).read_text())["epochs"]
    script = str(Path(__file__).with_name("search_step.py"))
    names = ["ours"] + ["darts_channels_last"] * bool(options.peer)
    passed = [f"--batch={options.batch}", "--masks=full", f"--peer={options.peer}"]
    workers = [Worker(name, script, passed) for name in names]
    before, epochs = None, []
    for worker in workers:
        worker.step()
    for epoch in recorded:
        if epoch["masks"] != before:  # equal masks cost the same
            before = epoch["masks"]
            workers[0].step(json.dumps(before))
            seconds = {name: [] for name in names}
            for _ in range(options.repeats):
                for worker in workers:
                    seconds[worker.name].append(worker.step())
            medians = {name: statistics.median(values) for name, values in seconds.items()}
        epochs.append({"candidates_left": epoch["candidates_left"], **medians})
        print(json.dumps(epochs[-1]), flush=True)
    for worker in workers:
        worker.close()
    means = {name: statistics.fmean(epoch[name] for epoch in epochs) for name in names}
    return {"batch": options.batch, "mean_step_seconds": means, "epochs": epochs}


def plot(record: dict, path: Path) -> None:
    """Plots seconds and candidates left over the epochs."""
    epochs = record["epochs"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    numbers = range(1, len(epochs) + 1)
    for name, label in (
        ("seconds", "an epoch"),
        ("ours", "a step, asap_jax"),
        ("darts_channels_last", "a step, PyTorch DARTS"),
    ):
        if name in epochs[0]:
            axis.plot(numbers, [epoch[name] for epoch in epochs], marker=".", label=label)
    axis.set_xlabel("epoch")
    axis.set_ylabel("seconds")
    axis.set_ylim(bottom=0)
    other = axis.twinx()
    left = [epoch["candidates_left"] for epoch in epochs]
    other.plot(numbers, left, color="#999999", ls="--", label="candidates left")
    other.set_ylabel("candidates left")
    other.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="digits", help="preset of the real search")
    parser.add_argument("--epochs", type=int, help="its length, in place of the preset's")
    parser.add_argument("--replay", help="JSON file of a real search")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", default="", help="checkout of quark0/darts")
    parser.add_argument("--out", required=True, help="folder of the results")
    options = parser.parse_args()
    out, name = Path(options.out), "replay" if options.replay else "search"
    record = replay(options) if options.replay else real(options)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps({"environment": environment(), **record}) + "\n")
    plot(record, out / f"{name}.svg")
    print(out / f"{name}.svg")


if __name__ == "__main__":
    main()
