"""The cache of images that were read: used only where it equals what reading would give."""

import dataclasses
import os
import re
import time

import numpy as np
import pytest
from PIL import Image
from tfds_sets import prepare_tfds

from asap_jax import data
from asap_jax.data import kept, reading
from asap_jax.data.images import Preparation
from asap_jax.host import memory
from asap_jax.host.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A separate cache, which also keeps files that were read fast or just written."""
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "WORTH", 0.0)
    monkeypatch.setattr(kept, "SETTLED", 0.0)
    return tmp_path / "cache"


def pixels(shape=(8, 8, 3)):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, image):
    """Saves in a format whose size in bytes follows from the shape alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        for i in range(6):
            save(tmp_path / "images" / name / f"{i}.bmp", pixels())
    return tmp_path / "images"


@pytest.fixture
def reads(monkeypatch):
    """Counts the splits that were read."""
    seen, each = [], reading.Reader._each

    def counted(self, function, split):
        seen.append(split.count)
        return each(self, function, split)

    monkeypatch.setattr(reading.Reader, "_each", counted)
    return seen


def assert_same(got, want):
    for field in dataclasses.fields(want):
        a, b = (getattr(loaded, field.name) for loaded in (got, want))
        if isinstance(b, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a, b)
        else:
            assert (type(a), a) == (type(b), b), field.name


def files(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_a_second_start_reads_one_file(cache, folder, reads, monkeypatch):
    options = {"image_size": 4, "color": "grey", "train_examples": 6, "split_seed": 3}
    want = data.load(f"folder:{folder}", **options)
    assert len(files(cache)) == 1
    assert reads
    reads.clear()
    assert_same(data.load(f"folder:{folder}", **options), want)
    assert reads == []
    monkeypatch.setenv(kept.VARIABLE, "off")
    assert_same(data.load(f"folder:{folder}", **options), want)
    assert reads


@pytest.mark.parametrize(
    "options", [{"group": r"\w/(\d)"}, {"group": r"(\d)"}, {"train": "."}, {"bits": 12}]
)
def test_what_is_said_of_a_source_is_kept_with_it(options, cache, folder, reads):
    plain = data.load(f"folder:{folder}", test_share=0.5)
    reads.clear()
    want = data.load(f"folder:{folder}", test_share=0.5, **options)
    assert bool(reads) == ("train" not in options)  # which only repeats the default here
    reads.clear()
    assert_same(data.load(f"folder:{folder}", test_share=0.5, **options), want)
    assert reads == []
    assert (want.train_groups is None) == ("group" not in options)
    assert_same(data.load(f"folder:{folder}", test_share=0.5), plain)


def test_a_set_of_tfds_is_kept(cache, tmp_path, reads):
    splits = {
        part: (pixels((count, 32, 32, 3)), np.arange(count) % 10)
        for part, count in (("train", 20), ("test", 10))
    }
    prepare_tfds(tmp_path, "cifar10", splits)
    want = data.load("tfds:cifar10", str(tmp_path))
    np.testing.assert_array_equal(want.train_images, splits["train"][0])
    np.testing.assert_array_equal(want.test_labels, splits["test"][1])
    reads.clear()
    assert_same(data.load("tfds:cifar10", str(tmp_path)), want)
    assert reads == []
    splits["train"][0][0] = 255 - splits["train"][0][0]
    (tmp_path / "other").mkdir()
    prepare_tfds(tmp_path / "other", "cifar10", splits)
    changed = data.load("tfds:cifar10", str(tmp_path / "other"))
    np.testing.assert_array_equal(changed.train_images, splits["train"][0])


def test_one_split_is_kept_for_evaluations(cache, folder, reads):
    source, preparation = data.open_source(f"folder:{folder}"), Preparation(4, 4, "rgb")
    want = data.read_split(source, "train", preparation)
    reads.clear()
    got = data.read_split(source, "all", preparation)
    assert len(files(cache)) == 2
    assert len(reads) == 1
    again = data.read_split(source, "train", preparation)
    assert len(reads) == 1
    for found in (got, again):
        np.testing.assert_array_equal(found[0], want[0])
        np.testing.assert_array_equal(found[1], want[1])
        assert found[1].dtype == want[1].dtype
        assert found[2] == want[2] == []


def test_whatever_differs_is_read(cache, folder, reads):
    def load(**options):
        before = len(reads)
        loaded = data.load(f"folder:{folder}", **options)
        return loaded, len(reads) > before

    whole, _ = load()
    for options in (
        {"image_size": 4},
        {"color": "grey"},
        {"train_examples": 4},
        {"test_share": 0.5},
        {"split_seed": 1},
        {"preparation": Preparation(4, 8, "rgb")},
        {"image_size": 6, "resize": "crop"},
    ):
        first, read = load(**options)
        assert read, options
        again, read = load(**options)
        assert not read, options
        assert_same(again, first)
    again, read = load()
    assert not read
    assert_same(again, whole)


def test_files_that_change_are_read(cache, folder, reads):
    """Another size, another time; the same size with the time set back; one more; one renamed."""

    def digest():
        reads.clear()
        loaded = data.load(f"folder:{folder}", test_share=0.25)
        return loaded.digest(), bool(reads)

    changing, seen = folder / "a" / "3.bmp", {digest()[0]}
    times = changing.stat()

    def at_the_same_time():
        save(changing, pixels())
        os.utime(changing, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert changing.stat().st_size == times.st_size
        assert changing.stat().st_mtime_ns == times.st_mtime_ns

    for change in (
        lambda: save(changing, pixels((9, 9, 3))),
        lambda: save(changing, pixels()),
        at_the_same_time,
        lambda: save(folder / "b" / "9.bmp", pixels()),
        lambda: (folder / "b" / "9.bmp").rename(folder / "a" / "9.bmp"),
    ):
        time.sleep(0.02)  # longer than a tick of the file system's clock
        change()
        found, read = digest()
        assert read
        assert found not in seen
        assert digest() == (found, False)
        seen.add(found)
    (folder / "a" / "9.bmp").unlink()
    found, read = digest()
    assert found in seen  # the files are those of two changes ago
    assert not read


def test_a_folder_elsewhere_is_another(cache, folder, tmp_path, reads):
    """With the same names, sizes and times."""
    here = data.load(f"folder:{folder}")
    other = tmp_path / "other"
    for path in sorted(folder.glob("*/*")):
        place = other / path.relative_to(folder)
        save(place, pixels())
        os.utime(place, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert data.load(f"folder:{other}").digest() != here.digest()


def test_files_that_changed_just_now_are_not_kept(cache, folder, monkeypatch):
    monkeypatch.setattr(kept, "SETTLED", 3600.0)
    data.load(f"folder:{folder}")
    assert files(cache) == []


def test_what_is_read_at_once_is_not_kept(cache, folder, monkeypatch):
    monkeypatch.setattr(kept, "WORTH", 3600.0)
    data.load(f"folder:{folder}")
    assert files(cache) == []


def test_arrays_and_what_left_images_out_are_not_kept(cache, folder, tmp_path):
    images, labels = pixels((20, 8, 8, 3)), np.arange(20) % 2
    data.from_arrays(images, labels)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    data.load(f"npz:{tmp_path}/images.npz")
    data.load("digits", train_examples=20, test_examples=10)
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    loaded = data.load(f"folder:{folder}", skip_unreadable=True)
    assert "left out" in " ".join(loaded.notes)
    with pytest.raises(UserError, match=r"cannot read the image .*broken\.png"):
        data.load(f"folder:{folder}")
    assert files(cache) == []


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip(file):
    """Flips one bit of a pixel, near the middle of the file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other(file):
    """Writes the entry of other images under this name."""
    with np.load(file) as archive:
        arrays = dict(archive)
    told = arrays["told"].tobytes().replace(b'"split_seed\\": 0', b'"split_seed\\": 7')
    assert told != arrays["told"].tobytes()
    np.savez(file, **(arrays | {"told": np.frombuffer(told, np.uint8)}))


def objects(file):
    """Writes a pickle, which must not be opened."""
    np.savez(file, told=np.array([{}], object))


@pytest.mark.parametrize("damage", [cut, empty, flip, other, objects])
def test_a_damaged_file_is_told_of_and_written_anew(damage, cache, folder, reads):
    want = data.load(f"folder:{folder}")
    (name,) = files(cache)
    damage(cache / name)
    got = data.load(f"folder:{folder}")
    note = got.notes[-1]
    assert f"the images kept in {cache / name} cannot be used (" in note
    assert note.endswith("): they are read anew")
    assert_same(dataclasses.replace(got, notes=got.notes[:-1]), want)
    reads.clear()
    assert_same(data.load(f"folder:{folder}"), want)
    assert reads == []
    assert files(cache) == [name]


def found(whole, part):
    return [match.start() for match in re.finditer(re.escape(part), whole)]


def test_no_byte_of_a_file_can_change_what_is_read(cache, folder):
    """Headers of the archive and of its arrays; no checksum covers what these leave unread."""
    want = data.load(f"folder:{folder}", image_size=40)
    (name,) = files(cache)
    whole = (cache / name).read_bytes()
    directory = range(len(whole) - 420, len(whole), 5)
    headers = [at + i for at in found(whole, b"PK\x03\x04") for i in range(0, 220, 5)]
    shapes = [at + i for at in found(whole, b"'shape': (") for i in range(10, 22)]
    noticed = 0
    for place in {*directory, *headers, *shapes}:
        changed = bytearray(whole)
        changed[place] ^= 1
        (cache / name).write_bytes(changed)
        got = data.load(f"folder:{folder}", image_size=40)
        noticed += len(got.notes) - len(want.notes)
        assert got.digest() == want.digest(), place
        assert (got.mean, got.std, got.preparation) == (want.mean, want.std, want.preparation)
        assert got.notes[: len(want.notes)] == want.notes
    assert noticed > 100


def test_a_write_that_fails_is_told_of_and_leaves_nothing(cache, folder, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    loaded = data.load(f"folder:{folder}")
    assert "could not be kept for the next start ([Errno 28] No space left" in loaded.notes[-1]
    assert files(cache) == []
    monkeypatch.setenv(kept.VARIABLE, str(folder / "a" / "0.bmp"))
    assert "could not be kept" in data.load(f"folder:{folder}").notes[-1]


def test_those_used_longest_ago_make_room(cache, folder, monkeypatch):
    def load(size):
        before = set(files(cache))
        data.load(f"folder:{folder}", image_size=size)
        return before, set(files(cache))

    _, first = load(40)
    _, both = load(41)
    (second,) = both - first
    (first,) = first
    for age, name in ((300, second), (600, first)):
        os.utime(cache / name, (time.time() - age,) * 2)
    load(40)  # the first is used now
    (cache / "mine.txt").write_text("of the user")
    (cache / f"{'0' * 32}.1.part").write_text("of a process that was killed")
    os.utime(cache / f"{'0' * 32}.1.part", (time.time() - 7200,) * 2)
    size = (cache / first).stat().st_size
    monkeypatch.setattr(kept, "LIMIT", int(2.5 * size))
    before, after = load(42)
    assert before - after == {second, f"{'0' * 32}.1.part"}
    assert len(after) == 3
    assert {first, "mine.txt"} < after
    monkeypatch.setattr(kept, "LIMIT", size // 2)
    loaded = data.load(f"folder:{folder}", image_size=43)
    assert "could not be kept" in loaded.notes[-1]
    assert set(files(cache)) == after


def test_more_than_memory_holds_is_refused_as_before(cache, folder, monkeypatch):
    data.load(f"folder:{folder}", image_size=4)
    said = []
    for place in (str(cache), "off"):
        monkeypatch.setenv(kept.VARIABLE, place)
        monkeypatch.setattr(memory, "host_available", lambda: 100)
        with pytest.raises(UserError, match=r"12 images of 4x4 take 576 B") as refused:
            data.load(f"folder:{folder}", image_size=4)
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_the_users_cache_is_the_place(monkeypatch, tmp_path):
    monkeypatch.delenv(kept.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.folder() == tmp_path / "asap_jax" / "images"
    monkeypatch.setenv(kept.VARIABLE, "~/images")
    assert kept.folder() == kept.Path.home() / "images"
    monkeypatch.setenv(kept.VARIABLE, "off")
    assert kept.folder() is None
