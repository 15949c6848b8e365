"""The paper's search on CIFAR-10: 50 epochs at its settings, in several pieces if needed.

    python benchmarks/gpu_search.py --data_dir=DIR --workdir=runs/paper --minutes=9

Runs the epochs that fit into --minutes (at least one), saves everything and stops; the same command
resumes. Writes the progress to WORKDIR/search_time.json: seconds, candidates left and accuracy of
each epoch, the total seconds, and whether the search has ended. DIR holds cifar10 as prepared by
tfds.
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

from measure import environment


def summary(workdir: Path) -> dict:
    """Summarizes the search from metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    kept = ("epoch", "seconds", "candidates_left", "val_accuracy", "temperature")
    epochs = [{key: each[key] for key in kept} for each in epochs if each["phase"] == "search"]
    return {
        "environment": environment(),
        "seconds": sum(each["seconds"] for each in epochs),
        "ended": (workdir / "genotype.json").exists(),
        "epochs": epochs,
    }


def main():
    begin = time.monotonic()
    import jax

    import asap_jax
    from asap_jax.configs import presets
    from asap_jax.host import compile_cache
    from asap_jax.host.interruption import Interrupted

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data_dir", default="", help="folder of prepared tfds data sets")
    parser.add_argument("--data", default="", help="another source, see docs/data.md")
    parser.add_argument("--config", default="paper", help="preset of the search")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--plan", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    compile_cache.enable()
    config = presets.get_config(options.config)
    changes = {"dir": options.data_dir} | ({"source": options.data} if options.data else {})
    presets.update(config.data, changes)
    presets.update(config.search, {"plan": options.plan, "precision": options.precision})
    end, workdir = begin + 60 * options.minutes, Path(options.workdir)

    def stop_in_time(record):
        if time.monotonic() + record["seconds"] > end:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        asap_jax.search(config, workdir=workdir, on_epoch=stop_in_time)
    except Interrupted as stop:
        print(f"{stop.where}; the same command goes on")
    record = {"device": jax.devices()[0].device_kind, **summary(workdir)}
    (workdir / "search_time.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{len(record['epochs'])} epochs, {record['seconds']:.0f} s; {workdir}")


if __name__ == "__main__":
    main()
