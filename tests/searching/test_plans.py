"""Plans and precisions in a search; test_supernet.py checks that plans compute the same."""

import json
import types
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax import Context, Supernet
from asap_jax.configs import presets, rules
from asap_jax.host import compiling, precisions
from asap_jax.host.errors import UserError
from asap_jax.networks import plans
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import ASAP, SearchSpace
from asap_jax.searching import planned_step

CELLS = ("normal", "reduce")


def test_a_cpu_takes_the_loop_and_a_flag_overrides():
    assert plans.choose() == "loop"
    assert plans.choose("unrolled") == "unrolled"


def test_cost_counts_the_kernels_of_what_is_live():
    one = np.zeros(ASAP.shape, bool)
    one[0, ASAP.candidates.index("sep_conv_5x5")] = True  # two depthwise, two pointwise
    one[1, ASAP.candidates.index("max_pool_3x3")] = True
    assert plans.cost({"normal": one}, ASAP) == 5 + 1


class AtOnce:
    """A ThreadPoolExecutor that runs what is submitted immediately."""

    def __init__(self, workers):
        self.workers = workers

    def submit(self, function):
        future = Future()
        future.set_result(function())
        return future

    def shutdown(self, wait, cancel_futures):
        pass


class OnceOnly(AtOnce):
    """Fails once something is to be recompiled."""

    def __init__(self, workers):
        self.left = 5  # three passes and two accuracies; the training is not reached

    def submit(self, function):
        self.left -= 1
        if self.left >= 0:
            return super().submit(function)
        future = Future()
        future.set_exception(MemoryError("no room to try algorithms out"))
        return future


@pytest.mark.slow
def test_a_search_goes_on_if_it_cannot_be_compiled_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planned_step, "WORTH", 0.0)
    monkeypatch.setattr(compiling, "ThreadPoolExecutor", OnceOnly)
    asap_jax.search(tiny(), workdir=tmp_path, plan="unrolled")
    told = capsys.readouterr().out
    assert told.count("compiling the search step for the") == 1
    assert "going on with the step for all candidates: no room to try algorithms out" in told
    checkpoints = [int(path.name) for path in (tmp_path / "checkpoints/search-0").iterdir()]
    folder = tmp_path / "checkpoints/search-0" / str(max(checkpoints)) / "progress"
    name, live = json.loads((folder / "metadata").read_text())["history"]["plan"]
    assert (name, live) == ("unrolled", None)


@pytest.mark.slow
def test_an_unrolled_search_drops_what_is_pruned(tmp_path, monkeypatch, capsys):
    """Recompiled where it pays off; the checkpoint holds the candidates it was compiled for."""
    monkeypatch.setattr(planned_step, "WORTH", 0.0)
    monkeypatch.setattr(compiling, "ThreadPoolExecutor", AtOnce)
    config = tiny()
    asap_jax.search(config, workdir=tmp_path, plan="unrolled")
    assert "compiling the search step for the" in capsys.readouterr().out
    checkpoints = [int(path.name) for path in (tmp_path / "checkpoints/search-0").iterdir()]
    folder = tmp_path / "checkpoints/search-0" / str(max(checkpoints)) / "progress"
    name, live = json.loads((folder / "metadata").read_text())["history"]["plan"]
    shape = (14, len(config.search.candidates))
    assert name == "unrolled"
    assert {cell: np.shape(rows) for cell, rows in live.items()} == dict.fromkeys(CELLS, shape)
    assert sum(np.sum(rows) for rows in live.values()) < 2 * np.prod(shape)


@pytest.mark.slow
def test_plans_take_the_same_steps():
    """On noise: where a max-pool meets ties, rounding decides which entry gets the gradient."""
    rng, labels = np.random.default_rng(1), np.arange(80) % 10
    images = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    config, told = tiny(), {}
    config.data.update({"train_examples": 0, "test_examples": 0})
    config.search.augmentation.pad = 0
    for plan in plans.PLANS:
        records = told[plan] = []

        def three(record, records=records):
            records.append([record[key] for key in ("train_loss", "val_loss", "entropy")])
            return len(records) == 3

        data = (images, labels, images[:20], labels[:20])
        asap_jax.search(config, data=data, plan=plan, quiet=True, on_step=three)
    np.testing.assert_allclose(told["unrolled"], told["loop"], rtol=1e-4)
    assert np.ptp(np.asarray(told["loop"])[:, 2]) > 0.1  # the alphas have moved


def test_bfloat16_is_refused_where_it_is_emulated():
    for precision in ("bfloat16", "tf32"):
        with pytest.raises(UserError, match=f"precision is {precision}"):
            asap_jax.search("tiny", precision=precision)
    config = presets.get_config("tiny")
    config.train.precision = "float16"
    with pytest.raises(UserError, match="one of auto, float32, tf32, bfloat16"):
        rules.check(config)


@pytest.mark.parametrize(
    ("platform", "capability", "native"),
    [
        ("gpu", "9.0", True),
        ("gpu", "8.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx90a", False),
        ("tpu", None, True),
    ],
)
def test_which_devices_compute_in_bfloat16(platform, capability, native):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    assert precisions.native_bfloat16(device) is native
    assert precisions.resolve("auto", device) == (
        "tf32" if platform == "gpu" and native else "float32"
    )


def test_float32_on_a_gpu_asks_for_whole_products(monkeypatch):
    """The default there is TF32; on a CPU nothing is requested."""

    def asked_of(precision, capability):
        device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda: [device])
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        product = precisions.computed_in(precision, lambda x: x @ x)
        (equation,) = jax.make_jaxpr(product)(jnp.ones((2, 2))).eqns
        monkeypatch.undo()
        return str(equation.params["precision"])

    assert "HIGHEST" in asked_of("float32", "9.0")
    assert "HIGHEST" in asked_of("auto", "7.5")
    for precision in ("auto", "tf32", "bfloat16"):
        assert "HIGH" not in asked_of(precision, "8.0")
    (equation,) = jax.make_jaxpr(precisions.computed_in("float32", lambda x: x @ x))(
        jnp.ones((2, 2))
    ).eqns
    assert equation.params["precision"] is None


@pytest.mark.parametrize("plan", ["loop", pytest.param("unrolled", marks=pytest.mark.slow)])
def test_bfloat16_is_for_maps_alone(plan):
    """Close to float32, with gradients, statistics and logits in float32."""
    space = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=1)
    network = Supernet(space, 5, channels=4, cells=3, plan=plans.Plan(plan))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32)
    weights = jnp.full(space.shape, 1 / len(space.candidates))
    active = jnp.ones(space.shape, bool)
    mixtures = {cell: Mixture(weights, active) for cell in space.cell_types}
    variables = jax.jit(network.init)(jax.random.key(0), images, mixtures)

    def outcome(dtype):
        @jax.jit
        def run(params, weights):
            def loss(params, weights):
                mixed = {cell: Mixture(weights, active) for cell in space.cell_types}
                logits, new = network.apply(
                    {**variables, "params": params},
                    images,
                    mixed,
                    Context(train=True, dtype=dtype),
                    mutable=["batch_stats"],
                )
                return jnp.sum(jnp.sin(logits)), (logits, new["batch_stats"])

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, weights)

        return run(variables["params"], weights)

    (_, (want, _)), (_, want_weights) = outcome(None)
    (_, (got, stats)), gradients = outcome("bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((got, stats, gradients)))
    for a, b in ((got, want), (gradients[1], want_weights)):
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        assert 1e-5 < error < 0.25  # eight bits, and norms over few pixels
