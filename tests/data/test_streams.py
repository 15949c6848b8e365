"""Images read during training: which, when, how they are cropped, and how runs resume."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from command import ROOT
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny import last_state, records

import asap_jax
from asap_jax import data
from asap_jax.configs import presets, rules
from asap_jax.data.images import Preparation, crop_box, prepare, random_crop
from asap_jax.host import checkpoint, memory
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interrupted
from asap_jax.runs import inputs

TRAIN, TEST, BATCH, EPOCHS = 44, 14, 8, 3
STEPS = TRAIN // BATCH

# Cells that compile quickly.
POOLS = tuple((("max_pool_3x3", 0), ("skip_connect", 1)) for _ in range(2))
CELLS = asap_jax.Genotype(POOLS, (2, 3), POOLS, (2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of crops of two photographs, 30 to 60 pixels a side; all different."""
    root, rng = tmp_path_factory.mktemp("pieces"), np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        for part, count in (("train", TRAIN // 2), ("test", TEST // 2)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(30, 60, 2)
                top, left = rng.integers(0, 360), rng.integers(0, 570)
                piece = Image.fromarray(photograph[top : top + height, left : left + width])
                piece.save(root / part / name / f"{i}.png")
    return root


def open_stream(folder, **options):
    options = {"image_size": 16, "workers": 0, **options}
    return data.stream(data.open_source(f"folder:{folder}"), **options)


def batches(stream, seed=5, epoch=0, step=0):
    """The batches that a training receives from a step on, as arrays."""
    coming = stream.train_batches(BATCH, seed, EPOCHS, epoch, step)
    return [tuple(map(np.asarray, batch)) for batch in coming]


def assert_equal_batches(got, want):
    assert len(got) == len(want)
    for (x, y), (other_x, other_y) in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


def test_an_epoch_has_each_record_once_in_an_order_of_its_own(folder):
    stream = open_stream(folder)
    whole = data.load(f"folder:{folder}", image_size=16)
    numbers = {image.tobytes(): i for i, image in enumerate(whole.train_images)}
    assert len(numbers) == TRAIN
    got = batches(stream)
    assert len(got) == EPOCHS * STEPS
    orders = []
    for epoch in range(EPOCHS):
        part = got[epoch * STEPS : (epoch + 1) * STEPS]
        order = [numbers[image.tobytes()] for images, _ in part for image in images]
        labels = np.concatenate([y for _, y in part])
        np.testing.assert_array_equal(labels, whole.train_labels[order])
        assert len(set(order)) == STEPS * BATCH
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != sorted(orders[0])
    assert len(set(orders[0]) | set(orders[1]) | set(orders[2])) == TRAIN
    assert_equal_batches(batches(stream), got)
    other = [numbers[image.tobytes()] for images, _ in batches(stream, seed=6) for image in images]
    assert all(other[: STEPS * BATCH] != order for order in orders)  # no epoch of another seed


def test_any_number_of_workers_gives_the_same_from_any_step_on(folder):
    want = batches(open_stream(folder, resize="random_crop"))
    for workers in (0, 2):
        stream = open_stream(folder, resize="random_crop", workers=workers)
        assert_equal_batches(batches(stream, epoch=1, step=3), want[STEPS + 3 :])


def test_random_crops_differ_by_epoch_and_seed(folder):
    stream = open_stream(folder, resize="random_crop")
    pieces = {x.tobytes() for images, _ in batches(stream) for x in images}
    assert len(pieces) == EPOCHS * STEPS * BATCH
    assert not pieces & {x.tobytes() for images, _ in batches(stream, seed=6) for x in images}


def test_the_test_images_come_in_order_once(folder):
    for resize in ("stretch", "random_crop"):
        stream = open_stream(folder, resize=resize)
        got = [tuple(map(np.asarray, batch)) for batch in stream.test_batches(4)]
        assert all(len(images) == 4 for images, _, _ in got)
        images = np.concatenate([x[valid] for x, _, valid in got])
        labels = np.concatenate([y[valid] for _, y, valid in got])
        files = sorted((folder / "test").glob("*/*.png"))
        want = np.stack([prepare(file, stream.preparation) for file in files])
        np.testing.assert_array_equal(images, want)
        np.testing.assert_array_equal(labels, np.repeat([0, 1], TEST // 2))


# How images are cropped


def test_random_crops_keep_to_their_bounds():
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, width, height = crop_box(500, 375, rng)
        assert 0 <= left <= 500 - width
        assert 0 <= top <= 375 - height
        areas.append(width * height / (500 * 375))
        ratios.append(width / height)
    assert 0.079 < min(areas) < 0.09
    assert 0.95 < max(areas) <= 1
    assert 0.745 < min(ratios) < 0.76
    assert 1.32 < max(ratios) < 1.345
    areas, logs = np.array(areas), np.log(ratios)
    small = areas < 0.4  # which fit whatever their ratio
    assert abs(areas[small].mean() - 0.24) < 0.01
    assert abs(logs[small].mean()) < 0.02
    # No crop of that ratio fits well into a strip: its middle, as wide as the ratio allows.
    boxes = {crop_box(1000, 3, rng) for _ in range(200)}
    assert (498, 0, 4, 3) in boxes


def test_a_random_crop_is_pillows(folder):
    image = Image.open(next(folder.glob("train/*/*.png"))).convert("RGB")
    preparation = Preparation(16, 16, "rgb", "random_crop")
    left, top, width, height = crop_box(*image.size, np.random.default_rng(3))
    box = (left, top, left + width, top + height)
    want = image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    got = random_crop(image, preparation, np.random.default_rng(3))
    np.testing.assert_array_equal(got, np.asarray(want))


@pytest.mark.parametrize(("size", "resized"), [((500, 375), (341, 256)), ((300, 451), (256, 384))])
def test_a_test_sees_the_middle_of_256_pixels(size, resized):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    got = prepare(image, Preparation(224, 224, "rgb", "random_crop"))
    whole = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    top, left = (round((side - 224) / 2) for side in whole.shape[:2])
    np.testing.assert_array_equal(got, whole[top : top + 224, left : left + 224])


# Trainings


def config_of(folder, workers=0):
    config = presets.get_config("tiny")
    config.data.update(
        {
            "source": f"folder:{folder}",
            "train_examples": 0,
            "test_examples": 0,
            "image_size": 16,
            "resize": "random_crop",
            "workers": workers,
        }
    )
    config.train.update({"channels": 4, "epochs": EPOCHS, "batch_size": BATCH})
    return config


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """(workdir, network) of an uninterrupted streamed training."""
    workdir = tmp_path_factory.mktemp("streamed")
    return workdir, asap_jax.train(CELLS, config_of(folder), workdir=workdir, quiet=True)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_cut_in_an_epoch_it_ends_bit_for_bit_as_uncut(workers, folder, trained, tmp_path):
    whole, _ = trained

    def cut(record):
        if (record["epoch"], record["step"]) == (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="1 epochs and 3 of 5 steps"):
        asap_jax.train(CELLS, config_of(folder), workdir=tmp_path, quiet=True, on_step=cut)
    network = asap_jax.train(CELLS, config_of(folder, workers), workdir=tmp_path, quiet=True)
    assert records(tmp_path) == records(whole)
    got, want = last_state(tmp_path, "train-0"), last_state(whole, "train-0")
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert network.results["test_accuracy"] == trained[1].results["test_accuracy"]


def test_a_streamed_training_is_tested_and_evaluated_on_all_images(folder, trained):
    workdir, network = trained
    files = sorted((folder / "test").glob("*/*.png"))
    right = network.predict(files) == np.array([file.parent.name for file in files])
    assert network.results["test_accuracy"] == pytest.approx(right.mean())
    own = asap_jax.evaluate(workdir, quiet=True)
    assert (own["images"], own["accuracy"]) == (TEST, pytest.approx(right.mean()))
    assert asap_jax.evaluate(workdir, split="train", quiet=True)["images"] == TRAIN
    named = asap_jax.evaluate(workdir, f"folder:{folder}", quiet=True)
    assert named["class_accuracy"] == own["class_accuracy"]


def test_a_split_to_measure_on_is_streamed_if_it_is_too_large(folder, monkeypatch):
    preparation = Preparation(16, 16, "rgb", "crop")
    source = data.open_source(f"folder:{folder}")
    ((images, labels),), notes = data.split_batches(source, "all", preparation)
    assert (len(labels), notes) == (TRAIN + TEST, [])
    monkeypatch.setattr(memory, "host_available", lambda: 1000)
    coming, (note,) = data.split_batches(source, "all", preparation, 16, workers=0)
    parts = list(coming)
    assert [len(y) for _, y in parts] == [16, 16, 16, 10]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), images)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), labels)
    assert "so they are streamed" in note


def test_a_stream_trains_as_arrays_do(folder):
    """The same batch gives the same step, whichever way it arrives."""
    config = config_of(folder)
    config.data.resize = "stretch"
    arrays = inputs.load_data(config)
    config.data.streaming = "on"
    stream = inputs.load_data(config)
    assert isinstance(arrays, data.Dataset)
    assert isinstance(stream, data.Stream)
    assert stream.preparation == arrays.preparation
    np.testing.assert_allclose(stream.mean, arrays.mean, rtol=1e-6)  # all 44 are in the sample
    np.testing.assert_array_equal(stream.train_labels, arrays.train_labels)


# What is streamed, and what is refused


def test_what_memory_does_not_hold_is_streamed_and_it_is_said(folder, monkeypatch):
    config = config_of(folder)
    config.data.resize = "stretch"
    needed = (TRAIN + TEST) * 16 * 16 * 3
    monkeypatch.setattr(memory, "host_available", lambda: 2 * needed)
    assert isinstance(inputs.load_data(config), data.Dataset)
    monkeypatch.setattr(memory, "host_available", lambda: 2 * needed - 2)
    stream = inputs.load_data(config)
    assert isinstance(stream, data.Stream)
    assert any("58 images take 44.5 kB, more than 50 %" in note for note in stream.notes)
    config.data.streaming = "off"
    assert isinstance(inputs.load_data(config), data.Dataset)


def test_streams_of_other_files_have_other_fingerprints(folder):
    digest = open_stream(folder).digest()
    assert open_stream(folder).digest() == digest
    assert open_stream(folder, train_examples=20).digest() != digest
    assert open_stream(folder / "train", test_share=0.3).digest() != digest


def test_a_run_may_ask_for_streaming_by_name_but_not_change_over(folder, trained):
    """`auto` decides by free memory: a second start may have to request the earlier decision."""
    workdir, _ = trained
    config = config_of(folder)
    config.data.streaming = "on"
    assert asap_jax.train(CELLS, config, workdir=workdir, quiet=True).results
    in_memory = data.from_arrays(
        np.arange(40 * 256, dtype=np.uint8).reshape(40, 16, 16), np.arange(40) % 2
    )
    ours, other = open_stream(folder).digest(), in_memory.digest()
    with pytest.raises(UserError, match=f"data: {ours} there, {other} here") as error:
        checkpoint.check_identity(workdir, {"data": ours}, {"data": other})
    assert "data: streamed-" in str(error.value)


def refused(folder, **changes):
    config = config_of(folder)
    config.data.update({"resize": "stretch", "streaming": "on", **changes})
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digits"}, "the digits are in memory as soon as they are opened"),
        ({"source": "digits", "resize": "random_crop"}, "are in memory: choose stretch or crop"),
        ({"image_size": 0}, "config.data.image_size is 0.*name a side"),
        ({"skip_unreadable": True}, "remove what cannot be read"),
        ({"resize": "random_crop", "streaming": "off"}, "stream them .*or choose stretch or crop"),
        ({"resize": "middle"}, "has to be one of"),
        ({"source": "folder:/none"}, "there is no folder /none"),
    ],
)
def test_streams_that_are_refused(changes, message, folder):
    with pytest.raises(UserError, match=message):
        inputs.load_data(refused(folder, **changes))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("streaming", "yes", "one of auto, on, off"), ("workers", -2, "-1, 0 or more")],
)
def test_keys_out_of_range(key, value, expected):
    config = presets.get_config()
    config.data[key] = value
    with pytest.raises(UserError, match=rf"config.data.{key} is .*{expected}"):
        rules.check(config)


def test_a_search_needs_its_images_in_memory(folder, tmp_path):
    with pytest.raises(UserError, match=r"a search needs its images in memory.*--mode=train"):
        asap_jax.search(refused(folder), workdir=tmp_path / "run", quiet=True)
    config = refused(folder, streaming="auto", resize="random_crop")
    with pytest.raises(UserError, match="images in memory cannot give"):
        asap_jax.run(config, workdir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_read_is_named(workers, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            image = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    stream = open_stream(tmp_path, image_size=8, workers=workers)
    for file in tmp_path.glob("a/*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot read the image .*/a/\d.png: .*truncated"):
        list(stream.train_batches(4, 0, 1, 0, 0))


def test_batches_are_on_the_device_and_close_early(folder):
    coming = open_stream(folder).train_batches(BATCH, 0, EPOCHS, 0, 0)
    images, labels = next(coming)
    assert isinstance(images, jax.Array)
    assert (images.shape, images.dtype, labels.dtype) == ((BATCH, 16, 16, 3), np.uint8, np.int32)
    coming.close()
    with pytest.raises(StopIteration):
        next(coming)


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':\n    ", "# __name__\n"])
def test_a_script_without_a_guard_is_refused_in_one_paragraph(guard, folder, tmp_path):
    """Each worker would run it again; with a guard, it continues."""
    guarded = "if" in guard
    code = (
        "from asap_jax import data\n"
        "from asap_jax.host.errors import UserError\n"
        f"{guard}stream = data.stream(data.open_source({f'folder:{folder}'!r}), image_size=8, "
        "workers=1)\n"
    )
    call = "print(len(list(stream.test_batches(7))))"
    if guarded:
        code += f"    {call}\n"
    else:
        code += f"try:\n    {call}\nexcept UserError as error:\n    print(error)\n"
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    wanted = f"{TEST // 7}\n" if guarded else "put what it does under if __name__"
    assert wanted in done.stdout
    assert "Traceback" not in done.stderr
