"""Streams images from disk during training, for sets too large for memory, with Google's grain.

A batch is a pure function of the seed and its number: grain's shuffle of the indices determines its
records, and (seed, epoch, record) the random augmentation of a record. Training therefore resumes
in the middle of an epoch by starting at that batch, with any number of workers.
"""

import ast
import dataclasses
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from asap_jax.data import dataset, images, roles, sources
from asap_jax.data.opened import Source, Split, picked
from asap_jax.data.reading import Reader
from asap_jax.host import memory, processes
from asap_jax.host.devices import Devices
from asap_jax.host.errors import UserError

MEMORY_SHARE = 0.5  # of available memory; by default, larger sets are streamed
MEASURED = 512  # training images sampled for statistics if none are published


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images on disk, with the metadata training needs; the streamed counterpart of `Dataset`.

    Attributes:
      train, test: the training and test images.
      class_names: one name per class.
      mean, std: [C] of images scaled to [0, 1].
      preparation: how images are brought to their size and color.
      workers: number of reader processes; 0 reads in threads of this process, -1 uses one per core.
      notes: messages for the user about how the data set was built, one per line.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preparation: images.Preparation
    workers: int = -1
    notes: tuple[str, ...] = ()

    nbytes = 0  # no image stays in memory

    @property
    def train_count(self) -> int:
        return self.train.count

    @property
    def test_count(self) -> int:
        return self.test.count

    @property
    def train_labels(self) -> np.ndarray:
        """[N] int32; for a tfds set this reads every record once."""
        return self.train.labels

    def train_sample(self, rows) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) of the training images with these indices, prepared as for testing."""
        train = self.train
        record = _Record(train.read, train.name, self.preparation, train.count)
        pixels, labels = zip(*(record(int(row)) for row in rows), strict=True)
        return np.stack(pixels), np.stack(labels)

    def digest(self) -> str:
        """A fingerprint of names and counts; reading all pixels would be too expensive."""
        both = f"{self.train.fingerprint}\n{self.test.fingerprint}"
        return f"streamed-{hashlib.sha256(both.encode()).hexdigest()[:16]}"

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        epochs: int,
        epoch: int,
        step: int,
        devices: Devices = Devices(),
    ) -> Generator[tuple, None, None]:
        """(images uint8 [B, H, W, C], labels int32 [B]) on the devices, from a step of an epoch on.

        Each epoch has its own order of the records; an incomplete last batch is dropped. Several
        devices hold equal shares of a batch, if they divide it.
        """
        import grain

        order_seed, crop_seed = np.random.SeedSequence((seed, 2)).generate_state(2).tolist()
        order = grain.MapDataset.range(self.train.count).shuffle(seed=order_seed)
        steps = self.train.count // batch_size
        draw = _TrainingRecord(
            self.train.read, self.train.name, self.preparation, order, steps * batch_size, crop_seed
        )
        begin = epoch * steps + step
        return _batches(draw, begin, epochs * steps, batch_size, self.workers, devices)

    def batches(self, part: str, batch_size: int = 256) -> Iterator[tuple]:
        """(images, labels) of the part, "train" or "test", prepared as for testing."""
        split = getattr(self, part)
        return _valid_only(in_order(split, self.preparation, batch_size, self.workers))

    def test_batches(self, batch_size: int, devices: Devices = Devices()) -> Iterator[tuple]:
        """(images, labels, valid [B] bool) of the test images; see `in_order`."""
        return in_order(self.test, self.preparation, batch_size, self.workers, devices)


def stream(
    source: Source,
    *,
    train_examples: int = 0,
    test_examples: int = 0,
    image_size: int = 0,
    color: str = "",
    resize: str = "stretch",
    bits: int = 0,
    test_share: float = 0.2,
    split_seed: int = 0,
    at_most: bool = False,
    skip_unreadable: bool = False,
    preparation: images.Preparation | None = None,
    workers: int = -1,
) -> Stream:
    """Streams a source's images; only a sample is read, for the channel statistics.

    Args:
      source: result of `open_source`.
      train_examples, test_examples, test_share, split_seed, at_most: see `roles.train_and_test`.
      image_size, color, resize: see `assemble`; images of mixed sizes require an `image_size`, and
        color defaults to "rgb" unless it is known in advance.
      bits: depth of deep images, see `images.Preparation`; 0 means 16 if a sample has any.
      skip_unreadable: not supported: unreadable images are only found during training.
      preparation: that of a trained network; overrides `image_size`, `color`, `resize`, `bits`.
      workers: see `Stream`.

    Raises:
      UserError: the source cannot be streamed with these options.
    """
    images.check_options(color, resize, bits)
    roles.check_classes(source)
    if source.in_memory and resize == "random_crop":
        raise UserError(
            'config.data.resize is "random_crop", another part of the image each time, which is '
            "cut while images are read from disk; arrays, archives and the digits are in memory: "
            "choose stretch or crop, or a source on disk"
        )
    if source.in_memory:
        raise UserError(
            "config.data.streaming is on, but arrays, archives and the digits are in memory as "
            "soon as they are opened: leave it off"
        )
    if skip_unreadable:
        raise UserError(
            "config.data.skip_unreadable needs all images to be read before the training, so they "
            "cannot be streamed: remove what cannot be read, or set config.data.streaming=off"
        )
    train, test, notes = roles.train_and_test(
        source, train_examples, test_examples, test_share, split_seed, at_most
    )
    if preparation is None:
        preparation = _preparation(train, test, image_size, color, resize, notes)
        preparation = preparation._replace(bits=_bits(train, bits, notes))
    published = source.statistics
    if published is not None and len(published[0]) == preparation.shape[-1]:
        mean, std = published
    else:
        sample = _sample(train)
        pixels, _ = Reader(skip=False).read_images(sample, preparation)
        mean, std = dataset.statistics(pixels)
        notes.append(f"mean and deviation of the channels are those of {sample.count} images")
    return Stream(train, test, source.class_names, mean, std, preparation, workers, tuple(notes))


def outgrows_memory(
    source: Source, image_size: int, preparation: images.Preparation | None = None, **choice
) -> str:
    """Why the images should be streamed, for the user, or "" if they fit into memory.

    Args:
      source: result of `open_source`.
      image_size: the requested side, or 0.
      preparation: overrides `image_size`.
      choice: see `roles.train_and_test`.
    """
    if source.in_memory:
        return ""
    train, test, _ = roles.train_and_test(source, **choice)
    if preparation is not None:
        size = int(np.prod(preparation.shape))
    elif image_size or not train.shape:
        size = 3 * (image_size or dataset.MIXED_SIZE) ** 2
    else:
        size = train.shape[0] * train.shape[1] * (1 if train.shape[2] else 3)
    return too_large(train.count + test.count, size)


def split_batches(
    source: Source,
    split: str,
    preparation: images.Preparation,
    batch_size: int = 256,
    workers: int = -1,
) -> tuple[Iterable[tuple[np.ndarray, np.ndarray]], list[str]]:
    """(batches (images, labels) of one split, notes), streamed if it does not fit into memory.

    Args:
      source: result of `open_source`.
      split: its name, or "all".
      preparation: size and color of the images.
      batch_size, workers: of the stream; images in memory come as a single batch.
    """
    part = roles.named(source, split)
    if source.in_memory:
        roles.check_labels(source)
    size = int(np.prod(preparation.shape))
    why = "" if source.in_memory else too_large(part.count, size)
    if why:
        return _valid_only(in_order(part, preparation, batch_size, workers)), [*source.notes, why]
    pixels, labels, notes = sources.read_split(source, split, preparation)
    return [(pixels, labels)], notes


def _valid_only(batches: Iterable[tuple]) -> Iterator[tuple]:
    """(images, labels) from the batches of `in_order`; the last one may be smaller."""
    for pixels, labels, valid in batches:
        count = int(valid.sum())
        yield np.asarray(pixels[:count]), np.asarray(labels[:count])


def too_large(count: int, size: int) -> str:
    """Why `count` images of `size` bytes are streamed, or "" if they fit into memory."""
    left = memory.host_available()
    if left is None or count * size <= MEMORY_SHARE * left:
        return ""
    return (
        f"{count} images take {memory.readable(count * size)}, more than {100 * MEMORY_SHARE:.0f} "
        f"% of the {memory.readable(left)} of memory left, so they are streamed "
        "(config.data.streaming=on does so on every machine)"
    )


def in_order(
    split: Split,
    preparation: images.Preparation,
    batch_size: int,
    workers: int = -1,
    devices: Devices = Devices(),
) -> Iterator[tuple]:
    """Yields (images uint8 [B, H, W, C], labels int32 [B], valid bool [B]) of a split, in order.

    The last batch wraps around to the first images, which are marked as not valid.
    """
    read = _Record(split.read, split.name, preparation, split.count)
    steps = -(-split.count // batch_size)
    for step, batch in enumerate(_batches(read, 0, steps, batch_size, workers, devices)):
        yield *batch, np.arange(step * batch_size, (step + 1) * batch_size) < split.count


def _preparation(train, test, image_size, color, resize, notes) -> images.Preparation:
    shape = train.shape if train.shape == test.shape else None
    if image_size:
        height = width = image_size
    elif shape is not None:
        height, width, _ = shape
    else:
        raise UserError(
            "config.data.image_size is 0, but images that are streamed are not looked at "
            "beforehand, and these may differ in size: name a side, "
            "such as --config.data.image_size=224"
        )
    if not color and shape is None:
        notes.append('the images are read in colour (config.data.color="grey" changes it)')
    color = color or ("grey" if shape and shape[2] else "rgb")
    return images.Preparation(height, width, color, resize)


def _bits(train, bits, notes) -> int:
    """Bit depth of deep images: the requested one, or 16 if a sample has such images, else 0."""
    if bits or train.shape:
        return bits
    _, shapes = Reader(skip=False).survey(_sample(train))
    deep = [top for *_, top in shapes if top is not None]
    if not deep:
        return 0
    notes.append(
        f"there are images of more than eight bits, with values up to {max(deep)} in {len(shapes)} "
        "images: 65535 is white in all of them (--config.data.bits=12, say, where they have fewer)"
    )
    return 16


def _sample(split: Split) -> Split:
    """An evenly spaced sample of a split."""
    return picked(split, np.unique(np.linspace(0, split.count - 1, MEASURED).astype(int)))


def _batches(
    read: Callable,
    begin: int,
    end: int,
    batch_size: int,
    workers: int,
    devices: Devices = Devices(),
) -> Generator[tuple, None, None]:
    """Prefetched batches of read(position) on the devices, from batch `begin` to before `end`.

    Of several processes each reads what its own devices hold.
    """
    import grain

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # in a notebook; grain reads its flags
    workers = _cores() if workers < 0 else workers
    if workers:
        _check_script()
    ahead = 1 if workers else _cores()  # batches in flight, one thread each
    own = _Share(read, begin, batch_size, devices.rows(batch_size))
    positions = grain.MapDataset.range((end - begin) * len(own.rows))
    batches = positions.map(own).batch(len(own.rows), drop_remainder=True)
    batches = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    )
    batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2), _enter_worker
    )
    # A worker's arrays lie in shared memory; copies may outlive the iterator.
    batches = batches.map(lambda batch: tuple(np.array(part) for part in batch))
    if processes.alone():
        place = devices.place(batch_size) or jax.devices()[0]
        batches = grain.experimental.device_put(batches, place, cpu_buffer_size=1)
    else:
        batches = batches.map(partial(_joined, devices.place(batch_size), batch_size))
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def _check_script() -> None:
    """Raises UserError if this process' script has no main guard: each worker would rerun it."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    try:
        tree = ast.parse(Path(path).read_bytes()) if path else None
    except (OSError, SyntaxError, ValueError):  # not a Python script: workers import nothing
        return
    if tree and not any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(tree)):
        raise UserError(
            f"images are streamed by worker processes, which import {path} and would run it again: "
            'put what it does under if __name__ == "__main__":, or let threads read '
            "(config.data.workers = 0)"
        )


def _cores() -> int:
    """Cores available to this process; all cores if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _enter_worker(index: int, count: int) -> None:
    """Makes a worker ignore signals, which the parent handles, and exit with its parent."""
    parent = parent_process()
    assert parent is not None  # this process is a worker

    def follow():
        parent.join()
        os._exit(1)

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


def _joined(place, size: int, batch: tuple) -> tuple:
    """The batch of `size` whose share, or whole, each process has."""
    return tuple(
        jax.make_array_from_process_local_data(place, part, (size, *part.shape[1:]))
        if place
        else jax.device_put(part)
        for part in batch
    )


@dataclasses.dataclass(frozen=True)
class _Share:
    """number of a record among those that this process reads -> the record.

    Args:
      read: position in all of them -> the record.
      begin: number of the first batch.
      batch_size: positions of a batch.
      rows: those of them that this process reads.
    """

    read: Callable
    begin: int
    batch_size: int
    rows: range

    def __call__(self, number: int):
        step, place = divmod(number, len(self.rows))
        return self.read((self.begin + step) * self.batch_size + self.rows[place])


@dataclasses.dataclass(frozen=True)
class _Record:
    """position -> (image prepared as for testing, label)."""

    read: Callable[[int], tuple[Any, int]]
    name: Callable[[int], str]
    preparation: images.Preparation
    count: int

    def __call__(self, position: int):
        index = position % self.count
        return _read(self, index, lambda image: images.prepare(image, self.preparation))


@dataclasses.dataclass(frozen=True)
class _TrainingRecord:
    """position in the whole training -> (image, label).

    Args:
      order: grain's shuffle of the indices, a new one each epoch.
      used: records per epoch.
      seed: seed of random crops.
    """

    read: Callable[[int], tuple[Any, int]]
    name: Callable[[int], str]
    preparation: images.Preparation
    order: Any
    used: int
    seed: int

    def __call__(self, position: int):
        epoch, place = divmod(position, self.used)
        index = int(self.order[epoch * len(self.order) + place])

        def form(image):
            if self.preparation.resize != "random_crop":
                return images.prepare(image, self.preparation)
            rng = np.random.default_rng((self.seed, epoch, index))
            return images.random_crop(image, self.preparation, rng)

        return _read(self, index, form)


def _read(record, index, form):
    try:
        image, label = record.read(index)
        return form(image), np.int32(label)
    except Exception as error:  # Pillow's decoders may raise anything on a broken file
        raise UserError(
            f"cannot read the image {record.name(index)}: "
            f"{images.why(error, record.name(index))}. Repair or remove it: streamed "
            "images cannot be left out"
        ) from error
