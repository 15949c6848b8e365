"""Folder layouts found in practice: what counts as splits and classes, and what is asked."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from asap_jax import data
from asap_jax.host.errors import UserError

RNG = np.random.default_rng(0)


def write(root, tree):
    """Writes images by folder: {"train/cat": 3}; 0 makes an empty folder."""
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shade = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(shade).save(root / folder / f"{i}.png")
    return root


def both(train, test, inner=""):
    """Class folders a and b in two folders, with 4 images each for training and 2 for testing."""
    return {
        f"{part}/{inner}{name}": n for part, n in ((train, 4), (test, 2)) for name in ("a", "b")
    }


SPELLINGS = [
    ("Training", "Testing"),
    ("train", "test"),
    ("TRAIN", "TEST"),
    ("Train", "Validation"),
    ("training_set", "test_set"),
    ("TrainSet", "TestSet"),
    ("train_images", "test-images"),
    ("Training Data", "Testing Data"),
    ("seg_train", "seg_test"),
    ("asl_alphabet_train", "asl_alphabet_test"),
    ("train", "dev"),
]


@pytest.mark.parametrize("inner", ["", "inside/"])
@pytest.mark.parametrize(("train", "test"), SPELLINGS)
def test_split_folders_in_all_spellings(train, test, inner, tmp_path):
    write(tmp_path, both(train, test, inner))
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.class_names == ("a", "b")
    assert (loaded.train_count, loaded.test_count) == (8, 4)


CERTAIN = {
    "a folder around": ({"PetImages/Cat": 5, "PetImages/Dog": 5}, ("Cat", "Dog"), "one folder"),
    "two folders around": ({"x/y/Cat": 5, "x/y/Dog": 5}, ("Cat", "Dog"), "one folder"),
    "a folder around splits": (
        {f"data/{k}": n for k, n in both("Train", "Test").items()},
        ("a", "b"),
        "one folder",
    ),
    "macOS": ({"a": 5, "b": 5, "__MACOSX/a": 1}, ("a", "b"), "other programs: __MACOSX"),
    "macOS in a class": ({"a": 5, "b": 5, "a/__MACOSX": 1}, ("a", "b"), ""),
    "Synology": ({"a": 5, "b": 5, "@eaDir": 0}, ("a", "b"), "other programs"),
    "a test without labels": (
        {"train/a": 5, "train/b": 5, "test": 3},
        ("a", "b"),
        "without labels, they are not used",
    ),
    "a test without labels, deeper": (
        {"train/a": 5, "train/b": 5, "test/test": 3},
        ("a", "b"),
        "without labels, they are not used",
    ),
    "a test of unknown": (
        {"train/a": 5, "train/b": 5, "test/unknown": 3},
        ("a", "b"),
        "without labels, they are not used",
    ),
    "a folder of other things": (
        {"train/a": 5, "train/b": 5, "annotations": 0},
        ("a", "b"),
        "without images: annotations",
    ),
    "a class called train": (
        {"bus": 5, "car": 5, "train": 5},
        ("bus", "car", "train"),
        "taken as classes, .*: train",
    ),
    "classes called pass and test": ({"pass": 5, "test": 5}, ("pass", "test"), ""),
    "a class that begins with train": (
        {"train_station": 5, "airport": 5},
        ("airport", "train_station"),
        "",
    ),
}


@pytest.mark.parametrize("kind", CERTAIN)
def test_layouts_that_are_certain(kind, tmp_path):
    tree, class_names, note = CERTAIN[kind]
    write(tmp_path, tree)
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.class_names == class_names
    images = 12 if "splits" in kind else 5 * len(class_names)
    assert loaded.train_count + loaded.test_count == images
    assert re.search(note, " ".join(loaded.notes))


ASKED = {
    "splits beside classes": (
        {**both("train", "test"), "c": 2},
        "not both.*data.train=FOLDER",
        {"train": "train", "test": "test"},
        ("a", "b"),
        (8, 4),
    ),
    "two spellings": (
        {**both("train", "test"), **both("Training", "Testing")},
        "holds both .* two folders for the same images",
        {"train": "Training", "test": "test"},
        ("a", "b"),
        (8, 4),
    ),
    "only train and test, of images": (
        {"train": 10, "test": 5},
        "no classes: .*csv:PATH.*data.train=.",
        {"train": "."},
        ("test", "train"),
        (12, 3),
    ),
    "no train": (
        both("val", "test"),
        "the splits test, val; one has to be called train.*--config.data.train=FOLDER",
        {"train": "val", "test": "test"},
        ("a", "b"),
        (8, 4),
    ),
    "a test beside classes": (
        {"a": 4, "b": 4, "test/a": 2, "test/b": 2},
        "--config.data.test=test tests on it",
        {"test": "test"},
        ("a", "b"),
        (8, 4),
    ),
    "splits that are classes": (
        {"train/x": 5, "test/x": 5},
        "one class only",
        {"train": "."},
        ("test", "train"),
        (8, 2),
    ),
}


@pytest.mark.parametrize("kind", ASKED)
def test_layouts_that_are_not_certain_are_settled_by_an_option(kind, tmp_path):
    tree, message, options, class_names, counts = ASKED[kind]
    write(tmp_path, tree)
    with pytest.raises(UserError, match=message):
        data.load(f"folder:{tmp_path}")
    loaded = data.load(f"folder:{tmp_path}", **options)
    assert loaded.class_names == class_names
    assert (loaded.train_count, loaded.test_count) == counts


def test_explicit_folders_may_lie_elsewhere_and_have_to_be_there(tmp_path):
    write(tmp_path, {"one/a": 4, "one/b": 4, "two/a": 2, "two/b": 2})
    loaded = data.load(f"folder:{tmp_path}/one", test=str(tmp_path / "two"))
    assert (loaded.train_count, loaded.test_count) == (8, 4)
    with pytest.raises(UserError, match=r"config\.data\.test is 'three', but there is no folder"):
        data.load(f"folder:{tmp_path}", test="three")
    with pytest.raises(UserError, match="the test images have to be others"):
        data.load(f"folder:{tmp_path}/one", test=".")


# Links


def elsewhere(tmp_path, tree):
    return write(tmp_path / "elsewhere", tree)


def linked_class(root, other):
    (root / "b").symlink_to(other / "b")


def linked_subfolder(root, other):
    (root / "b").mkdir()
    (root / "b" / "more").symlink_to(other / "b")


def linked_images(root, other):
    (root / "b").mkdir()
    for image in sorted((other / "b").iterdir()):
        (root / "b" / image.name).symlink_to(image)


def linked_twice(root, other):
    """To one folder; each image counts once."""
    (root / "b").mkdir()
    for name in ("first", "second"):
        (root / "b" / name).symlink_to(other / "b")


def circle(root, other):
    shutil.copytree(other / "b", root / "b")
    (root / "b" / "here").symlink_to(root / "b")
    (root / "b" / "above").symlink_to(root)
    (root / "all").symlink_to(root)


def across(root, other):
    """Two folders that link to each other."""
    shutil.copytree(other / "b", root / "b" / "x")
    (root / "b" / "y").mkdir()
    (root / "b" / "x" / "y").symlink_to("../y")
    (root / "b" / "y" / "x").symlink_to("../x")


@pytest.mark.parametrize(
    "link", [linked_class, linked_subfolder, linked_images, linked_twice, circle, across]
)
def test_links_are_followed_and_circles_end(link, tmp_path):
    other = elsewhere(tmp_path, {"b": 5})
    root = write(tmp_path / "images", {"a": 5})
    link(root, other)
    loaded = data.load(f"folder:{root}")
    assert loaded.class_names == ("a", "b")
    assert loaded.train_count + loaded.test_count == 10
    assert any("links that lead back" in note for note in loaded.notes) == (link is circle)


def broken_image(root):
    (root / "a" / "0.png").unlink()
    (root / "a" / "0.png").symlink_to("../.git/annex/objects/0.png")


def broken_without_ending(root):
    (root / "a" / "deeper").symlink_to("nowhere")


def to_itself(root):
    (root / "a" / "8.png").symlink_to("8.png")


@pytest.mark.parametrize("damage", [broken_image, broken_without_ending, to_itself])
def test_links_that_lead_nowhere_are_unreadable_images(damage, tmp_path):
    write(tmp_path, {"a": 5, "b": 5})
    damage(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the image .*(link to .*dvc pull|levels)"):
        data.load(f"folder:{tmp_path}")
    loaded = data.load(f"folder:{tmp_path}", skip_unreadable=True)
    assert "1 images could not be read" in " ".join(loaded.notes)
    with pytest.raises(UserError, match=r"cannot read the image .*(link to .*dvc pull|levels)"):
        stream = data.stream(data.open_source(f"folder:{tmp_path}"), image_size=8, workers=0)
        list(stream.train_batches(8, 0, 1, 0, 0))


def test_a_class_that_is_a_broken_link_is_told_of(tmp_path):
    write(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "c").symlink_to("nowhere")
    with pytest.raises(UserError, match="c is a link to nowhere, which is not there"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed_is_told_of(tmp_path):
    write(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "b").chmod(0)
    with pytest.raises(UserError, match="b cannot be looked into"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("ending", ["h5", "hdf", "mpg", "mpeg", "eps", "ps", "grib", "bufr", "wmf"])
def test_what_is_no_picture_is_no_image_though_pillow_registers_it(ending, tmp_path):
    write(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / f"thing.{ending}").write_bytes(b"\x89HDF\r\n\x1a\n")
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.train_count + loaded.test_count == 10
    assert f"by their endings no images: .{ending} (1)" in " ".join(loaded.notes)
