"""A whole run on photographs cut from CIFAR-10 into files of many formats, modes and sizes."""

import os

import numpy as np
import pytest
from PIL import Image

import asap_jax
from asap_jax import data
from asap_jax.configs import presets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 training and 150 test photographs as PNG, JPEG and PPM, 24 to 96 pixels a side."""
    tfds = os.environ.get("ASAP_JAX_TFDS_DIR")
    if not tfds:
        pytest.skip("needs CIFAR-10 as tfds prepares it: set ASAP_JAX_TFDS_DIR to its folder")
    source = data.load("tfds:cifar10", tfds, train_examples=600, test_examples=150)
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part in ("train", "test"):
        pixels, labels = getattr(source, f"{part}_images"), getattr(source, f"{part}_labels")
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            height, width = rng.integers(24, 33, 2)
            top, left = rng.integers(0, 33 - height), rng.integers(0, 33 - width)
            scale = int(rng.integers(1, 4))
            piece = Image.fromarray(image[top : top + height, left : left + width])
            piece = piece.resize((int(width) * scale, int(height) * scale))
            ending = ("png", "jpg", "ppm")[i % 3]
            mode, ending = {
                3: ("L", ending),
                5: ("P", "png"),
                7: ("RGBA", "png"),
                9: ("CMYK", "jpg"),
            }.get(i % 11, ("RGB", ending))
            where = root / part / source.class_names[label]
            where.mkdir(parents=True, exist_ok=True)
            piece.convert(mode).save(where / f"{i}.{ending}")
    return root


@pytest.mark.slow
def test_a_folder_of_photographs_is_searched_trained_and_loaded(folder, tmp_path):
    config = presets.get_config("small")
    config.data.source, config.data.image_size = f"folder:{folder}", 32
    config.search.epochs, config.train.epochs = 5, 4
    config.search.alpha.learning_rate = 0.1
    outcome = asap_jax.run(config, workdir=tmp_path, quiet=True)
    assert outcome.search["candidates_left"] < 40  # of 196; 28 edges
    assert outcome.results["test_accuracy"] > 0.15  # ten classes
    network = asap_jax.load(tmp_path)
    files = sorted(folder.glob("test/*/*"))
    named = network.predict(files)
    truth = np.array([file.parent.name for file in files])
    assert (named == truth).mean() == pytest.approx(outcome.results["test_accuracy"])
    (folder / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(asap_jax.UserError, match=r"cannot read the image .*broken\.png"):
        asap_jax.run(config, workdir=tmp_path / "again", quiet=True)
    assert not (tmp_path / "again").exists()
