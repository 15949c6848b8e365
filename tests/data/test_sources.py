"""Folders, archives and arrays of images: what is read, what is refused, and the messages."""

import time

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from asap_jax import data
from asap_jax.data import images, tfds_prepare
from asap_jax.data.images import Preparation, prepare
from asap_jax.host import memory
from asap_jax.host.errors import UserError

RNG = np.random.default_rng(0)
RGB = Preparation(8, 8, "rgb")
GREY = Preparation(8, 8, "grey")


def pixels(shape=(8, 8, 3)):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Class folders of crops of two photographs: many sizes, three formats, grey and color."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(1)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(90):
            height, width = rng.integers(20, 90, 2)
            top, left = rng.integers(0, 300), rng.integers(0, 500)
            piece = Image.fromarray(photograph[top : top + height, left : left + width])
            piece = piece.convert("L") if i % 9 == 0 else piece
            folder = root / name / ("deeper" if i % 4 == 0 else "")
            piece.save(folder / f"{i}.{('png', 'jpg', 'ppm', 'JPEG')[i % 4]}")
        (root / name / "notes.txt").write_text("no image")
        (root / name / ".hidden.png").write_text("no image")
    return root


def test_a_folder_of_photographs(photographs):
    loaded = data.load(f"folder:{photographs}", image_size=16)
    assert loaded.class_names == ("china", "flower")
    assert loaded.train_images.shape == (144, 16, 16, 3)
    assert loaded.test_images.shape == (36, 16, 16, 3)
    np.testing.assert_array_equal(np.bincount(loaded.train_labels), [72, 72])
    assert loaded.preparation == Preparation(16, 16, "rgb", "stretch")
    scaled = loaded.train_images.reshape(-1, 3) / 255
    np.testing.assert_allclose(loaded.mean, scaled.mean(0), rtol=1e-6)
    np.testing.assert_allclose(loaded.std, scaled.std(0), rtol=1e-6)
    again = data.load(f"folder:{photographs}", image_size=16)
    assert again.digest() == loaded.digest()
    other = data.load(f"folder:{photographs}", image_size=16, split_seed=1)
    assert other.digest() != loaded.digest()


def test_mixed_sizes_get_one_and_it_is_said(photographs):
    loaded = data.load(f"folder:{photographs}", color="grey", train_examples=40, test_examples=10)
    assert loaded.train_images.shape == (40, 64, 64, 1)
    assert any("all are resized to 64x64" in note for note in loaded.notes)
    assert any("36 images, class by class, are held out" in note for note in loaded.notes)


def write(root, names, count=3, mode="RGB"):
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            shape = (8, 8, 3) if mode == "RGB" else (8, 8)
            Image.fromarray(pixels(shape)).save(root / name / f"{i}.png")
    return root


def test_train_val_and_test_folders(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        write(tmp_path / split, ("a", "b"), count)
    loaded = data.load(f"folder:{tmp_path}")
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (12, 6)
    assert loaded.notes == ("the val images train as well; the test images test",)
    first = np.asarray(Image.open(tmp_path / "train/a/0.png"))
    np.testing.assert_array_equal(loaded.train_images[0], first)


def test_without_a_test_folder_val_tests(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        write(tmp_path / split, ("a", "b"), count, mode="L")
    loaded = data.load(f"folder:{tmp_path}")
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (8, 4)
    assert loaded.train_images.shape[-1] == 1  # none has color
    assert "the val images test" in loaded.notes[0]


@pytest.mark.parametrize("with_test", [True, False])
def test_val_beside_valid_is_not_dropped(with_test, tmp_path):
    for split, count in (("train", 4), ("val", 2), ("valid", 1), *[("test", 3)] * with_test):
        write(tmp_path / split, ("a", "b"), count)
    loaded = data.load(f"folder:{tmp_path}")
    counts = (len(loaded.train_labels), len(loaded.test_labels))
    assert counts == ((14, 6) if with_test else (8, 6))
    assert "the val and valid images t" in loaded.notes[0]


def folder_without(change):
    def build(root):
        write(root, ("a", "b"), 5)
        change(root)
        return f"folder:{root}"

    return build


def cut_short(root):
    (root / "a" / "1.png").write_bytes((root / "a" / "1.png").read_bytes()[:60])


def no_image(root):
    for name in ("x.jpg", "y.jpg"):
        (root / "b" / name).write_text("not a jpeg")


def empty_class(root):
    (root / "c").mkdir()


def beside_train(root):
    (root / "train").mkdir()


def other_test_class(root):
    write(root / "train", ("a", "b"))
    write(root / "test", ("a", "c"))
    for name in "ab":
        for file in (root / name).iterdir():
            file.unlink()
        (root / name).rmdir()


def one_class(root):
    for file in (root / "b").iterdir():
        file.unlink()
    (root / "b").rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, r"cannot read the image .*a/1\.png: .*truncated"),
        (no_image, r"cannot read the image .*b/[xy]\.jpg.*no image of a format that Pillow"),
        (empty_class, r"the class folder .*/c holds no image"),
        (beside_train, "either class folders, or train, val and test folders"),
        (other_test_class, r"test/c is no class of the training images, which are a, b"),
        (one_class, r"one class only \(a\)"),
    ],
)
def test_folders_that_are_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.load(folder_without(change)(tmp_path))


def test_a_folder_has_to_be_there_and_hold_something(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        data.load(f"folder:{tmp_path}/none")
    with pytest.raises(UserError, match="holds no folder"):
        data.load(f"folder:{tmp_path}")


def test_unreadable_images_are_skipped_and_counted_on_request(tmp_path):
    write(tmp_path, ("a", "b"), 5)
    cut_short(tmp_path)
    no_image(tmp_path)
    loaded = data.load(f"folder:{tmp_path}", skip_unreadable=True)
    assert len(loaded.train_labels) + len(loaded.test_labels) == 9
    notes = " ".join(loaded.notes)
    assert "could not be read and are left out" in notes
    assert "1.png" in notes
    assert "x.jpg" in notes


# Every way in which Pillow stores a picture, and the resulting grey or red.
def _modes():
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    rgb = np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], -1)
    base = Image.fromarray(rgb)
    deep = (ramp.astype(np.uint16) << 8) | 7
    return {
        "RGB": (base, rgb),
        "RGBX": (base.convert("RGBX"), rgb),
        "L": (Image.fromarray(ramp), np.stack([ramp] * 3, -1)),
        "1": (Image.fromarray(ramp > 99), np.stack([255 * (ramp > 99)] * 3, -1)),
        "I;16": (Image.fromarray(deep), np.stack([ramp] * 3, -1)),
        "I": (Image.fromarray(deep.astype(np.int32)), np.stack([ramp] * 3, -1)),
        "F": (Image.fromarray((ramp / 255).astype(np.float32)), np.stack([ramp] * 3, -1)),
        "P": (Image.fromarray(ramp // 32).convert("P"), np.stack([ramp // 32] * 3, -1)),
        "LA": (
            Image.merge("LA", (Image.fromarray(ramp), Image.new("L", (8, 8), 255))),
            np.stack([ramp] * 3, -1),
        ),
        "CMYK": (base.convert("CMYK"), rgb),
        "YCbCr": (base.convert("YCbCr"), rgb),
        "HSV": (base.convert("HSV"), rgb),
    }


@pytest.mark.parametrize("mode", _modes())
def test_every_mode_becomes_rgb_and_grey(mode):
    image, want = _modes()[mode]
    tolerance = {"YCbCr": 3, "HSV": 6}.get(mode, 0)
    got = prepare(image, RGB)
    assert got.shape == (8, 8, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - want).max() <= tolerance
    grey = prepare(image, GREY)
    assert grey.shape == (8, 8, 1)
    luma = (want @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert np.abs(grey - luma).max() <= tolerance + 1


def test_transparent_pixels_lie_on_black():
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    image.putpixel((3, 2), (200, 100, 50, 255))
    got = prepare(image, RGB).copy()
    assert got[2, 3].tolist() == [200, 100, 50]
    got[2, 3] = 0
    assert got.max() == 0
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.info["transparency"] = 1
    assert prepare(palette, RGB).max() == 0


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_photographs_are_turned_upright(ending, tmp_path):
    ramp = np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[None, :, None], (8, 12, 3))
    image = Image.fromarray(ramp.copy())
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / f"turned.{ending}", exif=exif)
    with Image.open(tmp_path / f"turned.{ending}") as opened:
        assert images.size(opened) == (12, 8)
        got = prepare(opened, Preparation(12, 8, "rgb")).astype(int)
    want = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert np.abs(got - want).max() <= (6 if ending == "jpg" else 0)


def test_a_file_with_broken_exif_is_used_as_it_is(tmp_path):
    image = Image.fromarray(pixels())
    image.save(tmp_path / "image.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert prepare(tmp_path / "image.jpg", RGB).shape == (8, 8, 3)


def test_pixels_out_of_range_are_refused_by_file(tmp_path):
    write(tmp_path, ("a", "b"), 5)
    for value, message in ((200.0, "run from 200 to 200"), (np.nan, "run from nan")):
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "a" / "deep.tiff")
        with pytest.raises(UserError, match=rf"a/deep\.tiff: its floating-point pixels {message}"):
            data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="expected 0 to 65,535"):
        prepare(Image.fromarray(np.full((8, 8), 70_000, np.int32)), RGB)
    shallow = np.arange(64, dtype=np.int32).reshape(8, 8)
    np.testing.assert_array_equal(prepare(Image.fromarray(shallow), GREY)[..., 0], shallow)


def deep_image(mode, values):
    kind = np.int32 if mode == "I" else np.uint16
    return Image.fromarray(np.resize(values, (8, 8)).astype(kind))


@pytest.mark.parametrize("how", ["memory", "stream"])
@pytest.mark.parametrize("mode", ["I", "I;16"])
@pytest.mark.parametrize(
    ("top", "bits"), [(255, 8), (300, 10), (4095, 12), (4096, 14), (65535, 16)]
)
def test_deep_images_have_one_scale_for_a_set(top, bits, mode, how, tmp_path):
    """A dark image stays darker than a bright one, and all levels are kept."""
    dark, bright = np.arange(64) * (top // 8) // 64, top - np.arange(64) * (top // 8) // 64
    for name in "ab":
        for i in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            values = dark if i % 2 else bright
            deep_image(mode, values).save(tmp_path / name / f"{i}.tiff")
    source, asked = data.open_source(f"folder:{tmp_path}"), {"image_size": 8}
    if how == "stream":
        loaded = data.stream(source, **asked, bits=bits, color="grey", workers=0)
        pixels = np.concatenate([np.asarray(x) for x, _ in loaded.batches("train")])
    else:
        loaded = data.assemble(source, **asked)
        pixels = loaded.train_images
        assert f"values up to {top}: {2**bits - 1} is white" in " ".join(loaded.notes)
    assert loaded.preparation.bits == bits
    want = [np.resize(values >> (bits - 8), (8, 8)) for values in (dark, bright)]
    for image in pixels[..., 0]:
        assert any((image == each).all() for each in want)
    assert want[1].min() > want[0].max()
    white = np.full(64, 2**bits - 1)
    assert prepare(deep_image(mode, white), loaded.preparation).min() == 255
    if bits < 16:
        with pytest.raises(ValueError, match=rf"expected 0 to {2**bits - 1:,}, which is white"):
            prepare(deep_image(mode, white + 1), loaded.preparation)


def test_the_depth_can_be_said_and_streams_take_16(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            deep_image("I;16", np.arange(64) + i).save(tmp_path / name / f"{i}.png")
    place = f"folder:{tmp_path}"
    assert data.load(place, bits=12).preparation.bits == 12
    stream = data.stream(data.open_source(place), image_size=8, workers=0, color="grey", bits=8)
    assert stream.preparation.bits == 8
    with pytest.raises(UserError, match=r"data\.bits is 7"):
        data.load(place, bits=7)
    (tmp_path / "a" / "0.png").unlink()
    deep_image("I;16", np.arange(64) * 1000).save(tmp_path / "a" / "0.png")
    stream = data.stream(data.open_source(place), image_size=8, workers=0)
    assert stream.preparation.bits == 16
    assert "65535 is white in all of them" in " ".join(stream.notes)


def cut_jpeg(path):
    """A large color JPEG that opens, but ends in the middle of its pixels."""
    Image.fromarray(pixels((200, 300, 3))).save(path.with_suffix(".jpg"))
    content = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(content[: len(content) // 2])


def out_of_range(path):
    Image.fromarray(np.full((200, 300), 7.0, np.float32)).save(path.with_suffix(".tiff"))


def negative(path):
    Image.fromarray(np.full((200, 300), -7, np.int32)).save(path.with_suffix(".tiff"))


@pytest.mark.parametrize("damage", [cut_jpeg, out_of_range, negative])
def test_what_is_left_out_does_not_decide_for_the_others(damage, tmp_path):
    write(tmp_path, ("a", "b"), 5, mode="L")
    damage(tmp_path / "a" / "broken")
    loaded = data.load(f"folder:{tmp_path}", skip_unreadable=True)
    assert loaded.preparation == Preparation(8, 8, "grey")
    assert loaded.train_count + loaded.test_count == 10
    assert "1 images could not be read" in " ".join(loaded.notes)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("how", ["memory", "stream"])
def test_images_above_pillows_bound_name_the_option(how, kind, tmp_path, monkeypatch):
    """Pillow warns above its limit and refuses above twice the limit."""
    write(tmp_path, ("a", "b"), 5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    place = f"folder:{tmp_path}"
    if kind == "csv":
        lines = [f"{name}/{i}.png,{name}\n" for name in "ab" for i in range(5)]
        (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines))
        place = f"csv:{tmp_path}/list.csv"

    def load(pixels=0):
        source = data.open_source(place, choices=data.opened.Choices(max_pixels=pixels))
        if how == "memory":
            return data.assemble(source)
        stream = data.stream(source, image_size=8, workers=0)
        list(stream.batches("train"))
        return stream

    for pixels in (0, 63):
        with pytest.raises(UserError, match=r"cannot read .* fill the memory .*data\.max_pixels="):
            load(pixels)
    assert load(64).train_count == 8


def test_resizing_stretches_or_crops():
    image = Image.fromarray(pixels((20, 40, 3)))
    stretched = prepare(image, Preparation(8, 8, "rgb"))
    want = image.resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(stretched, np.asarray(want))
    cropped = prepare(image, Preparation(8, 8, "rgb", "crop"))
    want = ImageOps.fit(image, (8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(cropped, np.asarray(want))
    assert (stretched != cropped).any()


def test_formats(tmp_path):
    rows = np.arange(60, 220, 20, dtype=np.uint8)
    want = np.stack([np.broadcast_to(rows, (8, 8))] * 3, -1)
    for ending in ("png", "ppm", "bmp", "tiff", "tga", "webp", "gif", "jpg", "ico", "jp2"):
        path = tmp_path / f"image.{ending}"
        Image.fromarray(want).save(path, **({"lossless": True} if ending == "webp" else {}))
        got = prepare(path, RGB)
        assert np.abs(got.astype(int) - want).max() <= (5 if ending == "jpg" else 0), ending


# Archives


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "images.npz", **arrays)
    return f"npz:{tmp_path}/images.npz"


def test_npz_of_medmnist_and_keras(tmp_path):
    """MedMNIST has labels [N, 1] and a val split, Keras x_train and no color axis."""
    x, y = pixels((12, 8, 8)), np.arange(12) % 3
    arrays = {f"{s}_images": x for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": y[:, None] for s in ("train", "val", "test")}
    loaded = data.load(archive(tmp_path, **arrays))
    assert loaded.train_images.shape == (24, 8, 8, 1)
    assert loaded.class_names == ("0", "1", "2")
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    loaded = data.load(archive(tmp_path, **arrays, class_names=["a", "b", "c"]))
    np.testing.assert_array_equal(loaded.test_images[..., 0], x)
    assert loaded.class_names == ("a", "b", "c")


def test_npz_that_is_refused(tmp_path):
    x, y = pixels((12, 8, 8)), np.arange(12) % 3
    with pytest.raises(UserError, match="holds pictures; expected train_images"):
        data.load(archive(tmp_path, pictures=x))
    with pytest.raises(UserError, match=r"labels run from 0 to 2, but with 2 classes"):
        data.load(archive(tmp_path, images=x, labels=y, class_names=["a", "b"]))
    objects = np.array([x[0], x[0, :4]], dtype=object)
    with pytest.raises(UserError, match="no NumPy archive of plain arrays"):
        data.load(archive(tmp_path, images=objects, labels=y))
    with pytest.raises(UserError, match="there is no file"):
        data.load(f"npz:{tmp_path}/none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    whole = (tmp_path / "images.npz").read_bytes()
    for content in (b"no archive", b"", whole[: len(whole) // 2]):
        (tmp_path / "text.npz").write_bytes(content)
        with pytest.raises(UserError, match="no NumPy archive"):
            data.load(f"npz:{tmp_path}/text.npz")
    np.save(tmp_path / "one.npy", x)
    with pytest.raises(UserError, match="no NumPy archive"):
        data.load(f"npz:{tmp_path}/one.npy")


def test_hidden_folders_and_other_files_are_left_out(tmp_path):
    write(tmp_path, ("a", "b"), 5)
    write(tmp_path / "a", (".thumbnails",), 3)
    for name in ("page.pdf", "photo.heic"):
        (tmp_path / "b" / name).write_bytes(b"no image")
    loaded = data.load(f"folder:{tmp_path}")
    assert len(loaded.train_labels) + len(loaded.test_labels) == 10
    assert "by their endings no images: .heic (1), .pdf (1)" in loaded.notes[0]


def test_a_class_of_one_image_cannot_be_held_out(tmp_path):
    labels = np.array([0] * 19 + [1])
    refused = 0
    for seed in range(10):
        try:
            data.from_arrays(pixels((20, 8, 8)), labels, split_seed=seed)
        except UserError as error:
            assert "the class 1 has so few images" in str(error)
            refused += 1
    assert 0 < refused < 10


def test_a_channel_without_contrast_is_kept():
    flat = pixels((20, 8, 8, 3))
    flat[..., 2] = 0
    loaded = data.from_arrays(flat, np.arange(20) % 2)
    assert loaded.std[2] == 1
    assert loaded.std[0] < 1


def test_more_images_than_memory_holds_are_refused_before_reading(monkeypatch):
    monkeypatch.setattr(memory, "host_available", lambda: 1000)
    with pytest.raises(UserError, match=r"20 images of 8x8 take 1.28 kB.*config.data.image_size"):
        data.from_arrays(pixels((20, 8, 8)), np.arange(20) % 2)


# Arrays


def test_arrays_of_every_type_give_the_same_pixels():
    x, y = pixels((20, 8, 8, 3)), np.arange(20) % 2
    want = data.from_arrays(x, y)
    assert (len(want.train_labels), len(want.test_labels)) == (16, 4)
    for other in (x.astype(np.int64), x.astype(np.float32) / 255, x.astype(np.float64) / 255):
        assert data.from_arrays(other, y[:, None]).digest() == want.digest()
    assert data.from_arrays(x.tolist(), y.tolist()).digest() == want.digest()
    given = data.from_arrays(x, y, x[:6], y[:6], image_size=4)
    assert given.train_images.shape == (20, 4, 4, 3)
    assert given.test_images.shape == (6, 4, 4, 3)


X, Y = pixels((12, 8, 8, 3)), np.arange(12) % 2
NOT_A_NUMBER = (X / 255).astype(np.float32)
NOT_A_NUMBER[4, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NOT_A_NUMBER, Y), "not finite .NaN or infinity., first in image 4 of 1"),
        ((X.astype(np.float32), Y), r"floats are read as \[0, 1\].*astype\('uint8'\)"),
        ((X.astype(np.int32) * 3, Y), "scale the pixels to 0..255"),
        (([X[0], X[1, :4]], Y[:2]), "mixes shapes"),
        ((X.transpose(0, 3, 1, 2), Y), r"look like \[N, C, H, W\]: use images.transpose"),
        ((X[0, 0], Y), "has the shape"),
        ((X, Y[:5]), r"labels has the shape \(5,\), expected \[12\]"),
        ((X, Y - 1), "integers from 0, a number a class, got -1 at index 0 .and 5 more."),
        ((X, Y * 0), r"one class only \(0\)"),
        ((X, Y * 2), "no image has the label 1: .* run up to 2, but 1 of those 3"),
        ((X, Y, X), "go together"),
        ((np.full_like(X, 7), Y), "all of one colour"),
    ],
)
def test_arrays_that_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        data.from_arrays(*arguments)


BAD_LABELS = {
    "beyond_int32": np.array([0, 1, 2**32, 1]),
    "beyond_int32_just": np.array([0, 1, 2**31, 1]),
    "unsigned": np.array([0, 1, 2**63, 1], np.uint64),
    "large_float": np.array([0, 1, 1e10, 1]),
    "infinite": np.array([0, 1, np.inf, 1]),
    "nan": np.array([0, 1, np.nan, 1]),
    "fraction": np.array([0, 1, 0.5, 1]),
    "negative": np.array([0, 1, -3, 1]),
}


@pytest.mark.parametrize("how", ["arrays", "npz", "test"])
@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_are_no_numbers_of_classes_are_named(kind, how, tmp_path):
    labels = BAD_LABELS[kind]
    with pytest.raises(UserError) as caught:
        if how == "arrays":
            data.from_arrays(X[:4], labels)
        elif how == "test":
            data.from_arrays(X, Y, X[:4], labels)
        else:
            data.load(archive(tmp_path, images=X[:4], labels=labels))
    assert f"got {labels[2]} at index 2" in str(caught.value)
    large = labels.max() >= 2**31 and np.isfinite(labels).all()
    assert ("sparse_labels" in str(caught.value)) == large


@pytest.mark.parametrize("top", [3, 10**4, 10**6, 2**31 - 1])
def test_gaps_in_the_labels_are_named_at_once(top, tmp_path):
    labels = np.array([0, 1, top] * 4)
    gap = "2" if top == 3 else f"2 to {top - 1}"
    begun = time.monotonic()
    for load in (
        lambda: data.from_arrays(X, labels),
        lambda: data.load(archive(tmp_path, images=X, labels=labels)),
    ):
        with pytest.raises(UserError, match=f"no image has the label {gap}:.*sparse_labels"):
            load()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("ids", [(0, 7, 90), (-5, 3, 2**40), (0, 1, 2)])
@pytest.mark.parametrize("how", ["arrays", "npz"])
def test_sparse_ids_become_classes(how, ids, tmp_path):
    labels, rest = np.array(ids * 4), np.array(ids[1:] * 2)
    if how == "npz":
        arrays = {"train_images": X, "train_labels": labels, "test_images": X[:4]}
        place = archive(tmp_path, **arrays, test_labels=rest)
        loaded = data.load(place, sparse_labels=True)
    else:
        loaded = data.from_arrays(X, labels, X[:4], rest, sparse_labels=True)
    assert loaded.class_names == tuple(map(str, ids))
    np.testing.assert_array_equal(loaded.train_labels, [0, 1, 2] * 4)
    np.testing.assert_array_equal(loaded.test_labels, [1, 2] * 2)
    assert loaded.train_labels.dtype == np.int32


def test_names_of_sparse_ids_go_by_the_id_or_by_order():
    labels = np.array([0, 3] * 6)
    for names in (("a", "b", "c", "d"), ("a", "d")):
        loaded = data.from_arrays(X, labels, class_names=names, sparse_labels=True)
        assert loaded.class_names == ("a", "d")
    with pytest.raises(UserError, match="3 class names for the 2 ids from 0 to 3"):
        data.from_arrays(X, labels, class_names="abc", sparse_labels=True)


def test_many_classes_take_linear_time():
    labels = np.arange(60_000) % 30_000
    begun = time.monotonic()
    loaded = data.from_arrays((np.arange(60_000) % 251).astype(np.uint8).reshape(-1, 1, 1), labels)
    assert len(loaded.class_names) == 30_000
    assert time.monotonic() - begun < 10  # comparing every pair takes half a minute


def test_a_choice_that_a_source_does_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"sparse_labels is True.*'folder'.*belongs to npz:PATH"):
        data.load(f"folder:{tmp_path}", sparse_labels=True)


def test_labels_out_of_range_of_the_names():
    with pytest.raises(UserError, match=r"run from 0 to 2, but with 2 classes .* lie in 0..1"):
        data.from_arrays(X, np.arange(12) % 3, class_names=("a", "b"))


def test_class_names_differ():
    with pytest.raises(UserError, match="there is more than one cat"):
        data.from_arrays(X, np.arange(12) % 3, class_names=("cat", "dog", "cat"))


def test_uneven_classes_are_reported_and_can_be_weighed():
    labels = np.array([0] * 15 + [1] * 5)
    loaded = data.from_arrays(pixels((20, 8, 8)), labels, pixels((4, 8, 8)), [0, 1, 0, 1])
    assert "uneven: 15 training images of '0', 5 of '1'" in loaded.notes[0]
    weights = data.balanced_weights(loaded.train_labels, 2)
    np.testing.assert_allclose(weights, [20 / 30, 20 / 10])


def test_preparing_a_tfds_set_runs_apart_and_says_what_failed(tmp_path, monkeypatch):
    """The process is real; without TensorFlow, or without the set, its message reaches the user."""
    with pytest.raises(UserError, match=r"could not prepare the data set 'no_such_set'"):
        data.load("tfds:no_such_set", str(tmp_path), prepare=True)
    monkeypatch.setattr(tfds_prepare.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text('#!/bin/sh\necho "$3 $4" > "$4/asked"\n')
    (tmp_path / "python").chmod(0o755)
    tfds_prepare.run("cifar10", str(tmp_path))
    assert (tmp_path / "asked").read_text() == f"cifar10 {tmp_path}\n"
