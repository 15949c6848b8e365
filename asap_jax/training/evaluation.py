"""Accuracy and related metrics over a whole set, in batches of one compiled shape."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.data.augment import normalise
from asap_jax.data.batches import evaluation_batches
from asap_jax.host import backend, timing
from asap_jax.host.compiling import Compiler, Prepared
from asap_jax.host.devices import Devices


class Accuracy:
    """accuracy(*arguments, limit=None) -> share of correct argmax of logits(*arguments, batch).

    `limit` restricts the measurement to the first images; None uses all.
    """

    def __init__(
        self,
        logits: Callable,
        images,
        labels,
        mean,
        std,
        batch_size: int,
        rows=None,
        devices: Devices = Devices(),
    ):
        """Initializes the measurement.

        Args:
          logits: pure function of its arguments and normalized images [N, H, W, C] -> [N, classes].
          images, labels: [N, H, W, C] uint8 and [N] int32.
          mean, std: [C], for normalization.
          batch_size: images per batch.
          rows: indices of the images to use; None for all.
          devices: share each batch.
        """
        self._set = devices.put((images, labels))
        self._rows = np.arange(len(labels)) if rows is None else np.asarray(rows)
        self._batch_size = min(batch_size, len(self._rows))
        right = right_answers(logits, mean, std, devices)
        self._right = Prepared(jax.jit(right, compiler_options=devices.options))

    def prepare(self, compiler: Compiler, *arguments) -> None:
        """Compiles for arguments of these shapes ahead of the first call."""
        self._right.prepare(compiler, arguments, *self._set, *next(self._batches()))

    def __call__(self, *arguments, limit: int | None = None) -> float:
        total = sum(
            int(self._right(arguments, *self._set, *batch)) for batch in self._batches(limit)
        )
        return total / (len(self._rows) if limit is None else min(limit, len(self._rows)))

    def _batches(self, limit=None):
        rows = self._rows[:limit]
        for indices, valid in evaluation_batches(len(rows), self._batch_size):
            yield rows[indices], valid


def right_answers(logits: Callable, mean, std, devices: Devices = Devices()) -> Callable:
    """Builds right(arguments, images, labels, indices, valid) -> number of correct predictions.

    For `logits`, `images`, `labels`, `mean`, `std`, `devices` see `Accuracy`, for `indices` and
    `valid` `evaluation_batches`.
    """

    def right(arguments, images, labels, indices, valid):
        batch = devices.share(images[indices])
        with backend.shared_by(devices.count):
            predicted = logits(*arguments, normalise(batch, mean, std)).argmax(-1)
        return jnp.sum((predicted == labels[indices]) & valid)

    return right


TOP = 5


class Answers(NamedTuple):
    """A classifier's answers on a set of images.

    confusion: [K, K] integers: number of images by true class (row) and predicted class (column).
    in_top_5: number of images whose class is among the five most probable.
    """

    confusion: np.ndarray | jax.Array
    in_top_5: int | jax.Array

    @property
    def accuracy(self) -> float:
        """The share of correctly classified images."""
        return float(np.trace(self.confusion) / np.sum(self.confusion))

    @property
    def class_accuracy(self) -> list[float | None]:
        """[K], the accuracy on each class; None for classes without images."""
        right, images = np.diagonal(self.confusion), np.sum(self.confusion, 1)
        return [float(r / n) if n else None for r, n in zip(right, images, strict=True)]

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the class accuracies, over classes with images."""
        return float(np.mean([each for each in self.class_accuracy if each is not None]))

    def record(self, class_names) -> dict:
        """All test metrics as plain values.

        {"accuracy", "balanced_accuracy", "class_accuracy" {name: accuracy or None}}, with more than
        five classes "top_5_accuracy", with at most a hundred "confusion" (rows, [K][K]).
        """
        record = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "class_accuracy": dict(zip(class_names, self.class_accuracy, strict=True)),
        }
        if len(class_names) > TOP:
            record["top_5_accuracy"] = int(self.in_top_5) / int(np.sum(self.confusion))
        if len(class_names) <= 100:
            record["confusion"] = np.asarray(self.confusion).tolist()
        return record


def no_answers(classes: int) -> Answers:
    """Empty answers, the initial value for `add_answers`."""
    return Answers(jnp.zeros((classes, classes), jnp.int32), jnp.int32(0))


def add_answers(answers: Answers, scores, labels, valid=True) -> Answers:
    """Adds a batch: scores [N, K] (logits or probabilities), labels [N], valid [N] bool.

    Among equal scores the lower index comes first, as with argmax.
    """
    best = lax.top_k(scores, min(TOP, scores.shape[-1]))[1]
    counted = jnp.broadcast_to(valid, labels.shape).astype(jnp.int32)
    return Answers(
        jnp.asarray(answers.confusion).at[labels, best[:, 0]].add(counted),
        answers.in_top_5 + jnp.sum((best == labels[:, None]).any(-1) * counted, dtype=jnp.int32),
    )


class Questions:
    """questions(*arguments) -> `Answers` of logits(*arguments, batch), counted on the device."""

    def __init__(
        self,
        logits: Callable,
        images,
        labels,
        mean,
        std,
        batch_size: int,
        classes: int,
        devices: Devices = Devices(),
    ):
        """Initializes the measurement.

        Args:
          logits, images, labels, mean, std, batch_size, devices: see `Accuracy`.
          classes: K.
        """
        self._set = devices.put((images, labels))
        self._classes, self._devices = classes, devices
        self._batch_size = min(batch_size, len(labels))
        self._add = Prepared(jit_answers(adding_answers(logits, mean, std, devices), devices))

    def prepare(self, compiler: Compiler, *arguments) -> None:
        """Compiles for arguments of these shapes ahead of the first call."""
        nothing, batch = self._nothing(), next(self._batches())
        self._add.prepare(compiler, nothing, arguments, *self._set, *batch)

    def __call__(self, *arguments) -> Answers:
        total = self._nothing()
        for batch in self._batches():
            total = self._add(total, arguments, *self._set, *batch)
        return jax.device_get(total)

    def latency(self, *arguments) -> dict:
        """The time of one batch, see `latency_of`; call it after the answers, warmed up by them."""
        batch = next(self._batches())

        def call():
            return self._add(self._nothing(), arguments, *self._set, *batch)

        return latency_of(call, self._batch_size, self._devices)

    def _nothing(self):
        return self._devices.put(no_answers(self._classes))

    def _batches(self):
        return evaluation_batches(len(self._set[1]), self._batch_size)


def latency_of(call: Callable, batch_size: int, devices: Devices = Devices()) -> dict:
    """{"batch", "seconds" of a batch, "images_per_second"}, with images and weights in place.

    "devices" is there too if several took part.
    """
    seconds = timing.seconds_of(call, budget=0.5)
    latency = {"batch": batch_size, "seconds": seconds, "images_per_second": batch_size / seconds}
    return latency | ({"devices": devices.count} if devices.count > 1 else {})


def jit_answers(add: Callable, devices: Devices):
    """Jits a function that adds a batch to the answers before it, which it is donated."""
    return jax.jit(
        add, donate_argnums=0, out_shardings=devices.whole, compiler_options=devices.options
    )


def adding_answers(logits: Callable, mean, std, devices: Devices = Devices()) -> Callable:
    """Builds add(before, arguments, images, labels, indices, valid) -> `before` plus a batch.

    For the arguments see `right_answers`.
    """

    def add(before, arguments, images, labels, indices, valid):
        batch = devices.share(images[indices])
        with backend.shared_by(devices.count):
            scores = logits(*arguments, normalise(batch, mean, std))
        return add_answers(before, scores, labels[indices], valid)

    return add


class StreamedQuestions:
    """questions(*arguments) -> `Answers` of logits(*arguments, batch), counted on the device."""

    def __init__(
        self,
        logits: Callable,
        batches: Callable[[], Iterable],
        mean,
        std,
        classes: int,
        devices: Devices = Devices(),
    ):
        """Initializes the measurement.

        Args:
          logits, classes, devices: see `Questions`.
          batches: () -> (images [B, H, W, C] uint8, labels [B], valid [B] bool), all of the same
            size.
          mean, std: [C], for normalization.
        """
        self._batches, self._classes, self._last = batches, classes, None
        self._devices = devices

        def add(before, arguments, images, labels, valid):
            batch = normalise(devices.share(images), mean, std)
            with backend.shared_by(devices.count):
                scores = logits(*arguments, batch)
            return add_answers(before, scores, labels, valid)

        self._add = jit_answers(add, devices)

    def __call__(self, *arguments) -> Answers:
        total = self._nothing()
        for batch in self._batches():
            total = self._add(total, arguments, *batch)
            self._last = batch
        return jax.device_get(total)

    def latency(self, *arguments) -> dict:
        """The time of the last batch that was answered, without reading it; see `latency_of`."""

        last = self._last
        assert last is not None  # the images were answered before

        def call():
            return self._add(self._nothing(), arguments, *last)

        return latency_of(call, len(last[1]), self._devices)

    def _nothing(self):
        return self._devices.put(no_answers(self._classes))


def most_confused(confusion, class_names, pairs: int = 3) -> str:
    """The most frequent mistakes in words: "cat as dog 12, ..."; "nothing" if there are none."""
    mistakes, names = np.array(confusion), list(class_names)
    np.fill_diagonal(mistakes, 0)
    worst = [divmod(int(i), len(names)) for i in np.argsort(-mistakes, axis=None, kind="stable")]
    parts = [
        f"{names[i]} as {names[j]} {mistakes[i, j]}" for i, j in worst[:pairs] if mistakes[i, j]
    ]
    return ", ".join(parts) or "nothing"


def speed_rows(latency: dict | None) -> list[tuple[str, str]]:
    """The table row for `latency_of`; none if it was not measured."""
    if not latency:
        return []
    each = f"{1000 * latency['seconds']:.3g} ms a batch of {latency['batch']}"
    if "devices" in latency:
        each += f" on {latency['devices']} devices"
    return [("images per second", f"{latency['images_per_second']:,.0f} ({each})")]


def rows(record: dict) -> list[tuple[str, str]]:
    """Table rows for `Answers.record`, except overall and per-class accuracy."""
    pairs = [("balanced accuracy", f"{100 * record['balanced_accuracy']:.2f} %")]
    if "top_5_accuracy" in record:
        pairs.append(("top-5 accuracy", f"{100 * record['top_5_accuracy']:.2f} %"))
    if "confusion" in record:
        pairs.append(
            ("most confused", most_confused(record["confusion"], record["class_accuracy"]))
        )
    return pairs
