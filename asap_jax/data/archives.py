"""NumPy archives as a source."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from asap_jax.data.opened import VALIDATION, Source, of_arrays
from asap_jax.errors import UserError


def npz(path: Path) -> Source:
    """A NumPy archive: train_images and train_labels, and so for val and test if need be.

    Keras' names (x_train, y_train, ...) and plain `images` and `labels` serve as well, and the
    files of MedMNIST can be read as they are. `class_names` [classes] is optional. What the arrays
    may be: `dataset.from_arrays`.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: npz:PATH names a NumPy archive")
    try:
        with zipfile.ZipFile(path), np.load(path) as archive:  # allow_pickle stays False
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is no NumPy archive of plain arrays ({error}): write it with numpy.savez"
        ) from error
    splits, top = {}, 0
    for split in ("train", "test", *VALIDATION):
        pairs = [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")]
        if split == "train":
            pairs.append(("images", "labels"))
        for pixels, labels in pairs:
            if pixels in arrays and labels in arrays:
                split_of = of_arrays(
                    f"{path}: {pixels}", arrays[pixels], f"{path}: {labels}", arrays[labels]
                )
                splits[split] = split_of
                top = max(top, int(split_of.labels.max()) + 1)
    if "train" not in splits:
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected train_images and "
            "train_labels (or images and labels, or x_train and y_train), and test_images and "
            "test_labels if there is a test split"
        )
    names = np.ravel(arrays.get("class_names", range(top))).tolist()
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    return Source(splits, names, in_memory=True)
