"""What several GPUs should take for a step, from compiled programs and one measured GPU.

    python benchmarks/gpu_compile.py --gpu=h200 --programs=train/imagenet --devices=8 --batch=2048 \
        --out=runs/imagenet8.json
    python benchmarks/scaling.py --case=imagenet:predicted:runs/imagenet8.json ...

A case is NAME:MILLISECONDS:FILE, with the time of a step on one GPU for as many images as each of
several GPUs has, measured, or `predicted` for what gpu_compile.py predicts of the compiled program.
Prints a row for each number of GPUs. Nothing of it is measured on several GPUs: a step takes the
time of one GPU plus, as if nothing overlapped,

    collectives * latency + bytes * 2 (n - 1) / n / bandwidth

with the latency of a small all-reduce and NCCL's bus bandwidth assumed in `NETWORKS`.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple


class Network(NamedTuple):
    """latency: seconds of a small all-reduce; bandwidth: bytes a second, NCCL's "bus bandwidth"."""

    latency: float
    bandwidth: float


# Assumed: eight GPUs by NVSwitch; beyond, hosts of eight with a 400 Gb/s adapter for each GPU.
NETWORKS = {
    8: Network(20e-6, 350e9),
    64: Network(60e-6, 150e9),
    256: Network(100e-6, 150e9),
}


class Case(NamedTuple):
    """A program on several devices.

    seconds: of its step on one device with the same images.
    collectives, exchanged: number of them a step, and bytes of their results.
    memory: bytes of operands and temporaries on each device.
    """

    name: str
    seconds: float
    collectives: int
    exchanged: int
    memory: int

    @classmethod
    def read(cls, text: str) -> "Case":
        name, milliseconds, path = text.split(":", 2)
        records = json.loads(Path(path).read_text())["cases"]
        found = [each for record in records for each in record["collectives"].values()]
        seconds = sum(record["least"]["seconds"] for record in records)
        return cls(
            name,
            seconds if milliseconds == "predicted" else float(milliseconds) / 1e3,
            sum(count for count, _ in found),
            sum(size for _, size in found),
            max(record["argument_bytes"] + record["temporary_bytes"] for record in records),
        )

    def exchange(self, devices: int) -> float:
        """Seconds of a step's collectives over so many devices."""
        network = NETWORKS[min(n for n in NETWORKS if n >= devices)]
        moved = self.exchanged * 2 * (devices - 1) / devices
        return self.collectives * network.latency + moved / network.bandwidth

    def row(self, devices: int) -> str:
        exchange = self.exchange(devices) if devices > 1 else 0.0
        seconds = self.seconds + exchange
        cells = (
            f"{self.name} | {devices} | {self.collectives if devices > 1 else 0} | "
            f"{(self.exchanged if devices > 1 else 0) / 1e6:.0f} MB | {self.memory / 1e9:.1f} GB | "
            f"{1e3 * seconds:.1f} ms | {100 * self.seconds / seconds:.0f} %"
        )
        return f"| {cells} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, help="NAME:MILLISECONDS:FILE")
    parser.add_argument("--devices", default="1,8,64,256")
    options = parser.parse_args()
    print(
        "| step | GPUs | collectives | exchanged | memory | time | efficiency |\n"
        + "|---" * 7
        + "|"
    )
    for text in options.case:
        case = Case.read(text)
        for devices in map(int, options.devices.split(",")):
            print(case.row(devices))


if __name__ == "__main__":
    main()
