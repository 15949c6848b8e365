"""Contact sheets: images as a network sees them, side by side in one PNG."""

import io

import numpy as np
from PIL import Image

SIDE = 64  # pixels that a small image is at least enlarged to
LARGEST = 128  # and a large one reduced to


def uint8_of(images, mean, std) -> np.ndarray:
    """[N, H, W, C] uint8 of normalised images."""
    scaled = np.asarray(images, np.float32) * np.asarray(std) + np.asarray(mean)
    return np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8)


def png(image) -> bytes:
    """A PNG of one image [H, W, C] or [H, W, 1] uint8; enlarged by whole numbers if it is small."""
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
    """Indices of the misclassified images whose own class got least, at most `count`."""
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    own = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    return wrong[np.argsort(own[wrong], kind="stable")][:count]
