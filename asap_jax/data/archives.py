"""NumPy archives as a source."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from asap_jax.data.opened import VALIDATION, Choices, Source, numbered, of_arrays
from asap_jax.host.errors import UserError


def npz(path: Path, choices: Choices = Choices()) -> Source:
    """Opens a NumPy archive with train_images and train_labels, optionally also val and test.

    Keras' names (x_train, y_train, ...) and plain `images` and `labels` work too, and MedMNIST
    files can be read unchanged. `class_names` [classes] is optional. For valid arrays and
    `choices.sparse_labels` see `sources.from_arrays`.
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
    splits = {}
    for split in ("train", "test", *VALIDATION):
        pairs = [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")]
        if split == "train":
            pairs.append(("images", "labels"))
        for pixels, labels in pairs:
            if pixels in arrays and labels in arrays:
                splits[split] = of_arrays(
                    f"{path}: {pixels}",
                    arrays[pixels],
                    f"{path}: {labels}",
                    arrays[labels],
                    choices.sparse_labels,
                )
    if "train" not in splits:
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected train_images and "
            "train_labels (or images and labels, or x_train and y_train), and test_images and "
            "test_labels if there is a test split"
        )
    names = None
    if "class_names" in arrays:
        names = np.ravel(arrays["class_names"]).tolist()
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
    return Source(*numbered(splits, names, choices.sparse_labels), in_memory=True)
