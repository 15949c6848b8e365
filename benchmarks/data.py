"""JPEG images per second through the streaming pipeline: decode, random crop, resize.

    python benchmarks/data.py --workers=0,1,2 --out=runs/data.json

The files are crops of scikit-learn's two photographs, 500x375, in a temporary folder. Timing starts
at the second batch, so the start of the workers is reported separately.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import Results
from PIL import Image
from sklearn.datasets import load_sample_images

from asap_jax import data

WIDTH, HEIGHT = 500, 375


def write_photographs(root: Path, count: int, quality: int) -> float:
    """Writes `count` JPEGs to two class folders, for training and test; mean bytes per file."""
    rng, sizes = np.random.default_rng(0), []
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        # The photographs are 640x427; rotated and shifted, no two crops are alike.
        for part, images in (("train", count // 2), ("test", 1)):
            (root / part / name).mkdir(parents=True)
            for i in range(images):
                top = rng.integers(photograph.shape[0] - HEIGHT + 1)
                left = rng.integers(photograph.shape[1] - WIDTH + 1)
                piece = photograph[top : top + HEIGHT, left : left + WIDTH]
                path = root / part / name / f"{i}.jpg"
                Image.fromarray(piece[:, :: 1 - 2 * (i % 2)]).save(path, quality=quality)
                sizes.append(path.stat().st_size)
    return float(np.mean(sizes))


def measure(root: Path, workers: int, resize: str, options) -> dict:
    """Seconds to the first batch, then images per second (slightly high: some were ready)."""
    source = data.open_source(f"folder:{root}")
    stream = data.stream(source, image_size=options.size, resize=resize, workers=workers)
    begin = time.perf_counter()
    batches = stream.train_batches(options.batch, 0, options.epochs, 0, 0)
    next(batches)
    first, processor, count = time.perf_counter(), time.process_time(), 0
    for images, _ in batches:
        images.block_until_ready()
        count += len(images)
    rate = count / (time.perf_counter() - first)
    cores = len(os.sched_getaffinity(0))
    record = {
        "workers": workers,
        "resize": resize,
        "seconds_to_first_batch": first - begin,
        "images_a_second": rate,
        "images_a_second_per_core": rate / min(workers or cores, cores),
    }
    if not workers:  # all in this process; the number to trust on a busy machine
        record["images_a_processor_second"] = count / (time.process_time() - processor)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024, help="files")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="side of what comes out")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes, with commas")
    parser.add_argument("--resize", default="random_crop", help="ways to resize, with commas")
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), options.images, options.quality)
        results = Results(options.out, {**vars(options), "mean_bytes_a_file": size})
        for resize in options.resize.split(","):
            for workers in options.workers.split(","):
                results.add(measure(Path(folder), int(workers), resize, options))
