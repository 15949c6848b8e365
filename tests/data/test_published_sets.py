"""Small versions of the data sets that ASAP's cells transfer to, in their published formats."""

import numpy as np
import pytest
from PIL import Image
from tfds_sets import prepare_tfds

from asap_jax import data
from asap_jax.configs import recipes
from asap_jax.data.images import Preparation
from asap_jax.host.errors import UserError

RNG = np.random.default_rng(0)


def some(count, shape, classes=10):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes


def assert_reads(loaded, train, test):
    """Checks the images and labels of both parts, in order."""
    np.testing.assert_array_equal(loaded.train_images, np.concatenate([x for x, _ in train]))
    np.testing.assert_array_equal(loaded.train_labels, np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(loaded.test_images, test[0])
    np.testing.assert_array_equal(loaded.test_labels, test[1])


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("cifar100", (32, 32, 3), 100), ("fashion_mnist", (28, 28, 1), 10)],
)
def test_small_sets_of_tfds(name, shape, classes, tmp_path):
    splits = {"train": some(2 * classes, shape, classes), "test": some(20, shape, classes)}
    prepare_tfds(tmp_path, name, splits)
    loaded = data.load(f"tfds:{name}", str(tmp_path))
    assert_reads(loaded, [splits["train"]], splits["test"])
    assert len(loaded.class_names) == classes
    known = {"fashion_mnist": ((0.28604,), (0.35302,))}
    measured = (splits["train"][0] / 255).reshape(-1, shape[-1])
    mean, std = known.get(name, (measured.mean(0), measured.std(0)))
    np.testing.assert_allclose((loaded.mean, loaded.std), (mean, std), rtol=1e-5)


def test_svhn_trains_on_its_extra_images_when_they_are_named(tmp_path):
    counts = {"train": 20, "test": 10, "extra": 30}
    splits = {part: some(count, (32, 32, 3)) for part, count in counts.items()}
    prepare_tfds(tmp_path, "svhn_cropped", splits)
    alone = data.load("tfds:svhn_cropped", str(tmp_path))
    assert_reads(alone, [splits["train"]], splits["test"])
    assert "not used: the splits extra" in alone.notes
    both = data.load("tfds:svhn_cropped+extra", str(tmp_path))
    assert_reads(both, [splits["train"], splits["extra"]], splits["test"])
    assert both.notes == ("the extra images train as well",)
    with pytest.raises(UserError, match="has no split more: it has train, test, extra"):
        data.load("tfds:svhn_cropped+more", str(tmp_path))


@pytest.mark.parametrize("place", ["+test", "+train", "+validation", "+extra+extra"])
def test_what_trains_beside_train_cannot_be_the_test_nor_train_twice(place, tmp_path):
    counts = {"train": 20, "test": 10, "extra": 30, "validation": 10}
    splits = {part: some(count, (32, 32, 3)) for part, count in counts.items()}
    prepare_tfds(tmp_path, "svhn_cropped", splits)
    with pytest.raises(UserError, match=r"has to be another split, and once"):
        data.open_source(f"tfds:svhn_cropped{place}", str(tmp_path))


def test_channels_are_measured_without_going_through_all_records(tmp_path):
    splits = {part: some(20, (32, 32, 3)) for part in ("train", "test", "extra")}
    prepare_tfds(tmp_path, "svhn_cropped", splits)
    source = data.open_source("tfds:svhn_cropped+extra", str(tmp_path))
    stream = data.stream(source, workers=0)
    whole = np.concatenate([splits["train"][0], splits["extra"][0]]) / 255
    np.testing.assert_allclose(stream.mean, whole.mean((0, 1, 2)), rtol=1e-5)
    assert not any("labels" in vars(split) for split in source.splits.values())


@pytest.fixture
def imagenet(tmp_path):
    """Twenty JPEGs of various sizes for training, ten for validation, a test without labels."""
    sizes = RNG.integers(40, 90, (40, 2))
    images = [np.full((h, w, 3), 6 * i, np.uint8) for i, (h, w) in enumerate(sizes)]
    splits = {
        "train": (images[:20], np.arange(20) % 5),
        "validation": (images[20:30], np.arange(10) % 5),
        "test": (images[30:], np.full(10, -1)),
    }
    prepare_tfds(tmp_path, "imagenet2012", splits)
    return splits, tmp_path


def test_imagenet_is_streamed(imagenet):
    splits, folder = imagenet
    source = data.open_source("tfds:imagenet2012", str(folder))
    stream = data.stream(source, image_size=32, resize="random_crop", workers=0)
    assert (stream.train_count, stream.test_count) == (20, 10)
    assert stream.mean == (0.485, 0.456, 0.406)
    assert stream.preparation == Preparation(32, 32, "rgb", "random_crop")
    notes = " ".join(stream.notes)
    assert "the test images have no labels" in notes
    assert "the validation images test" in notes
    assert "labels" not in vars(source.splits["train"])  # not all records have been read
    ((images, labels),) = stream.train_batches(20, 0, 1, 0, 0)
    grey = np.asarray(images).mean((1, 2, 3)) / 6  # identifies the record
    np.testing.assert_array_equal(np.sort(np.round(grey)), np.arange(20))
    np.testing.assert_array_equal(labels, np.round(grey).astype(int) % 5)
    ((images, labels),) = stream.batches("test")
    np.testing.assert_array_equal(labels, splits["validation"][1])


def test_records_of_tfds_can_be_read_in_another_process(imagenet):
    _, folder = imagenet
    source = data.open_source("tfds:imagenet2012", str(folder))
    here, there = (
        next(data.stream(source, image_size=32, workers=workers).train_batches(20, 0, 1, 0, 0))
        for workers in (0, 1)
    )
    np.testing.assert_array_equal(there[0], here[0])
    np.testing.assert_array_equal(there[1], here[1])


def test_tfds_sets_that_are_not_whole(tmp_path):
    target = prepare_tfds(tmp_path, "cifar10", {"test": some(10, (32, 32, 3))})
    with pytest.raises(UserError, match=f"at {target} has no split train: it has test"):
        data.load("tfds:cifar10", str(tmp_path))
    splits = {part: some(10, (32, 32, 3)) for part in ("train", "test")}
    target = prepare_tfds(tmp_path / "b", "cifar10", splits)
    next(target.glob("*-test.*")).unlink()
    message = r"at .* is not whole: 1 of 2 files are missing \(cifar10-test.*prepare=True"
    with pytest.raises(UserError, match=message):
        data.load("tfds:cifar10", str(tmp_path / "b"))


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize("form", ["tfrecord", "riegeli"])
def test_a_set_that_is_prepared_in_another_format_is_told_of(form, prepare, tmp_path):
    splits = {part: some(10, (32, 32, 3)) for part in ("train", "test")}
    target = prepare_tfds(tmp_path, "cifar10", splits)
    info = target / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", form))
    message = rf"at {target} is prepared as {form}, which only TensorFlow reads.*convert_format"
    with pytest.raises(UserError, match=message):
        data.load("tfds:cifar10", str(tmp_path), prepare=prepare)


@pytest.mark.parametrize("bits", [0, 10, 12, 16])
@pytest.mark.parametrize("how", ["memory", "stream"])
def test_the_depth_of_a_set_whose_shape_is_known_can_be_said(how, bits, tmp_path, monkeypatch):
    deep = Image.fromarray(np.arange(784, dtype=np.uint16).reshape(28, 28))
    opened = Image.open  # Pillow's own, for everything but the records
    splits = {part: some(20, (28, 28, 1)) for part in ("train", "test")}
    prepare_tfds(tmp_path, "fashion_mnist", splits)
    source = data.open_source("tfds:fashion_mnist", str(tmp_path))
    monkeypatch.setattr(
        Image, "open", lambda file: deep.copy() if hasattr(file, "read") else opened(file)
    )
    if how == "stream":
        loaded = data.stream(source, workers=0, bits=bits)
        pixels = next(iter(loaded.batches("train")))[0]
    else:
        loaded = data.assemble(source, bits=bits)
        pixels = loaded.train_images
    want = np.arange(784).reshape(28, 28) >> ((bits or 16) - 8)
    np.testing.assert_array_equal(pixels[0, ..., 0], want)
    assert loaded.preparation.bits == bits


# Folders


def save(path, images):
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i}.png")


def test_cinic10_trains_on_train_and_valid(tmp_path):
    images, _ = some(18, (32, 32, 3))
    for i, part in enumerate(("train", "valid", "test")):
        for j, name in enumerate(("airplane", "bird")):
            save(tmp_path / part / name, images[6 * i + 3 * j : 6 * i + 3 * j + 3])
    loaded = data.load(f"cinic10:{tmp_path}")
    labels = np.repeat([0, 1], 3)
    train = [(images[:6], labels), (images[6:12], labels)]
    assert_reads(loaded, train, (images[12:], labels))
    assert loaded.class_names == ("airplane", "bird")
    assert loaded.mean == (0.47889522, 0.47227842, 0.43047404)
    assert loaded.std == (0.24205776, 0.23828046, 0.25874835)
    source = data.open_source(f"cinic10:{tmp_path}")
    size = recipes.cinic10().data.image_size
    for sized in (data.assemble(source, image_size=size), data.stream(source, image_size=size)):
        assert (sized.mean, sized.std) == (loaded.mean, loaded.std)


@pytest.fixture
def groceries(tmp_path):
    """Two classes, numbered against alphabetical order like the published ones."""
    images, _ = some(8, (16, 16, 3))
    save(tmp_path / "images" / "BEANS", images[:4])
    save(tmp_path / "images" / "CANDY", images[4:])
    (tmp_path / "splits").mkdir()
    lines = {
        "train": "BEANS/2.png 1\nCANDY/0.png 0\nBEANS/0.png 1\n",
        "test": "CANDY/3.png 0\n",
    }
    for part, listed in lines.items():
        (tmp_path / "splits" / f"{part}0.txt").write_text(listed)
    return tmp_path, images


def test_freiburg_groceries_go_by_their_first_split(groceries):
    folder, images = groceries
    loaded = data.load(f"freiburg:{folder}")
    assert_reads(loaded, [(images[[2, 4, 0]], [1, 0, 1])], (images[[7]], [0]))
    assert loaded.class_names == ("CANDY", "BEANS")
    assert data.load(f"freiburg:{folder}", image_size=8).train_images.shape == (3, 8, 8, 3)
    stream = data.stream(data.open_source(f"freiburg:{folder}"), image_size=8, workers=0)
    ((_, labels),) = stream.train_batches(3, 0, 1, 0, 0)
    np.testing.assert_array_equal(np.sort(labels), [0, 1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "splits/test0.txt").unlink(), "splits/test0.txt is missing: name the"),
        (lambda f: (f / "images/BEANS/2.png").unlink(), "1 of the 3 images .*BEANS/2.png: unpack"),
        (
            lambda f: (f / "splits/test0.txt").write_text("BEANS/1.png 0\n"),
            "do not number the classes from 0",
        ),
        (
            lambda f: (f / "splits/test0.txt").write_text("CANDY 0\n"),
            "test0.txt has the line 'CANDY 0', expected CLASS/FILE.png NUMBER",
        ),
    ],
)
def test_groceries_that_are_refused(change, message, groceries):
    folder, _ = groceries
    change(folder)
    with pytest.raises(UserError, match=message):
        data.load(f"freiburg:{folder}")


def test_cinic10_without_its_parts(tmp_path):
    save(tmp_path / "train" / "cat", some(2, (8, 8, 3))[0])
    message = f"looked for in {tmp_path}, but the folder valid and the folder test is missing there"
    with pytest.raises(UserError, match=message):
        data.load(f"cinic10:{tmp_path}")
