"""A trained network for its user: images of any size in, class names out."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from asap_jax import data
from asap_jax.configs import presets, rules
from asap_jax.data.augment import normalise
from asap_jax.data.dataset import as_array, as_bytes, check_images, check_labels, prepare_all
from asap_jax.data.images import Preparation, prepare, why
from asap_jax.host import checkpoint, loop, precisions, processes, workdir
from asap_jax.host.devices import local
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import NOBODY_READS, Interruption
from asap_jax.host.run_log import RunLog, html_table
from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.models import EvalNetwork, count_parameters
from asap_jax.runs import portable
from asap_jax.training import train_loop

FORMAT = "asap_jax.network"
VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with its weights and everything needed to use it.

    Attributes:
      module: the Flax module; `module.apply(variables, x)[0]` are the logits of normalized images.
      variables: {"params", "batch_stats"}.
      class_names: one name per class.
      preparation: size and color that images are converted to, as in training.
      mean, std: [C], for normalization, of images in [0, 1].
      results: metrics of the training and its test.
      config: the `train` part of the config it was trained with.
    """

    module: EvalNetwork
    variables: dict
    class_names: tuple[str, ...]
    preparation: Preparation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    results: dict = dataclasses.field(default_factory=dict)
    config: dict = dataclasses.field(default_factory=dict)

    def _repr_html_(self) -> str:
        """The cells, what they take and answer, and the accuracy, for notebooks."""
        height, width, channels = self.preparation.shape
        rows = [
            ("images", f"{height} x {width} x {channels}"),
            ("classes", ", ".join(map(str, self.class_names))),
            ("parameters", f"{count_parameters(self.variables['params']):,}"),
        ]
        names = {"test_accuracy": "test accuracy", "val_accuracy": "validation accuracy"}
        for key, name in names.items():
            if key in self.results:
                rows.append((name, f"{100 * self.results[key]:.2f} %"))
        return self.module.genotype._repr_svg_() + html_table(rows)

    def predict(self, images) -> np.ndarray:
        """Names of the most probable classes, [N]; for `images` see `predict_proba`."""
        return np.asarray(self.class_names)[self.predict_proba(images).argmax(-1)]

    def predict_proba(self, images) -> np.ndarray:
        """Class probabilities, [N, classes] float32.

        Args:
          images: one array [N, H, W] or [N, H, W, C], uint8 or floats in [0, 1]; or a list, a
            generator or an array of paths, Pillow images and arrays [H, W] or [H, W, C], each of
            any size. Arrays may be NumPy's, JAX' (including bfloat16) or torch's, with or without
            gradients. Images are converted to the size and color of the training images.

        Raises:
          UserError: there are no images, or one of them is not an image.
        """
        return self._batched(images)[0]

    def features(self, images) -> np.ndarray:
        """Inputs of the classifier, [N, F] float32: the last cell's maps, averaged over pixels."""
        return self._batched(images)[1]

    def accuracy(self, images, labels) -> float:
        """Share of `images` (see `predict_proba`) whose predicted class is that in `labels` [N]."""
        probabilities = self.predict_proba(images)
        labels = check_labels("labels", labels, len(probabilities))
        if labels.max() >= len(self.class_names):
            raise UserError(
                f"labels go up to {labels.max()}, but the network knows {len(self.class_names)} "
                "classes, from 0"
            )
        return float(np.mean(probabilities.argmax(-1) == labels))

    @precisions.in_32_bits
    def fine_tune(
        self,
        new_data,
        *,
        epochs: int = 10,
        learning_rate: float = 0.01,
        seed: int = 0,
        save_to: str | Path | None = None,
        quiet: bool = False,
        devices: int = 0,
        on_step=None,
        on_epoch=None,
        **changes,
    ) -> "TrainedNetwork":
        """Continues training on new data with a new classifier; this network stays unchanged.

        Args:
          new_data: see `data.as_dataset`. Images are converted to this network's size and color and
            normalized by its statistics.
          epochs, learning_rate, changes: values of the `train` part of a config; the others are
            those this network was trained with, or the presets'.
          seed: for the classifier, the batches and the augmentation.
          save_to: folder for the new network, which `asap_jax.load` reads. (For a run that can be
            resumed, see `asap_jax.train(..., start_from=...)`.)
          quiet: print nothing.
          devices: number that share each batch; 0 for all of this process.
          on_step, on_epoch: see `loop.Callbacks`.

        Returns:
          The new network. Its `results` hold test_accuracy, the other metrics of `Answers.record`,
          epochs and seconds.

        Raises:
          UserError: the data, a value or `save_to` is unusable.
        """
        if save_to is not None:
            save_to = _place_to_save(save_to)
        dataset = data.as_dataset(new_data, preparation=self.preparation)
        dataset = dataclasses.replace(dataset, mean=self.mean, std=self.std)
        config = presets.get_config()
        presets.update(
            config.train,
            {
                **self.config,
                "start_from": "",
                "epochs": epochs,
                "learning_rate": learning_rate,
                **changes,
            },
            "config.train",
        )
        rules.check(config)
        train_loop.check(config.train, dataset)
        with Interruption() as interruption:
            session = loop.Session(
                RunLog(None, quiet, partial(interruption.ask, NOBODY_READS)),
                interruption,
                callbacks=loop.Callbacks(on_step, on_epoch),
                devices=local(devices),
            )
            outcome = train_loop.train(
                config.train,
                self.module.genotype,
                dataset,
                seed,
                session,
                phase="fine-tune",
                start=self.variables,
            )
        tuned = from_outcome(outcome, dataset, config.train)
        if save_to is not None and processes.leads():
            tuned.save(save_to)
        return tuned

    def save(self, folder: str | Path, name: str = "network") -> None:
        """Writes NAME.json (its description) and NAME/ (an orbax checkpoint of `variables`).

        Raises:
          UserError: writing fails, or the files could not be read again.
        """
        folder = workdir.locate(folder).absolute()
        checkpoint.save(folder / name, self.variables)
        module = self.module
        workdir.write_json(
            folder / f"{name}.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "genotype": json.loads(module.genotype.to_json()),
                "channels": module.channels,
                "cells": module.cells,
                "stem": module.stem,
                "auxiliary": module.auxiliary,
                "output": module.output,
                "squeeze": module.squeeze,
                "class_names": self.class_names,
                "preparation": self.preparation._asdict(),
                "mean": self.mean,
                "std": self.std,
                "results": self.results,
                "config": self.config,
            },
        )

    @precisions.in_32_bits
    def export(
        self,
        folder: str | Path,
        platforms: Sequence[str] = ("cpu", "cuda"),
        formats: Sequence[str] | None = None,
    ) -> list[Path]:
        """Writes StableHLO, weights and source code for use without this package.

        See `portable.export`; `formats` are of `portable.FORMATS`, by default all.
        """
        return portable.export(self, folder, platforms, formats)

    @precisions.in_32_bits
    def _batched(self, images):
        """Returns (probabilities [N, K], features [N, F])."""
        pixels = self._pixels(images)
        size = min(256, max(1, len(pixels)))
        precision = self.config.get("precision", "auto")  # older networks lack it: as "auto"
        arguments = self.module, self.mean, self.std, precision
        parts = []
        for indices, valid in data.evaluation_batches(len(pixels), size):
            out = _forward(*arguments, self.variables, pixels[indices])
            parts.append([np.asarray(each)[valid] for each in out])
        if not parts:
            raise UserError("there is no image to look at: the list is empty")
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def _pixels(self, images) -> np.ndarray:
        if isinstance(images, str | Path | Image.Image):
            raise UserError("one image has to be given in a list: [image]")
        if isinstance(images, Mapping | Set):
            raise UserError(
                f"images are in an order, but a {type(images).__name__} has none: give a list"
            )
        if hasattr(images, "shape") and not _are_names(images):
            images = as_array(images)
            if images.ndim == 3 and images.shape[-1] in (3, 4):
                raise UserError(
                    f"the array {images.shape} looks like one image: give images[None], or a list"
                )
            return prepare_all(check_images("images", images), self.preparation)
        if not isinstance(images, Iterable):
            raise UserError(
                f"images have to be an array [N, H, W, C] or a list, got {type(images).__name__}"
            )
        pixels = []
        for index, image in enumerate(images):
            what = str(image) if isinstance(image, str | Path) else f"number {index}"
            try:
                if not isinstance(image, str | Path | Image.Image):
                    image = as_array(image)
                    image = as_bytes("it", image[None])[0]
                pixels.append(prepare(image, self.preparation))
            except Exception as error:  # Pillow's decoders raise anything on a broken file
                raise UserError(f"cannot read the image {what}: {why(error, what)}") from error
        return np.stack(pixels) if pixels else np.empty((0, *self.preparation.shape), np.uint8)


def _are_names(images) -> bool:
    """Whether an array holds paths or other objects, which are read one by one."""
    kind = getattr(images.dtype, "kind", "")
    return kind in ("U", "O")


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _forward(module, mean, std, precision, variables, images):
    apply = precisions.computed_in(precision, module.apply)
    (logits, _), sown = apply(
        variables, normalise(images, mean, std), train_loop.in_use(), mutable=["intermediates"]
    )
    return jax.nn.softmax(logits), sown["intermediates"]["features"][0]


def from_outcome(
    outcome: train_loop.TrainOutcome, dataset, config, part: str = "test"
) -> TrainedNetwork:
    """Builds the trained network from a training's outcome; `config` is the `train` part.

    Its accuracy is named `part`_accuracy, with "val" for held-out training images.
    """
    record = outcome.answers.record(dataset.class_names)
    results = {f"{part}_accuracy": record.pop("accuracy"), **record, "latency": outcome.latency}
    return TrainedNetwork(
        outcome.network,
        jax.device_get(outcome.variables),
        dataset.class_names,
        dataset.preparation,
        dataset.mean,
        dataset.std,
        {**results, "epochs": outcome.epochs, "seconds": outcome.seconds},
        config.to_dict(),
    )


@precisions.in_32_bits
def load(folder: str | Path, index: int = 0) -> TrainedNetwork:
    """Loads the trained network of a run's workdir.

    Args:
      folder: a workdir, or a folder that `TrainedNetwork.save` wrote.
      index: which network, after a run with several seeds.

    Raises:
      UserError: there is none, or its files do not belong together.
    """
    name = network_name(index)
    folder = workdir.locate(folder)
    path = folder / f"{name}.json"
    if not path.exists():
        raise UserError(
            f"there is no trained network at {folder} ({path.name} is missing): a run writes it "
            "when its training is done; the same command goes on with one that was cut"
        )
    record = workdir.read_json(path)
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise UserError(
            f"{path} has format {record.get('format')!r}, version {record.get('version')}; this "
            f"asap_jax reads {FORMAT!r}, version {VERSION}: use the asap_jax that wrote it, or a "
            "newer one"
        )
    try:
        module = EvalNetwork(
            Genotype.from_json(json.dumps(record["genotype"])),
            len(record["class_names"]),
            **{field: record[field] for field in ("channels", "cells", "stem", "auxiliary")},
            **{field: record[field] for field in ("output", "squeeze") if field in record},
        )
        network = TrainedNetwork(
            module,
            checkpoint.restore(folder / name),
            tuple(record["class_names"]),
            Preparation(**record["preparation"]),
            tuple(record["mean"]),
            tuple(record["std"]),
            record["results"],
            record["config"],
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"the trained network at {folder} cannot be read: {' '.join(str(error).split())[:300]}"
        ) from error
    expected = train_loop.variable_shapes(module, network.preparation.shape)
    checkpoint.check_shapes(f"the weights in {folder / name}", network.variables, expected)
    return network


def _place_to_save(folder) -> Path:
    """Creates the folder for a network yet to be trained; raises UserError if it is unusable."""
    folder = workdir.locate(folder)
    if (folder / "config.json").exists():
        raise UserError(f"save_to={folder} is the workdir of a run: choose another folder")
    checkpoint.check_place(folder.absolute())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it is not yours to write to")
    except OSError as error:
        raise UserError(
            f"save_to={folder} cannot be written to ({error}): name another folder"
        ) from error
    return folder


def network_name(index: int) -> str:
    """network, network-1, network-2, ..."""
    return f"network-{index}" if index else "network"
