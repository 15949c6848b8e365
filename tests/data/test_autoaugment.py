"""AutoAugment and color jitter against Pillow; their draws; their place in `augment`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from asap_jax.configs import presets, rules
from asap_jax.data import jitter, load, operations
from asap_jax.data.augment import Augmentation, _crop, _cutout, augment, normalise
from asap_jax.data.autoaugment import POLICIES, auto_augment, draw, make_operation, sub_policies
from asap_jax.data.jitter import color_jitter, shift_hue
from asap_jax.host.errors import UserError
from asap_jax.training.train_loop import make_augmentation

JITTER = (0.4, 1.5, 0.4, 0.2)  # contrast's lowest factor is clipped at 0
policy_of = jax.jit(auto_augment, static_argnums=1)
jitter_of = jax.jit(color_jitter, static_argnums=1)


@cache
def samples(height, width, channels=3):
    """uint8 [N, H, W, C]: crops of photographs, a constant, two levels, a narrow range, noise."""
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    crops = [
        p[y : y + height, x : x + width] for p in photographs for y, x in ((60, 90), (250, 310))
    ]
    crops += [p[::9, ::9][:height, :width] for p in photographs]
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    crops += [
        np.full(shape, 77, np.uint8),
        np.where(rng.random(shape) < 0.3, 40, 200).astype(np.uint8),
        rng.integers(100, 118, shape, dtype=np.uint8),
        rng.integers(0, 256, shape, dtype=np.uint8),
    ]
    return np.stack(crops)[..., :channels]


def by_pillow(change, images):
    grey = images.shape[-1] == 1
    changed = [np.asarray(change(Image.fromarray(i[..., 0] if grey else i))) for i in images]
    return np.stack(changed).reshape(images.shape)


def fill(image):
    return 128 if image.mode == "L" else (128, 128, 128)


def moved(*matrix):
    way = Image.Transform.AFFINE
    return lambda image: image.transform(image.size, way, matrix, fillcolor=fill(image))


def rotated(degrees):
    return lambda image: image.rotate(degrees, fillcolor=fill(image))


def enhanced(kind, factor):
    return lambda image: kind(image).enhance(factor)


PILLOW = {  # (signed magnitude as a share of the largest; height; width) -> Pillow's result
    "I": lambda m, h, w: ImageOps.invert,
    "A": lambda m, h, w: ImageOps.autocontrast,
    "E": lambda m, h, w: ImageOps.equalize,
    "P": lambda m, h, w: partial(ImageOps.posterize, bits=round(8 - 4 * abs(m))),
    "So": lambda m, h, w: partial(ImageOps.solarize, threshold=round(255 - 255 * abs(m), 9)),
    "B": lambda m, h, w: enhanced(ImageEnhance.Brightness, 1 + 0.9 * m),
    "C": lambda m, h, w: enhanced(ImageEnhance.Contrast, 1 + 0.9 * m),
    "Co": lambda m, h, w: enhanced(ImageEnhance.Color, 1 + 0.9 * m),
    "Sh": lambda m, h, w: enhanced(ImageEnhance.Sharpness, 1 + 0.9 * m),
    "SX": lambda m, h, w: moved(1, 0.3 * m, 0, 0, 1, 0),
    "SY": lambda m, h, w: moved(1, 0, 0, 0.3 * m, 1, 0),
    "TX": lambda m, h, w: moved(1, 0, 150 / 331 * w * m, 0, 1, 0),
    "TY": lambda m, h, w: moved(1, 0, 0, 0, 1, 150 / 331 * h * m),
    "R": lambda m, h, w: rotated(30 * m),
}


def difference(found, expected):
    return np.abs(np.asarray(found).astype(int) - expected.astype(int))


@pytest.mark.parametrize(("shape", "every"), [((32, 32, 1), 1), ((32, 32, 3), 1), ((48, 64, 3), 3)])
def test_operations_are_pillows(shape, every):
    """At every magnitude and in both directions, every operation on every image in one batch."""
    height, width, _ = shape
    images = samples(*shape)[::every]
    entries = [(name, m, sign) for name in PILLOW for m in range(10) for sign in (1, -1)]
    each = [make_operation(*entry, height, width) for entry in entries for _ in images]
    each = jax.tree.map(lambda *fields: np.stack(fields), *each)
    found = jax.jit(operations.apply)(np.tile(images, (len(entries), 1, 1, 1)), each)
    expected = [
        by_pillow(PILLOW[name](sign * m / 9, height, width), images) for name, m, sign in entries
    ]
    wrong = difference(found, np.concatenate(expected)).reshape(len(entries), -1)
    for (name, m, sign), levels in zip(entries, wrong, strict=True):
        close = name in ("A", "B", "C", "Co", "Sh")
        assert levels.max() <= close, (name, m, sign)
    assert wrong.mean() < 0.005


def test_policies():
    assert list(POLICIES) == ["cifar10", "svhn", "imagenet"]
    for policy in POLICIES:
        pairs = sub_policies(policy)
        assert [len(pair) for pair in pairs] == [2] * 25
    cifar, svhn, imagenet = map(sub_policies, POLICIES)
    assert cifar[0] == [("I", 0.1, 0), ("C", 0.2, 6)]
    assert cifar[5] == [("SY", 0.2, 7), ("P", 0.3, 7)]
    assert cifar[24] == [("TY", 0.7, 9), ("A", 0.9, 0)]
    assert svhn[15] == [("I", 0.8, 0), ("TY", 0.0, 2)]
    assert svhn[24] == [("SX", 0.7, 2), ("I", 0.1, 0)]
    assert imagenet[15] == [("R", 0.8, 8), ("Co", 1.0, 2)]
    assert imagenet[17] == [("Sh", 0.4, 7), ("I", 0.6, 0)]
    for pairs, sums in ((cifar, (26.5, 187)), (svhn, (32.9, 143)), (imagenet, (31.0, 159))):
        found = [sum(entry[i] for pair in pairs for entry in pair) for i in (1, 2)]
        np.testing.assert_allclose(found, sums)  # of the probabilities, of the magnitudes
    words = [entry for policy in POLICIES for pair in sub_policies(policy) for entry in pair]
    assert {name for name, _, _ in words} == set(PILLOW)
    with_magnitude = {name for name, _, magnitude in words if magnitude}
    assert with_magnitude == set(PILLOW) - {"I", "A", "E"}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_does_what_its_draws_say(policy):
    images = np.tile(samples(32, 32), (20, 1, 1, 1))
    found = policy_of(images, policy, jax.random.key(3))
    index, happens, negative = map(np.asarray, draw(policy, len(images), jax.random.key(3)))
    assert len(set(index)) == 25
    expected = []
    for i, image in enumerate(images):
        image = Image.fromarray(image)
        for slot, (name, _, magnitude) in enumerate(sub_policies(policy)[index[i]]):
            if happens[slot, i]:
                share = magnitude / 9 * (-1 if negative[slot, i] else 1)
                image = PILLOW[name](share, 32, 32)(image)
        expected.append(np.asarray(image))
    wrong = difference(found, np.stack(expected))
    assert (wrong > 1).mean() < 0.001
    assert (wrong > 0).mean() < 0.005
    still = ~happens.any(0)
    assert still.any()
    np.testing.assert_array_equal(np.asarray(found)[still], images[still])


def test_draws():
    count = 25_000
    index, happens, negative = map(np.asarray, draw("cifar10", count, jax.random.key(0)))
    np.testing.assert_allclose(np.bincount(index), 1000, atol=150)  # 5 standard deviations
    for i, pair in enumerate(sub_policies("cifar10")):
        probabilities = [probability for _, probability, _ in pair]
        np.testing.assert_allclose(happens[:, index == i].mean(1), probabilities, atol=0.08)
    np.testing.assert_allclose(negative.mean(1), 0.5, atol=0.02)
    both = np.stack([*happens, *negative])
    correlations = np.corrcoef(both[:, index == 8])[np.triu_indices(4, 1)]  # E.6 E.5
    np.testing.assert_allclose(correlations, 0, atol=0.16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("change", "option"), [(policy_of, "cifar10"), (jitter_of, JITTER)])
def test_an_image_changes_by_its_own_draws_and_pixels(change, option, channels):
    images = np.repeat(samples(32, 32, channels), 20, axis=0)
    key = jax.random.key(5)
    first = np.asarray(change(images, option, key))
    assert first.shape == images.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(change(images, option, key), first)
    others = images.copy()
    others[1::2] = 255 - others[1::2]
    np.testing.assert_array_equal(change(others, option, key)[::2], first[::2])
    assert (np.asarray(change(images, option, jax.random.key(6))) != first).any()
    assert len({image.tobytes() for image in first[:20]}) > 10  # of one photograph


def hue_turned(share):
    def change(image):
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.asarray(hue).astype(int) + int(share * 255)) % 256
        turned = Image.fromarray(turned.astype(np.uint8))
        return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

    return change


def test_hue_is_pillows():
    images = samples(48, 64)
    turned = jax.jit(shift_hue)
    for share in (-0.5, -0.2, 0.0, 0.1, 0.5):
        found = turned(images, np.full(len(images), share, np.float32))
        wrong = difference(found, by_pillow(hue_turned(share), images))
        assert wrong.max() <= 6  # one step of hue, in the most vivid color
        assert (wrong > 1).mean() < 0.002


def test_jitter_does_what_its_draws_say():
    images = np.tile(samples(32, 32), (20, 1, 1, 1))
    found = jitter_of(images, JITTER, jax.random.key(2))
    order, amounts = map(np.asarray, jitter.draw(JITTER, len(images), jax.random.key(2)))
    expected = []
    for i, image in enumerate(images):
        image = Image.fromarray(image)
        for turn in order[:, i]:
            if turn == jitter.HUE:
                image = hue_turned(amounts[turn, i])(image)
            else:
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[turn]
                image = kind(image).enhance(float(amounts[turn, i]))
        expected.append(np.asarray(image))
    assert (difference(found, np.stack(expected)) > 1).mean() < 0.01


def test_jitter_without_strength_is_the_identity():
    images = samples(32, 32)
    still = jitter_of(images, (0, 0, 0, 0), jax.random.key(0))
    np.testing.assert_array_equal(still, images)


def test_jitter_draws():
    order, amounts = map(np.asarray, jitter.draw((0.4, 1.5, 0.0, 0.2), 24_000, jax.random.key(0)))
    orders, counts = np.unique(order, axis=1, return_counts=True)
    assert orders.shape == (4, 24)
    np.testing.assert_allclose(counts, 1000, atol=150)
    for values, low, high in zip(amounts, (0.6, 0, 1, -0.2), (1.4, 2.5, 1, 0.2), strict=True):
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, np.linspace(low, high, 5), atol=0.05)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, lambda images, key: images),
        (
            {"policy": "svhn"},
            lambda images, key: auto_augment(images, "svhn", jax.random.fold_in(key, 3)),
        ),
        (
            {"jitter": (0.4, 0.4, 0.4, 0.2)},
            lambda images, key: color_jitter(
                images, (0.4, 0.4, 0.4, 0.2), jax.random.fold_in(key, 4)
            ),
        ),
    ],
)
def test_augment_changes_colours_between_flip_and_normalise(options, change):
    """And draws crop, flip and cutout exactly as without a policy."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)

    @jax.jit
    def both(images, key):
        found = augment(images, Augmentation(mean, std, 4, True, 16, **options), key)
        key_crop, key_flip, key_cutout = jax.random.split(key, 3)
        images = _crop(images, 4, key_crop)
        mirrored = jax.random.bernoulli(key_flip, shape=(len(images), 1, 1, 1))
        images = change(jnp.where(mirrored, images[:, :, ::-1], images), key)
        return found, _cutout(normalise(images, mean, std), 16, key_cutout)

    np.testing.assert_array_equal(*both(samples(32, 32), jax.random.key(7)))


def test_config():
    config = presets.get_config("digits")
    assert config.train.augmentation.policy == ""
    assert config.train.augmentation.jitter == ()
    for options in ({"policy": "svhn"}, {"jitter": (0.4, 0.4, 0.4, 0.2)}, {"jitter": (1, 1, 1, 0)}):
        config = presets.get_config("digits")
        presets.update(config, {"train": {"augmentation": options}})
        rules.check(config)
        made = make_augmentation(config.train, load("digits"))
        assert (made.policy, made.jitter) == (options.get("policy", ""), options.get("jitter", ()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "cifar"}, "one of '', 'cifar10', 'svhn', 'imagenet' .did you mean 'cifar10'"),
        ({"jitter": (0.4, 0.4, 0.4)}, "empty or four numbers"),
        ({"jitter": (0.4, 0.4, -0.4, 0.2)}, "empty or four numbers"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue up to 0.5"),
        ({"jitter": (0.4, 0.4, 0.4, "0.2")}, "empty or four numbers"),
        ({"policy": "svhn", "jitter": (0.4, 0.4, 0.4, 0.2)}, "choose one of the two"),
    ],
)
def test_config_errors(options, message):
    config = presets.get_config("digits")
    presets.update(config, {"train": {"augmentation": options}})
    with pytest.raises(UserError, match=message):
        rules.check(config)
