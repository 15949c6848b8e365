"""Sources, splits, batches, augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tfds_sets import prepare_tfds

from asap_jax import data
from asap_jax.data.augment import Augmentation, augment, normalise
from asap_jax.host.errors import UserError


def test_digits_are_split_for_good():
    first, second = data.load("digits"), data.load("digits")
    assert first.train_images.shape == (1437, 8, 8, 1)
    assert first.test_images.shape == (360, 8, 8, 1)
    assert first.train_images.dtype == np.uint8
    np.testing.assert_array_equal(first.test_images, second.test_images)
    train = {image.tobytes() for image in first.train_images}
    test = {image.tobytes() for image in first.test_images}
    from sklearn.datasets import load_digits

    whole = {np.round(i * (255 / 16)).astype(np.uint8).tobytes() for i in load_digits().images}
    assert len(whole) == 1797  # all distinct, so disjoint sets of images are disjoint splits
    assert not train & test
    assert train | test == whole
    counts = np.bincount(first.test_labels)
    assert counts.min() >= 34
    assert counts.max() <= 38
    np.testing.assert_allclose((first.train_images / 255).mean(), first.mean[0])


def test_subsets_keep_the_classes_shares():
    small = data.load("digits", train_examples=200, test_examples=50)
    assert set(np.bincount(small.train_labels)) <= {19, 20, 21}
    assert len(small.test_labels) == 50
    with pytest.raises(UserError, match="train_examples has to lie between 1 and 1437"):
        data.load("digits", train_examples=2000)


def test_halves_are_disjoint_equal_and_stratified():
    labels = np.repeat(np.arange(10), [50, 100, 30, 70, 51, 49, 80, 20, 60, 91])
    omega, alpha = data.halves(labels, seed=3)
    assert len(omega) - len(alpha) in (0, 1)
    np.testing.assert_array_equal(np.sort(np.concatenate([omega, alpha])), np.arange(len(labels)))
    difference = np.bincount(labels[omega]) - np.bincount(labels[alpha])
    assert np.abs(difference).max() <= 2
    assert (data.halves(labels, seed=4)[0] != omega).any()
    np.testing.assert_array_equal(data.halves(labels, seed=3)[0], omega)


def test_epochs_visit_each_image_once_and_differ():
    indices = np.arange(100, 207)
    order = data.epoch_order(indices, 10, (0, 1), epoch=0)
    assert order.shape == (10, 10)
    assert len(np.unique(order)) == 100
    assert set(order.ravel()) <= set(indices)
    np.testing.assert_array_equal(order, data.epoch_order(indices, 10, (0, 1), epoch=0))
    assert (order != data.epoch_order(indices, 10, (0, 1), epoch=1)).any()


def test_evaluation_batches_count_each_image_once():
    seen = np.concatenate([i[valid] for i, valid in data.evaluation_batches(23, 5)])
    np.testing.assert_array_equal(seen, np.arange(23))
    assert all(len(indices) == 5 for indices, _ in data.evaluation_batches(23, 5))


def test_augmentation_crops_flips_normalises_and_cuts_out():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, 8, 8, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    plain = np.asarray(normalise(jnp.asarray(images), mean, std))
    np.testing.assert_allclose(plain, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)

    same = augment(jnp.asarray(images), Augmentation(mean, std, 0, False, 0), jax.random.key(0))
    np.testing.assert_allclose(same, plain, rtol=1e-6)

    out = np.asarray(
        augment(jnp.asarray(images), Augmentation(mean, std, 2, True, 0), jax.random.key(1))
    )
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    flips, corners = 0, set()
    for i in range(len(images)):
        found = [
            (flip, y, x)
            for flip in (False, True)
            for y in range(5)
            for x in range(5)
            if np.allclose(
                out[i],
                (padded[i, y : y + 8, x : x + 8][:, :: -1 if flip else 1] / 255 - mean) / std,
                atol=1e-5,
            )
        ]
        assert len(found) == 1
        flips += found[0][0]
        corners.add(found[0][1:])
    assert 20 <= flips <= 44
    assert len(corners) > 15


def test_cutout_zeroes_a_clipped_square():
    images = jnp.full((500, 8, 8, 1), 255, jnp.uint8)
    out = augment(images, Augmentation((0.0,), (1.0,), 0, False, 4), jax.random.key(0))
    holes = np.asarray(out[..., 0] == 0)
    sizes = {(h.any(1).sum(), h.any(0).sum()) for h in holes}
    assert sizes == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}
    assert all(h.sum() == h.any(1).sum() * h.any(0).sum() for h in holes)


def test_tfds_reads_a_prepared_folder(tmp_path):
    rng = np.random.default_rng(0)
    images = {
        s: rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        for s, n in (("train", 30), ("test", 20))
    }
    labels = {s: np.arange(len(v)) % 10 for s, v in images.items()}
    prepare_tfds(tmp_path, "cifar10", {s: (images[s], labels[s]) for s in images})
    loaded = data.load("tfds:cifar10", str(tmp_path))
    np.testing.assert_array_equal(loaded.train_images, images["train"])
    np.testing.assert_array_equal(loaded.test_labels, labels["test"])
    assert loaded.class_names[3] == "cat"
    assert loaded.mean == (0.49139968, 0.48215827, 0.44653124)
    few = data.load("tfds:cifar10", str(tmp_path), train_examples=10)
    np.testing.assert_array_equal(np.sort(few.train_labels), np.arange(10))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:cifar10", "not prepared at .*data.prepare=True"),
        ("tfds:no_such_set", "has no data set 'no_such_set' to read"),
        ("folders", "unknown data source 'folders'"),
    ],
)
def test_missing_data_says_what_to_do(source, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.load(source, str(tmp_path))
