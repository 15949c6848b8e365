"""A search with a budget of time ends within it, decided; on a clock that the tests set."""

import itertools
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny

import asap_jax
from asap_jax import STRATEGIES, SearchSpace, data
from asap_jax.configs import presets
from asap_jax.host import loop
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interrupted, Interruption
from asap_jax.host.run_log import RunLog
from asap_jax.runs import inputs
from asap_jax.searching import pace, stages
from asap_jax.searching.search_step import SearchState

SPACE = SearchSpace(("dil_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
EPOCHS, WHOLE, RATE = 20, 10, 0.02
ALL = sum(np.prod(SPACE.shape) for _ in SPACE.cell_types)
DIRECTIONS = {
    cell: np.random.default_rng(i).normal(size=SPACE.shape)
    for i, cell in enumerate(SPACE.cell_types)
}


class Search:
    """`loop.run` on a search without images: a step moves the alphas, prunes, and takes its time.

    seconds: of a step with all candidates; with fewer, it is that much shorter.
    compiling, measuring: seconds of the first step of each start, and after each epoch.
    """

    def __init__(self, monkeypatch, budget, strategy="asap", seconds=0.1, folder=None):
        self.now, self.budget, self.seconds = 0.0, budget, seconds
        self.compiling = self.measuring = 0.0
        self.numbers = pace.step_numbers(EPOCHS)
        self.strategy = STRATEGIES[strategy](SPACE, EPOCHS, self.numbers)
        self.saving = folder and loop.Saving(folder)
        self.stop_at, self.records, self.positions = None, [], []
        monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        self._prune = jax.jit(self._pruned)
        self._temperature = self.strategy.readings

    def _pruned(self, arch, factor, step):
        learns = self.strategy.learns(step)
        moved = {
            cell: alphas + jnp.where(learns & arch.masks[cell], factor * RATE * DIRECTIONS[cell], 0)
            for cell, alphas in arch.alphas.items()
        }
        new = arch._replace(alphas=moved)
        pruned = self.strategy.prune(new, jax.tree.map(jnp.zeros_like, moved), step)
        return jax.tree.map(lambda new, old: jnp.where(learns, new, old), pruned, arch)

    def state(self):
        return SearchState(
            step=jnp.int32(0),
            params={},
            batch_stats={},
            arch=self.strategy.init(jax.random.key(0)),
            omega_opt=optax.scale_by_schedule(optax.constant_schedule(1.0)).init({}),
            alpha_opt=pace.paced(optax.identity()).init({}),
            key=jax.random.key_data(jax.random.key(0)),
        )

    def step(self, state, number):
        self.positions.append(int(state.step))
        arch = self._prune(state.arch, state.alpha_opt.factor, state.step)
        left = sum(int(mask.sum()) for mask in arch.masks.values())
        self.now += self.compiling + self.seconds * left / ALL
        self.compiling = 0.0
        if self.stop_at is not None and self.now >= self.stop_at:
            self.stop_at = None
            self.interruption.ask(signal.SIGTERM)
        metrics = {
            "train_loss": np.float32(1),
            "finished": np.asarray(self.strategy.finished(arch)),
        }
        return state.replace(step=state.step + 1, arch=arch), metrics

    def summary(self, state, progress, last):
        self.now += self.measuring
        return {"candidates_left": sum(int(m.sum()) for m in state.arch.masks.values())}

    def __call__(self):
        log = RunLog(None, quiet=True)
        log.epoch = self.records.append
        self.pace = pace.Pace(self.budget, self.strategy, EPOCHS, self.numbers, WHOLE)
        with Interruption() as self.interruption:
            session = loop.Session(log, self.interruption, self.saving)
            return loop.run(
                "search",
                self.state(),
                self.step,
                lambda epoch, step: ((i,) for i in itertools.count(step)),
                self.summary,
                epochs=self.pace.epochs,
                steps=self.numbers,
                session=session,
                identity={},
                # As in a search with `on_prune`: the clock is that of the step just reported.
                watch=lambda record: False,
                pace=self.pace,
            )


def decided(state):
    return all((np.asarray(mask).sum(1) == 1).all() for mask in state.arch.masks.values())


@pytest.mark.parametrize(("budget", "seconds"), [(30, 0.02), (30, 0.1), (120, 0.1), (600, 0.2)])
def test_it_ends_decided_within_its_time(budget, seconds, monkeypatch):
    search = Search(monkeypatch, budget, seconds=seconds)
    search.measuring = 0.3
    state, progress = search()
    assert decided(state)
    assert progress.ended == "finished"
    assert search.now == pytest.approx(budget, rel=0.1)
    assert sum(progress.history[pace.LENGTHS]) == len(search.positions)


def test_what_compiling_takes_is_part_of_the_budget(monkeypatch):
    search = Search(monkeypatch, 60)
    search.compiling = 25.0
    state, progress = search()
    assert decided(state)
    assert search.now == pytest.approx(60, rel=0.1)
    assert progress.history[pace.LENGTHS][0] > 5  # compiling did not use up the first epoch


def test_a_resumed_search_ends_within_the_same_time(monkeypatch, tmp_path):
    search = Search(monkeypatch, 60, folder=tmp_path)
    search.stop_at = 37.0
    with pytest.raises(Interrupted):
        search()
    assert 0 < search.records[-1]["epoch"] < EPOCHS
    before, search.compiling = search.now, 4.0
    state, progress = search()
    assert decided(state)
    assert progress.seconds == pytest.approx(60, rel=0.1)
    assert search.now >= before
    epochs = [record["epoch"] for record in search.records]
    assert epochs == sorted(set(epochs))


def test_alphas_of_a_resumed_search_go_as_far_per_epoch(monkeypatch, tmp_path):
    """Interrupted in the middle of epochs, and with steps that become faster."""
    search = Search(monkeypatch, 300, "darts", folder=tmp_path)
    for search.stop_at in (37.0, 41.0, 140.0):
        with pytest.raises(Interrupted):
            search()
        search.seconds /= 1.3
    state, progress = search()
    assert progress.seconds == pytest.approx(300, rel=0.1)
    start = search.state().arch.alphas["normal"]
    moved = np.asarray(state.arch.alphas["normal"] - start) / (RATE * DIRECTIONS["normal"])
    np.testing.assert_allclose(moved, EPOCHS * WHOLE, rtol=0.1)


def test_a_late_resume_knows_how_long_the_rest_will_be(monkeypatch, tmp_path):
    """The expected end is not the config's last epoch, also in the epoch that goes on."""
    search = Search(monkeypatch, 200, folder=tmp_path)
    search()
    undisturbed, last = list(search.records), search.pace.last
    assert last < EPOCHS
    search = Search(monkeypatch, 200, folder=tmp_path / "other")
    search.stop_at = 170.0
    with pytest.raises(Interrupted):
        search()
    state, progress = search()
    assert decided(state)
    assert progress.seconds == pytest.approx(200, rel=0.1)
    assert abs(search.records[-1]["epoch"] - undisturbed[-1]["epoch"]) <= 1


def test_without_time_it_ends_and_says_so(monkeypatch):
    search = Search(monkeypatch, 10)
    search.compiling = 30.0
    state, progress = search()
    assert progress.ended == "budget"
    assert progress.epoch == 1 and not decided(state)
    assert search.records[-1]["epochs"] == 1


def test_edges_that_no_temperature_decides_end_with_the_epochs(monkeypatch):
    search = Search(monkeypatch, 60)
    monkeypatch.setitem(DIRECTIONS, "normal", np.zeros(SPACE.shape))
    state, progress = search()
    assert progress.ended == "budget" and not decided(state)
    assert progress.epoch == search.pace.epochs


def test_a_method_that_does_not_end_itself_has_all_its_epochs(monkeypatch):
    search = Search(monkeypatch, 60, "darts")
    _, progress = search()
    assert (progress.epoch, progress.ended) == (EPOCHS, "")
    assert search.now == pytest.approx(60, rel=0.1)
    lengths = progress.history[pace.LENGTHS]
    assert min(lengths) > 0.8 * max(lengths)


def test_the_schedules_see_epochs_and_the_alphas_go_as_far_per_epoch(monkeypatch):
    """Ten times the steps: the same temperatures, and alphas as after `WHOLE` steps per epoch."""
    search = Search(monkeypatch, 300, "darts")
    state, progress = search()
    epochs = np.asarray(search.positions) // search.numbers
    assert sorted(set(epochs)) == list(range(EPOCHS))
    assert np.bincount(epochs).tolist() == progress.history[pace.LENGTHS]
    assert int(state.step) == int(state.omega_opt.count) == EPOCHS * search.numbers
    start = search.state().arch.alphas["normal"]
    moved = np.asarray(state.arch.alphas["normal"] - start) / (RATE * DIRECTIONS["normal"])
    np.testing.assert_allclose(moved, EPOCHS * WHOLE, rtol=0.1)


def test_fewer_steps_do_not_make_larger_ones(monkeypatch):
    search = Search(monkeypatch, 10, "darts")  # five steps an epoch
    state, _ = search()
    assert float(state.alpha_opt.factor) == 1


def test_the_paced_optimizer_is_the_optimizer_times_a_factor():
    gradients = {"normal": jnp.asarray([1.0, -2.0])}
    plain, slowed = optax.adam(0.1), pace.paced(optax.adam(0.1))
    state, inner = slowed.init(gradients)._replace(factor=jnp.float32(0.25)), plain.init(gradients)
    for _ in range(3):
        updates, state = slowed.update(gradients, state, gradients)
        expected, inner = plain.update(gradients, inner, gradients)
        np.testing.assert_allclose(updates["normal"], 0.25 * expected["normal"], rtol=1e-6)
    assert jax.tree.all(jax.tree.map(jnp.allclose, state.inner, inner))


def test_an_endless_epoch_shuffles_all_images_again_and_again():
    images = np.arange(10, 33)
    order = list(itertools.islice(data.endless_order(images, 5, (3, 0), 2, 0), 12))
    turns = [np.concatenate(order[i : i + 4]) for i in (0, 4, 8)]
    for turn in turns:
        assert len(set(turn)) == 20 and set(turn) <= set(images)
    assert not np.array_equal(turns[0], turns[1])
    resumed = list(itertools.islice(data.endless_order(images, 5, (3, 0), 2, 5), 7))
    assert np.array_equal(resumed, order[5:])
    other = next(data.endless_order(images, 5, (3, 0), 3, 0))
    assert not np.array_equal(other, order[0])


@pytest.mark.parametrize("strategy", ["asap_pac", "darts_plus", "dso_nas", "enas"])
def test_methods_that_count_the_steps_of_an_epoch_are_refused(strategy):
    assert not STRATEGIES[strategy](SPACE, EPOCHS, WHOLE).scheduled_by_epoch
    config = presets.get_config(f"tiny,{strategy}")
    config.search.budget_minutes = 1.0
    dataset = inputs.load_data(config)
    with pytest.raises(UserError, match="budget_minutes is 1.0, but the strategy " + strategy):
        stages.check(config.search, dataset)


def test_a_search_with_a_budget_by_the_whole_road():
    """Of the clock itself this tests nothing, since a machine may be busy."""
    config = tiny()
    config.search.budget_minutes = 0.25
    seen = []
    found = asap_jax.search(config, on_epoch=seen.append)
    assert found.search["ended"] in ("finished", "budget")
    assert [record["epoch"] for record in seen] == list(range(1, len(seen) + 1))
    temperatures = [record["temperature"] for record in seen]
    expected = 1.3 * 0.95 ** (50 / 8 * np.arange(1, len(seen) + 1))
    np.testing.assert_allclose(temperatures, expected, rtol=1e-5)
