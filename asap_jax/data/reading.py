"""Reads the images of a split into memory with a thread pool."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from asap_jax.data import images
from asap_jax.data.opened import Split, picked
from asap_jax.host.errors import UserError

_CHUNK = 32
_PROBE = images.Preparation(8, 8, "rgb")


class Reader:
    """Reads images with a thread pool. Raises an error for an unreadable image, or skips and
    counts it."""

    def __init__(self, skip: bool):
        self._skip, self._broken = skip, []

    def survey(self, split: Split) -> tuple[Split, list]:
        """The readable part of a split, and each image's (height, width, is grey, largest value).

        The largest value is None except for images of more than eight bits. When skipping
        unreadable images, each is decoded: a truncated one has a size that must not count.
        """
        if split.shape is not None:
            return split, [(*split.shape, None)]

        def look(image):
            if self._skip:
                images.prepare(image, _PROBE)
            return *images.size(image), images.is_grey(image), images.top(image)

        shapes, kept = self._each(look, split)
        return (split if len(kept) == split.count else picked(split, kept)), shapes

    def read(self, split: Split, preparation) -> tuple[np.ndarray, np.ndarray]:
        """(images [N, H, W, C], labels [N])."""
        pixels, kept = self.read_images(split, preparation)
        return pixels, split.labels[kept]

    def read_images(self, split: Split, preparation) -> tuple[np.ndarray, np.ndarray]:
        """(images [N, H, W, C], their indices [N]); labels are not read."""
        pixels, kept = self._each(lambda i: images.prepare(i, preparation), split)
        if not pixels:
            return np.empty((0, *preparation.shape), np.uint8), kept
        return np.stack(pixels), kept

    def notes(self) -> list[str]:
        if not self._broken:
            return []
        names = ", ".join(each.name for each in self._broken[:3])
        return [f"{len(self._broken)} images could not be read and are left out: {names}"]

    def _each(self, function, split: Split):
        """([function(image)], their indices) over the readable images of a split."""

        def attempt(index):
            try:
                image, _ = split.read(index)
                result = function(image)
                if isinstance(image, Image.Image):
                    image.close()
                return result
            except Exception as error:  # Pillow's decoders may raise anything on a broken file
                return _Unreadable(split.name(index), error)

        def attempt_some(start):  # a chunk per task: small images read faster than a task starts
            return [attempt(i) for i in range(start, min(start + _CHUNK, split.count))]

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            chunks = pool.map(attempt_some, range(0, split.count, _CHUNK))
            results = [result for chunk in chunks for result in chunk]
        broken = [result for result in results if isinstance(result, _Unreadable)]
        if broken and not self._skip:
            reason = images.why(broken[0].error, broken[0].name)
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise UserError(
                f"cannot read the image {broken[0].name}{more}: {reason}. Repair or remove it "
                "(a run of its own can leave such images out: --config.data.skip_unreadable=True)"
            )
        self._broken += broken
        kept = [i for i, result in enumerate(results) if not isinstance(result, _Unreadable)]
        readable = [result for result in results if not isinstance(result, _Unreadable)]
        return readable, np.array(kept, int)


class _Unreadable(NamedTuple):
    name: str
    error: Exception
