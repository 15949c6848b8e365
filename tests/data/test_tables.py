"""Images listed in CSV files, and groups of images of one object, which stay together."""

import csv

import numpy as np
import pytest
from PIL import Image

import asap_jax
from asap_jax import data
from asap_jax.configs import presets
from asap_jax.data import splits
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.runs import inspection, resolve

RNG = np.random.default_rng(0)
KINDS = ("a", "b")


def images(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name)


def write(root, header, rows, delimiter=",", name="list.csv", encoding="utf-8"):
    with open(root / name, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *rows] if header else rows)
    return f"csv:{root / name}"


def listed(root, count=10):
    """(path, label) of images in one folder."""
    rows = [(f"images/{i}.png", KINDS[i % 2]) for i in range(count)]
    images(root, [path for path, _ in rows])
    return rows


FORMS = {
    "plain": (("path", "label"), {}),
    "semicolons": (("Filename", "ClassId"), {"delimiter": ";"}),
    "tabs": (("file_name", "class"), {"delimiter": "\t"}),
    "bars": (("image", "category"), {"delimiter": "|"}),
    "other names": (("Image Path", "breed"), {}),
    "an id": (("id", "target"), {}),
    "marked as UTF-8": (("path", "label"), {"encoding": "utf-8-sig"}),
    "no header": (None, {}),
}


@pytest.mark.parametrize("kind", FORMS)
def test_lists_of_paths_and_labels(kind, tmp_path):
    header, form = FORMS[kind]
    loaded = data.load(write(tmp_path, header, listed(tmp_path), **form))
    assert loaded.class_names == KINDS
    assert (loaded.train_count, loaded.test_count) == (8, 2)
    assert "is read by its columns: path" in loaded.notes[0]


WIDE = ("Width", "ClassId", "Name", "Path", "Which")


def wide(root):
    return [
        (8, label, "x", path, ("train", "test")[i > 7])
        for i, (path, label) in enumerate(listed(root))
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"split_column": "Which"},
        {"path_column": "Path", "label_column": "ClassId", "split_column": "Which"},
        {"path_column": "4", "label_column": "2", "split_column": "5"},
    ],
)
def test_columns_by_option(options, tmp_path):
    loaded = data.load(write(tmp_path, WIDE, wide(tmp_path)), **options)
    assert (loaded.train_count, loaded.test_count) == (8, 2)
    first = np.asarray(Image.open(tmp_path / "images/0.png"))
    np.testing.assert_array_equal(loaded.train_images[0], first)
    np.testing.assert_array_equal(loaded.train_labels, [0, 1] * 4)


@pytest.mark.parametrize("words", [("train", "test"), ("Training", "Testing"), ("TRAIN", "dev")])
@pytest.mark.parametrize("column", ["split", "Usage", "data set", "Set"])
def test_splits_by_a_column(column, words, tmp_path):
    rows = [(*row, words[i > 7]) for i, row in enumerate(listed(tmp_path))]
    loaded = data.load(write(tmp_path, ("path", "label", column), rows))
    assert (loaded.train_count, loaded.test_count) == (8, 2)


@pytest.mark.parametrize("how", ["without endings", "backslashes", "another folder", "absolute"])
def test_paths_as_people_write_them(how, tmp_path):
    rows, options = listed(tmp_path), {}
    change = {
        "without endings": lambda path: path.removesuffix(".png"),
        "backslashes": lambda path: path.replace("/", "\\"),
        "another folder": lambda path: path.removeprefix("images/"),
        "absolute": lambda path: str(tmp_path / path),
    }[how]
    rows = [(change(path), label) for path, label in rows]
    place = write(tmp_path, ("path", "label"), rows)
    if how == "another folder":
        with pytest.raises(
            UserError, match=r"10 of the 10 images .* are missing.*data.images=.*is"
        ):
            data.load(place)
        options = {"images": "images"}
    loaded = data.load(place, **options)
    assert loaded.train_count + loaded.test_count == 10


def test_labels_that_are_numbers_are_in_their_order(tmp_path):
    rows = [(path, (2, 10, 9)[i % 3]) for i, (path, _) in enumerate(listed(tmp_path, 30))]
    assert data.load(write(tmp_path, ("path", "label"), rows)).class_names == ("2", "9", "10")


def test_test_images_in_a_second_file_or_without_labels(tmp_path):
    rows = listed(tmp_path)
    place = write(tmp_path, ("path", "label"), rows[:8])
    write(
        tmp_path, ("Filename", "Width", "ClassId"), [(p, 8, k) for p, k in rows[8:]], ";", "t.csv"
    )
    loaded = data.load(place, test="t.csv")
    assert (loaded.train_count, loaded.test_count) == (8, 2)
    rows = [(p, "" if i > 7 else k, "test" if i > 7 else "train") for i, (p, k) in enumerate(rows)]
    loaded = data.load(write(tmp_path, ("path", "label", "split"), rows))
    assert "the test images of list.csv have no labels: they are not used" in loaded.notes


def test_class_folders_with_a_test_that_is_listed(tmp_path):
    """Like GTSRB: folders 00000, 00001, ..., and a test with plain numbers and semicolons."""
    for label in range(3):
        images(tmp_path, [f"train/{label:05}/{i}.ppm" for i in range(4)])
    images(tmp_path, [f"test/{i:05}.ppm" for i in range(6)])
    rows = [(f"{i:05}.ppm", 8, i % 3) for i in range(6)]
    write(tmp_path / "test", ("Filename", "Width", "ClassId"), rows, ";", "truth.csv")
    loaded = data.load(f"folder:{tmp_path}", test="test/truth.csv")
    assert loaded.class_names == ("00000", "00001", "00002")
    assert (loaded.train_count, loaded.test_count) == (12, 6)
    np.testing.assert_array_equal(loaded.test_labels, [0, 1, 2] * 2)


REFUSED = {
    "pixels": (
        ("label", *(f"pixel{i}" for i in range(784))),
        lambda r: [(k, *range(784)) for _, k in r],
        {},
        "label, pixel0, .*, pixel10, and 773 more, of which none is called as the path is",
    ),
    "no column for labels": (
        ("path", "x", "y"),
        lambda r: [(p, 1, k) for p, k in r],
        {},
        r"none is called as the label is .*--config\.data\.label_column",
    ),
    "an unknown column": (
        ("path", "label"),
        list,
        {"label_column": "klass"},
        r"label_column is 'klass', but .* has the columns path, label",
    ),
    "missing images": (
        ("path", "label"),
        lambda r: [*r, ("images/77.png", "a")],
        {},
        r"1 of the 11 images in .* are missing, first images/77.png \(line 12\)",
    ),
    "listed twice": (
        ("path", "label"),
        lambda r: [*r, r[0]],
        {},
        "line 12: .* is listed already in line 2",
    ),
    "listed by two names": (
        ("path", "label"),
        lambda r: [*r, (f"./{r[0][0]}", r[0][1])],
        {},
        "line 12: .* is listed already in line 2",
    ),
    "in two splits": (
        ("path", "label", "split"),
        lambda r: [*((*x, "train") for x in r), (*r[0], "test")],
        {},
        "line 12: .* is listed already in line 2 .* belongs to one split",
    ),
    "no label": (("path", "label"), lambda r: [*r[:9], (r[9][0], "")], {}, "line 11: .* no label"),
    "a short line": (
        ("path", "label", "x"),
        lambda r: [(*r[0], 1), *r[1:]],
        {},
        "line 3 has 2 columns, but the header has 3",
    ),
    "an unknown split": (
        ("path", "label", "split"),
        lambda r: [(*x, "holdout") for x in r],
        {},
        "says 'holdout', expected train, test or val",
    ),
    "one class": (("path", "label"), lambda r: [(p, "a") for p, _ in r], {}, "one class only"),
    "one column": (("path",), lambda r: [x[:1] for x in r], {}, "one column only"),
    "nothing": (("path", "label"), lambda r: [], {}, "lists no image"),
    "a test class that is new": (
        ("path", "label", "split"),
        lambda r: [*((*x, "train") for x in r[:9]), (r[9][0], "c", "test")],
        {},
        "line 11: 'c' is no class of the training images, which are a, b",
    ),
}


def test_a_column_without_a_name_is_no_group(tmp_path):
    """As pandas writes its index."""
    rows = [(i % 3, *row) for i, row in enumerate(listed(tmp_path))]
    place = write(tmp_path, ("", "path", "label"), rows)
    loaded = data.load(place)
    assert not any("group" in note for note in loaded.notes)
    assert loaded.train_groups is None


@pytest.mark.parametrize("kind", REFUSED)
def test_lists_that_are_refused(kind, tmp_path):
    header, change, options, message = REFUSED[kind]
    place = write(tmp_path, header, change(listed(tmp_path)))
    with pytest.raises(UserError, match=message):
        data.load(place, **options)


def test_unreadable_and_linked_images_of_a_list(tmp_path):
    rows = listed(tmp_path)
    (tmp_path / "images/0.png").write_bytes(b"none")
    (tmp_path / "images/1.png").unlink()
    (tmp_path / "images/1.png").symlink_to("nowhere")
    place = write(tmp_path, ("path", "label"), rows)
    with pytest.raises(UserError, match=r"cannot read the image .*0\.png.*and 1 more"):
        data.load(place)
    assert "2 images could not" in " ".join(data.load(place, skip_unreadable=True).notes)


def test_a_list_is_streamed(tmp_path):
    place = write(tmp_path, ("path", "label"), listed(tmp_path))
    stream = data.stream(data.open_source(place), image_size=8, workers=0)
    ((pixels, labels),) = stream.train_batches(8, 0, 1, 0, 0)
    assert pixels.shape == (8, 8, 8, 3)
    assert set(np.asarray(labels)) == {0, 1}


class Known:
    """A network that knows two classes and predicts the second for every image."""

    class_names = ("00000", "00001")
    preparation = data.from_arrays(
        RNG.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8), np.arange(10) % 2
    ).preparation

    def predict_proba(self, images):
        return np.tile([0.25, 0.75], (len(images), 1))


def test_a_list_measures_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection.trained, "load", lambda folder: Known())
    rows = [(path, (0, 1, 1)[i % 3], "train") for i, (path, _) in enumerate(listed(tmp_path, 9))]
    place = write(tmp_path, ("a", "b", "split"), rows, ";")
    config = presets.get_config("small")
    config.data.source = place
    config.data.path_column, config.data.label_column = "a", "2"
    (tmp_path / "run").mkdir()
    workdir.claim(tmp_path / "run", config.to_dict())
    result = inspection.evaluate(tmp_path / "run", place, quiet=True)
    assert result["images"] == 9
    assert result["accuracy"] == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("folders", "accuracy"),
    [
        (["00000/deeper", "00000/more"], 0.0),
        (["00001/deeper", "00001/more"], 1.0),
        (["00001"], 1.0),
        (["all/00000", "all/00001"], 0.5),
        (["Testing/00000", "Testing/00001"], 0.5),
        (["val/00000", "test/00001"], 1.0),
    ],
)
def test_a_folder_is_measured_by_the_classes_that_the_network_knows(
    folders, accuracy, tmp_path, monkeypatch
):
    monkeypatch.setattr(inspection.trained, "load", lambda folder: Known())
    images(tmp_path, [f"images/{folder}/{i}.png" for folder in folders for i in range(3)])
    result = inspection.evaluate(tmp_path, f"folder:{tmp_path}/images", quiet=True)
    assert result["images"] == (3 if "val/00000" in folders else 3 * len(folders))
    assert result["accuracy"] == accuracy


# Groups


def videos(root, how):
    """Five frames each of twelve videos, of uneven classes."""
    rows = [
        (f"{KINDS[v % 3 > 0]}/video{v}_{i}.png", KINDS[v % 3 > 0], f"no. {v}")
        for v in range(12)
        for i in range(5)
    ]
    images(root, [path for path, _, _ in rows])
    if how == "folder":
        return f"folder:{root}", {"group": r"video(\d+)_"}
    place = write(root, ("path", "label", "video"), rows)
    return place, {"group": "video" if how == "column" else r"video\d+"}


@pytest.mark.parametrize("how", ["folder", "column", "pattern"])
@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_whole_in_every_split(how, seed, tmp_path):
    place, options = videos(tmp_path, how)
    source = data.open_source(place, choices=data.opened.Choices(**options))
    train, test, notes = data.roles.train_and_test(source, split_seed=seed)
    assert not set(train.groups) & set(test.groups)
    assert (train.count, test.count) in ((45, 15), (50, 10))
    assert set(train.labels) == set(test.labels) == {0, 1}
    assert "groups whole" in " ".join(notes)
    loaded = data.assemble(source, split_seed=seed)
    first, second = data.halves(loaded.train_labels, seed, loaded.train_groups)
    assert not set(loaded.train_groups[first]) & set(loaded.train_groups[second])
    assert abs(len(first) - len(second)) <= 5
    ungrouped = data.load(place)
    assert ungrouped.train_groups is None
    assert ungrouped.digest() != loaded.digest()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_validation_share_keeps_groups_whole(share):
    config = presets.get_config("small")
    config.train.validation_share = share
    rng = np.random.default_rng(0)
    x, groups = rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), np.arange(200) // 5
    x[:, 0, 0] = groups  # identifies them later
    given = data.from_arrays(x, groups % 2, x[:4], [0, 1, 0, 1], groups=groups)
    split = resolve._hold_out_validation(config, "train", given)
    kept, held = (set(part[:, 0, 0, 0]) for part in (split.train_images, split.test_images))
    assert not kept & held
    assert len(kept | held) == 40
    assert abs(split.test_count - 200 * share) <= 10
    assert len(split.train_groups) == split.train_count
    one = data.from_arrays(x, groups % 2, x[:4], [0, 1, 0, 1], groups=np.zeros(200, int))
    with pytest.raises(UserError, match=r"1 group, which cannot be split for .*validation_share"):
        resolve._hold_out_validation(config, "train", one)


@pytest.mark.parametrize("shape", ["even", "uneven", "many classes", "two a class"])
def test_grouped_splits_keep_shares_and_classes(shape):
    rng = np.random.default_rng(1)
    if shape == "even":
        groups, labels = np.arange(400) // 4, np.arange(400) // 4 % 4
    elif shape == "uneven":
        groups = np.repeat(np.arange(60), rng.integers(1, 15, 60))
        labels = groups % 3
    elif shape == "many classes":
        groups, labels = np.arange(600) // 6, rng.integers(0, 5, 600)
    else:
        groups, labels = np.arange(80) // 5, np.arange(80) // 10
    for sizes in ((0.8, 0.2), (0.5, 0.5)):
        counts = [round(len(labels) * share) for share in sizes]
        parts = splits.grouped(labels, groups, counts, seed=2)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        assert not set(groups[parts[0]]) & set(groups[parts[1]])
        for part, count in zip(parts, counts, strict=True):
            assert set(labels[part]) == set(labels)
            if shape != "two a class":
                assert abs(len(part) - count) <= 0.05 * len(labels)
        again = splits.grouped(labels, groups, counts, seed=2)
        np.testing.assert_array_equal(parts[1], again[1])


def test_groups_of_arrays():
    x, y = RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) // 4 % 2
    loaded = data.from_arrays(x, y, groups=[f"patient {i // 4}" for i in range(40)])
    assert (loaded.train_count, loaded.test_count) == (32, 8)
    assert len(set(loaded.train_groups)) == 8
    again = data.as_dataset(loaded, preparation=loaded.preparation._replace(height=4))
    np.testing.assert_array_equal(again.train_groups, loaded.train_groups)
    with pytest.raises(UserError, match=r"groups has the shape \(3,\), expected \[40\]"):
        data.from_arrays(x, y, groups=[1, 2, 3])


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (r"video(\d", "is no regular expression"),
        (r"patient\d", "found in 0 of 60 paths only, not in a/video0_0.png"),
        ("video", "puts all images into 1 group"),
    ],
)
def test_groups_that_are_refused(group, message, tmp_path):
    place, _ = videos(tmp_path, "folder")
    with pytest.raises(UserError, match=message):
        data.load(place, group=group)


def test_groups_in_training_and_test_are_told_of(tmp_path):
    rows = listed(tmp_path)
    rows = [(p, k, "test" if i > 7 else "train", i % 9) for i, (p, k) in enumerate(rows)]
    place = write(tmp_path, ("path", "label", "split", "patient"), rows)
    with pytest.raises(UserError, match=r"1 groups .* in training and in test, as .*0.png and .*9"):
        data.load(place, group="patient")


def test_a_search_asks_for_halves_that_hold_a_batch(tmp_path):
    x, y = RNG.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2
    groups = np.minimum(np.arange(60) // 2, 3)
    given = data.from_arrays(x, y, test_share=0.1, groups=groups)
    with pytest.raises(UserError, match=r"groups of config.data.group split .* into"):
        asap_jax.search("tiny", data=given, batch_size=20, quiet=True)
