"""Encodes images as PNG and selects the most misclassified ones."""

import io

import numpy as np
from PIL import Image

SIDE = 64  # smaller images are enlarged to at least this many pixels
LARGEST = 128  # larger images are shrunk to this many pixels


def uint8_of(images, mean, std) -> np.ndarray:
    """[N, H, W, C] uint8 from normalized images."""
    scaled = np.asarray(images, np.float32) * np.asarray(std) + np.asarray(mean)
    return np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8)


def png(image) -> bytes:
    """A PNG of one image [H, W, C] or [H, W, 1] uint8; small images are upscaled by integers."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest < SIDE:
        factor = -(-SIDE // longest)
        picture = picture.resize([factor * s for s in picture.size], Image.Resampling.NEAREST)
    picture.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def most_wrong(probabilities, labels, count: int = 12) -> np.ndarray:
    """Indices of at most `count` misclassified images, least probable true class first."""
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    own = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    return wrong[np.argsort(own[wrong], kind="stable")][:count]
