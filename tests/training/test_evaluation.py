"""Test metrics against counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from asap_jax.training import evaluation

NAMES = ["ant", "bee", "cat"]
# Nine images, three answers wrong: two ants as bees, one bee as a cat; no image is a cat.
CONFUSION = np.array([[3, 2, 0], [0, 3, 1], [0, 0, 0]])


def test_by_hand():
    record = evaluation.Answers(CONFUSION, 0).record(NAMES)
    assert record["accuracy"] == pytest.approx(6 / 9)
    assert record["class_accuracy"] == {"ant": 3 / 5, "bee": 3 / 4, "cat": None}
    assert record["balanced_accuracy"] == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert record["confusion"] == CONFUSION.tolist()
    assert "top_5_accuracy" not in record  # with three classes it would be 100 %


def test_most_confused():
    assert evaluation.most_confused(CONFUSION, NAMES) == "ant as bee 2, bee as cat 1"
    assert evaluation.most_confused(CONFUSION, NAMES, 1) == "ant as bee 2"
    assert evaluation.most_confused(np.eye(3, dtype=int), NAMES) == "nothing"


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_a_whole_set_in_batches(batch_size):
    """The last batch is padded with images that must not count twice."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 2, 2, 3)).astype(np.uint8)
    labels = rng.integers(0, 8, 64).astype(np.int32)
    weights = rng.normal(size=(12, 8)).astype(np.float32)
    answer = evaluation.Questions(
        lambda weights, x: x.reshape(-1, 12) @ weights,
        images,
        labels,
        (0.5,) * 3,
        (0.3,) * 3,
        batch_size,
        8,
    )
    answers = answer(jnp.asarray(weights))
    scores = ((images / 255 - 0.5) / 0.3).reshape(64, 12) @ weights
    want = np.zeros((8, 8), int)
    np.add.at(want, (labels, scores.argmax(-1)), 1)
    np.testing.assert_array_equal(answers.confusion, want)
    ranks = (scores > scores[np.arange(64), labels][:, None]).sum(-1)
    assert answers.record(range(8))["top_5_accuracy"] == (ranks < 5).mean()
    assert 0 < answers.accuracy < answers.record(range(8))["top_5_accuracy"] < 1
    latency = answer.latency(jnp.asarray(weights))
    assert latency["batch"] == min(batch_size, 64)
    assert latency["images_per_second"] == pytest.approx(latency["batch"] / latency["seconds"])
    np.testing.assert_array_equal(answer(jnp.asarray(weights)).confusion, want)  # as before


def test_a_stream_is_answered_and_timed_like_images_in_memory():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 2, 2, 3)).astype(np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    valid = np.array([[True, True, True], [True, True, False]])
    weights = jnp.asarray(rng.normal(size=(12, 3)), jnp.float32)

    def batches():
        yield from ((images[i : i + 3], labels[i : i + 3], valid[i // 3]) for i in (0, 3))

    statistics = (0.5,) * 3, (0.3,) * 3
    stream = evaluation.StreamedQuestions(
        lambda weights, x: x.reshape(-1, 12) @ weights, batches, *statistics, 3
    )
    scores = ((images[:5] / 255 - 0.5) / 0.3).reshape(5, 12) @ np.asarray(weights)
    want = np.zeros((3, 3), int)
    np.add.at(want, (labels[:5], scores.argmax(-1)), 1)
    np.testing.assert_array_equal(stream(weights).confusion, want)
    latency = stream.latency(weights)
    assert latency["batch"] == 3 and latency["seconds"] > 0


def test_equal_scores_go_to_the_lower_index():
    answers = evaluation.add_answers(
        evaluation.no_answers(7), jnp.zeros((7, 7)), jnp.arange(7, dtype=jnp.int32)
    )
    np.testing.assert_array_equal(answers.confusion[:, 0], np.ones(7))
    assert int(answers.in_top_5) == 5


def test_a_matrix_of_many_classes_is_left_out():
    few, many = (evaluation.Answers(np.eye(n, dtype=int), n) for n in (100, 101))
    assert "confusion" in few.record(range(100))
    assert "confusion" not in many.record(range(101))
    assert many.record(range(101))["top_5_accuracy"] == 1
