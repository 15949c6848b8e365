"""Draws a few images of each class, as they are and as a network sees them."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

GAP = 0.12  # between two images, in sides of one
SIDE = 0.75  # of an image on the page, in inches


def draw_classes(
    path: Path, names: Sequence[str], labels, blocks: Mapping[str, np.ndarray]
) -> None:
    """Draws a grid with a row per class: its images in each block, under the block's title.

    Args:
      path: of the picture; the extension selects the format.
      names: one per class.
      labels: [N], of the images; the classes among them are drawn, each with as many images as the
        most frequent has room for.
      blocks: {title: [N, H, W, C] uint8}, the same images in different forms.
    """
    labels = np.asarray(labels)
    classes = np.unique(labels)
    columns = int(np.bincount(labels).max())
    _, height, width, _ = next(iter(blocks.values())).shape
    step_y, step_x = height * (1 + GAP), width * (1 + GAP)
    wide = len(blocks) * (columns + 0.5) - 0.5
    scale = SIDE / max(height, width)
    figure = Figure(
        figsize=(2 + scale * wide * step_x, 0.7 + scale * len(classes) * step_y),
        layout="constrained",
    )
    axes = figure.subplots()
    for number, (title, images) in enumerate(blocks.items()):
        left = number * (columns + 0.5) * step_x
        axes.text(left, -0.3 * height, title, fontsize=10, va="bottom", parse_math=False)
        for row, label in enumerate(classes):
            for column, index in enumerate(np.flatnonzero(labels == label)):
                x, y = left + column * step_x, row * step_y
                image = images[index]
                image = np.repeat(image, 3, -1) if image.shape[-1] == 1 else image[..., :3]
                axes.imshow(image, extent=(x, x + width, y + height, y), interpolation="nearest")
    for row, label in enumerate(classes):
        name = str(names[label]).encode("utf-8", "backslashreplace").decode()
        name = name if len(name) <= 24 else f"{name[:23]}…"
        y = row * step_y + height / 2
        axes.text(-0.3 * width, y, name, fontsize=10, ha="right", va="center", parse_math=False)
    axes.set_xlim(0, wide * step_x)
    axes.set_ylim(len(classes) * step_y, -0.3 * height)
    axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=120)
