"""Each pruning is noted in the step that made it, also where a search was resumed."""

import copy

import numpy as np

from asap_jax.host.loop import Progress
from asap_jax.searching.prunings import METRIC, Prunings, of_epoch

START = {"normal": np.ones((2, 3), bool)}


def masks(*dead):
    left = np.ones((2, 3), np.int8)
    for edge, candidate in dead:
        left[edge, candidate] = 0
    return {"normal": left}


def step(prunings, progress, *dead):
    metrics = {METRIC: masks(*dead), "train_loss": 1.0}
    prunings.note(progress, metrics)
    assert metrics == {"train_loss": 1.0}
    progress.step += 1


def test_each_pruning_is_noted_once():
    progress, prunings = Progress(), Prunings(START)
    step(prunings, progress)
    step(prunings, progress, (0, 1))
    step(prunings, progress, (0, 1), (1, 0), (1, 2))
    assert of_epoch(progress) == [[2, "normal", 0, 1], [3, "normal", 1, 0], [3, "normal", 1, 2]]
    progress.next_epoch()
    step(prunings, progress, (0, 1), (1, 0), (1, 2))
    assert of_epoch(progress) == []


def test_a_resumed_search_notes_what_it_would_have_noted():
    straight, first = Progress(), Progress()
    prunings = Prunings(START)
    for dead in ([(0, 1)], [(0, 1), (1, 0)]):
        step(prunings, straight, *dead)
    step(Prunings(START), first, (0, 1))
    resumed = copy.deepcopy(first)
    step(Prunings(START), resumed, (0, 1), (1, 0))
    assert resumed.history == straight.history


def test_a_checkpoint_without_prunings_does_not_date_them_anew():
    progress, prunings = Progress(epoch=3), Prunings(START)
    step(prunings, progress, (0, 1))
    step(prunings, progress, (0, 1), (1, 0))
    assert of_epoch(progress) == [[2, "normal", 1, 0]]
