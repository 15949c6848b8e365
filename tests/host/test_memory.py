"""The memory estimate of a step, against the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny

from asap_jax import GENOTYPES, data
from asap_jax.host import memory
from asap_jax.host.errors import UserError
from asap_jax.runs import inputs, runner
from asap_jax.searching import stages
from asap_jax.searching.search_step import init_state, make_search_step
from asap_jax.training import train_loop
from asap_jax.training.feed import Batch
from asap_jax.training.train_step import init_state as init_train_state
from asap_jax.training.train_step import make_train_step


@pytest.fixture(scope="module")
def dataset():
    return inputs.load_data(tiny())


def compiled(step, state, *batches) -> int:
    analysis = jax.jit(step, donate_argnums=0).lower(state, *batches).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes


def shapes(count, shape):
    return Batch(
        jax.ShapeDtypeStruct((count, *shape), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
    )


def test_training_estimate_is_near_the_compilers(dataset):
    config = tiny().train
    config.update({"channels": 8, "batch_size": 64})
    needed = train_loop.estimate(config, GENOTYPES["ASAP"], dataset)
    network = train_loop.make_network(config, GENOTYPES["ASAP"], 10)
    optimizer = train_loop.make_optimizer(config, 1)
    shape = dataset.preparation.shape
    state = jax.eval_shape(lambda: init_train_state(network, optimizer, jax.random.key(0), shape))
    measured = compiled(make_train_step(network, optimizer), state, shapes(64, shape))
    assert 0.6 < (needed.total - needed.data) / measured < 1.7
    assert needed.data == dataset.train_images.nbytes + dataset.test_images.nbytes
    config.batch_size = 128
    doubled = train_loop.estimate(config, GENOTYPES["ASAP"], dataset)
    assert doubled.activations == pytest.approx(2 * needed.activations, rel=0.05)
    config.accumulate = 2
    halved = train_loop.estimate(config, GENOTYPES["ASAP"], dataset)
    assert halved.activations == needed.activations


def test_search_estimate_is_near_the_compilers(dataset):
    config = tiny().search
    needed = stages.estimate(config, dataset)
    stage, shape = stages.build(config, dataset), dataset.preparation.shape
    strategy, network, optimizers = stage.strategy, stage.network, stage.optimizers
    state = jax.eval_shape(
        lambda: init_state(network, strategy, optimizers, jax.random.key(0), shape)
    )
    batch = shapes(config.batch_size, shape)
    measured = compiled(make_search_step(network, strategy, optimizers), state, batch, batch)
    assert 0.4 < (needed.total - needed.data) / measured < 2.5


def test_too_much_is_refused_with_advice(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"the search is .*MB.*lower config.search.batch_size"):
        runner.run(tiny(), tmp_path, mode="search", dataset=dataset, quiet=True)
    config = tiny()
    config.genotype = "ASAP"
    with pytest.raises(UserError, match=r"the training is .*1 MB left: .*config.train.accumulate"):
        runner.run(config, tmp_path / "train", mode="train", dataset=dataset, quiet=True)


def test_sizes_are_readable():
    assert memory.readable(999) == "999 B"
    assert memory.readable(1.5e9) == "1.5 GB"
    assert memory.readable(2e12) == "2 TB"


def test_what_is_available_here():
    assert memory.available() > 1e8


def test_images_that_reductions_cannot_halve_are_refused_with_the_nearest_size():
    odd = data.from_arrays(jnp.arange(20 * 30 * 30).reshape(20, 30, 30) % 251, jnp.arange(20) % 2)
    with pytest.raises(UserError, match=r"multiple of 4: .*good size is 32.*image_size=32"):
        runner.run(tiny(), None, dataset=odd, quiet=True)
