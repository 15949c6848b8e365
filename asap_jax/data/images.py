"""Converts any image to uint8 pixels: Pillow's formats and modes, color, size."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from asap_jax.host.errors import UserError

CHANNELS = {"grey": 1, "rgb": 3}
RESIZE = ("stretch", "crop", "random_crop")
RANDOM_AREA = (0.08, 1.0)  # share of the image that a random crop covers
RANDOM_RATIO = (3 / 4, 4 / 3)  # width to height
TEST_SHARE = 224 / 256  # share of the side seen at test time when training crops are random
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class Preparation(NamedTuple):
    """How an image becomes network input; kept with a trained network to treat new images alike.

    height, width: in pixels.
    color: "rgb" or "grey".
    resize: how to handle other shapes: "stretch" scales each side independently; "crop" fits the
      shorter side and takes the center of the longer; "random_crop" takes a different crop each
      time in training (see `random_crop`) and the center in testing: 224 of 256 pixels along the
      shorter side, as is usual for ImageNet, and the same ratio for other sizes.
    bits: bit depth of white in images of more than eight bits, 8 to 16; 0 if the set had none:
      such an image is then read as 16-bit, or as 8-bit if its mode is 32-bit and its values fit.
    """

    height: int
    width: int
    color: str
    resize: str = "stretch"
    bits: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a prepared image."""
        return self.height, self.width, CHANNELS[self.color]


def check_options(color: str, resize: str, bits: int = 0) -> None:
    """Raises UserError for an unknown color, resize method or bit depth."""
    if bits and bits not in range(8, 17):
        raise UserError(
            f"data.bits is {bits}, but has to be 8 to 16, or 0 for what the images' values tell"
        )
    if resize not in RESIZE:
        raise UserError(f"data.resize is {resize!r}, but has to be one of {RESIZE}")
    if color and color not in CHANNELS:
        raise UserError(f'data.color is {color!r}, but has to be "rgb", "grey" or "" for their own')


def opened(path: str, max_pixels: int = 0) -> Image.Image:
    """Opens a Pillow image without decoding it.

    Args:
      path: of the file.
      max_pixels: pixel limit that replaces Pillow's own (179 million), which guards against
        decompression bombs. Raises Pillow's limit for the whole process.

    Raises:
      OSError: the file is missing or not an image.
      DecompressionBombError: the image exceeds the limit.
    """
    if max_pixels and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    image = Image.open(path)
    if max_pixels and image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        image.close()
        raise Image.DecompressionBombError(f"{size} are more than {max_pixels} pixels")
    return image


def why(error: Exception, name: str) -> str:
    """Explains to the user why an image could not be read; `name` may be its path."""
    if isinstance(error, FileNotFoundError) and os.path.islink(name):
        return (
            f"it is a link to {os.readlink(name)}, which is not there: fetch what it stands for "
            "(git annex get, dvc pull)"
        )
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it may be made to fill the memory ({' '.join(str(error).split())}); where it is as "
            "large as that in truth, --config.data.max_pixels=PIXELS lets images of so many in (in "
            "Python, PIL.Image.MAX_IMAGE_PIXELS)"
        )
    return str(error)


def is_grey(image) -> bool:
    """Whether a Pillow image or an array [H, W] or [H, W, C] has no color."""
    if isinstance(image, Image.Image):
        return image.mode in _GREY
    return image.ndim == 2 or image.shape[-1] == 1


def top(image) -> int | None:
    """The largest value of a Pillow image of more than eight bits; None for other images."""
    if not isinstance(image, Image.Image) or not image.mode.startswith("I"):
        return None
    return int(np.asarray(image).max())


def depth(largest: int) -> int:
    """The bit depth of a set of deep images, from its largest value: 8, 10, 12, 14 or 16."""
    return next((bits for bits in (8, 10, 12, 14) if largest < 1 << bits), 16)


def size(image) -> tuple[int, int]:
    """(height, width) of an array, or of a Pillow image as displayed."""
    if not isinstance(image, Image.Image):
        return image.shape[:2]
    turned = _orientation(image) >= 5
    width, height = image.size
    return (width, height) if turned else (height, width)


def _orientation(image) -> int:
    """EXIF orientation; 1 is upright, also for broken metadata and TIFF, which Pillow rotates."""
    if not _has_exif(image) or image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's metadata parsers may raise anything
        return 1


def _has_exif(image) -> bool:
    """A cheap check: `getexif` costs as much as decoding a small image."""
    return "exif" in image.info or image.format in ("TIFF", "MPO")


def prepare(image, preparation: Preparation) -> np.ndarray:
    """Converts any image to uint8 [H, W, C].

    Transparent pixels are composited on black. Deep images keep the top eight of
    `preparation.bits` bits; float pixels must lie in [0, 1]. EXIF orientation is applied. Resizing
    is bilinear with antialiasing. An animation yields its first frame.

    Args:
      image: a path, a Pillow image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
      preparation: the target size and color.

    Raises:
      OSError: Pillow cannot read the file.
      ValueError: an array has an unsupported shape or dtype, or pixels are out of range.
    """
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return prepare(opened, preparation)
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
        if image.dtype == np.uint8 and image.shape == preparation.shape:
            return image
    image = _resized(_upright(image, preparation), preparation)
    return np.asarray(image).reshape(preparation.shape)


def random_crop(image, preparation: Preparation, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, C] of a random crop, drawn like torchvision's RandomResizedCrop.

    The area is uniform in 8 to 100 % of the image's, the log aspect ratio (width to height) uniform
    between those of 3/4 and 4/3, the position uniform; the crop is resized bilinearly.

    Args:
      image: a Pillow image or an array, see `prepare`.
      preparation: the target size and color.
      rng: random generator to draw from.
    """
    image = _upright(image, preparation)
    left, top, width, height = crop_box(image.width, image.height, rng)
    part = image.crop((left, top, left + width, top + height))
    part = part.resize((preparation.width, preparation.height), Image.Resampling.BILINEAR)
    return np.asarray(part).reshape(preparation.shape)


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop of an image of that size; see `random_crop`.

    Crops that do not fit are redrawn up to ten times; the fallback is the largest center crop
    within the ratio bounds.
    """
    low, high = RANDOM_RATIO
    for _ in range(10):
        area = width * height * rng.uniform(*RANDOM_AREA)
        ratio = np.exp(rng.uniform(np.log(low), np.log(high)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (width - w) // 2, (height - h) // 2, w, h


def _upright(image, preparation) -> Image.Image:
    """The image as displayed, with eight bits and the preparation's color, at its own size."""
    if not isinstance(image, Image.Image):
        image = _from_array(np.asarray(image))
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    return _colored(_eight_bit(image, preparation.bits), preparation.color)


def _from_array(array) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(
            f"an image has to be uint8 in 0..255, got {array.dtype}: multiply floats in [0, 1] by "
            "255 and round"
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[-1] not in (3, 4)):
        raise ValueError(
            f"an image has to be [H, W], or [H, W, C] with 1, 3 or 4 channels; got {array.shape}"
        )
    return Image.fromarray(array)


def _eight_bit(image, bits: int) -> Image.Image:
    """Scales deep images to eight bits; Pillow's own conversion would clip them to 255."""
    if image.mode == "F":
        pixels = np.asarray(image)
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"its floating-point pixels run from {pixels.min():g} to {pixels.max():g}, "
                "expected [0, 1]"
            )
        return Image.fromarray(np.round(255 * pixels).astype(np.uint8))
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        white = (1 << (bits or 16)) - 1
        if pixels.min() < 0 or pixels.max() > white:
            why = f", which is white in this set ({bits} bits, config.data.bits)" if bits else ""
            raise ValueError(
                f"its pixels run from {pixels.min()} to {pixels.max()}, "
                f"expected 0 to {white:,}{why}"
            )
        if not bits:
            bits = 8 if image.mode == "I" and pixels.max() < 256 else 16
        return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))
    return image


def _colored(image, color) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    mode = "L" if color == "grey" else "RGB"
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        image = image.convert("RGB")  # CMYK, YCbCr, LAB, HSV do not convert to grey directly
    return image.convert(mode)


def _resized(image, preparation) -> Image.Image:
    target = (preparation.width, preparation.height)
    if preparation.resize == "random_crop":
        return _middle(image, target)
    if image.size == target:
        return image
    if preparation.resize == "crop":
        return ImageOps.fit(image, target, Image.Resampling.BILINEAR)
    return image.resize(target, Image.Resampling.BILINEAR)


def _middle(image, target) -> Image.Image:
    """Resizes so that `target` is 224 / 256 of the shorter side, then crops the center."""
    short = max(round(side / TEST_SHARE) for side in target)
    size = tuple(int(short * side / min(image.size)) for side in image.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((a - b) / 2) for a, b in zip(size, target, strict=True))
    return image.crop((left, top, left + target[0], top + target[1]))
