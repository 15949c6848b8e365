"""Random search with weight sharing (Li and Talwalkar, 2019, arXiv:1902.07638)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.methods import bilevel, derive
from asap_jax.methods.base import PAPER_CELLS, Method, Strategy, cell_keys, zero_alphas
from asap_jax.networks.mixture import Mixture, one_hot_mixture
from asap_jax.networks.spaces import SKELETONS, SearchSpace


def random(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    inputs_per_node: int | None = 2,
    samples: int = 1000,
    images: int = 640,
    best: int = 10,
    rounds: int = 1,
) -> Strategy:
    """Trains shared weights on one uniform architecture per minibatch, then picks the best sampled.

    At the end, each round ranks a sample on a few images of the alpha half, and its best on all of
    that half; the best of all rounds wins.

    Differences from the authors' code: it ranks each architecture on the next ten minibatches, here
    all are ranked on the same images; it normalizes by running statistics, here by batch
    statistics; it uses the winner of the first round; and it draws `none` like any other
    candidate.

    Args:
      space: edges and candidates; `none` is drawn only if it can be derived.
      epochs, steps_per_epoch: unused, the method has no schedule.
      inputs_per_node: edges that a sampled architecture keeps at each node, None for all.
      samples: architectures drawn per round; the authors use 1,000.
      images: of the alpha half, used to rank a sample; the authors use ten minibatches of 64.
      best: of a sample, ranked on the whole half; the authors use 10.
      rounds: the authors use one per 10,000 steps, 3 in a CIFAR-10 search of 100 epochs.
    """
    del epochs, steps_per_epoch
    for name, value in (
        ("samples", samples),
        ("images", images),
        ("best", best),
        ("rounds", rounds),
    ):
        if value < 1:
            raise ValueError(f"{name} has to be at least 1, got {value}")

    def drawn_genotypes(key, inputs_per_node):
        drawn = draw(space, inputs_per_node, key, samples)
        return [derive.all_living(masks, space) for masks in drawn]

    def best_of_rounds(arch, inputs, key, evaluate):
        finalists = []
        for round_key in jax.random.split(key, rounds):
            ranked = sorted(
                drawn_genotypes(round_key, inputs),
                key=lambda found: -evaluate(one_hot_mixture(found, space), images),
            )
            finalists += ranked[:best]
        return max(finalists, key=lambda found: evaluate(one_hot_mixture(found, space)))

    return uniform_training(space, inputs_per_node, best_of_rounds)


def uniform_training(space: SearchSpace, inputs_per_node: int | None, rank: Callable) -> Strategy:
    """Trains shared weights on one uniform architecture per minibatch.

    Args:
      space: edges and candidates.
      inputs_per_node: edges that an architecture keeps at each node, None for all.
      rank: `Strategy.derive`, which finds the best architecture by their accuracies.
    """

    def mixture(arch, step, key):
        mixtures = {}
        for cell, k in cell_keys(space, key).items():
            chosen = uniform(space, inputs_per_node, k)
            mixtures[cell] = Mixture(chosen.astype(jnp.float32), chosen)
        return mixtures

    return Strategy(
        init=partial(zero_alphas, space),
        mixture=mixture,
        derive=rank,
        updates=bilevel.omega_alone(),
        learns=lambda step: jnp.bool_(False),
        distribution=None,
    )


def drawable(space: SearchSpace) -> np.ndarray:
    """[O] bool, the candidates that may be drawn: all, but `none` only if it can be derived."""
    with_none = SKELETONS[space.skeleton].derives_none
    return np.array([with_none or name != "none" for name in space.candidates])


def uniform(space: SearchSpace, inputs_per_node: int | None, key) -> jax.Array:
    """[E, O] bool, the candidates of a random cell: one an edge, on some edges of each node."""
    key_op, key_edge = jax.random.split(key)
    logits = jnp.broadcast_to(jnp.where(drawable(space), 0.0, -jnp.inf), space.shape)
    drawn = jax.random.categorical(key_op, logits)
    chosen = jax.nn.one_hot(drawn, space.shape[1], dtype=bool)
    if inputs_per_node is None:
        return chosen
    order = jax.random.uniform(key_edge, space.shape[:1])
    kept = [
        jnp.argsort(jnp.argsort(order[jnp.array(space.incoming(target))])) < inputs_per_node
        for target in space.intermediate
    ]
    return chosen & jnp.concatenate(kept)[:, None]


def draw(space: SearchSpace, inputs_per_node: int | None, key, count: int) -> list[dict]:
    """`count` random architectures, each {cell type: [E, O] bool}, on the host."""

    def one(key):
        keys = cell_keys(space, key)
        return {cell: uniform(space, inputs_per_node, k) for cell, k in keys.items()}

    chosen = jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(key, count)))
    return [{cell: masks[i] for cell, masks in chosen.items()} for i in range(count)]


def _adapt(search) -> None:
    """A sampled cell keeps as many inputs as the derived one; small searches rank small samples."""
    options, full = search.strategy, search.cells == PAPER_CELLS
    options.inputs_per_node = derive.EDGES[search.edges]
    options.samples, options.rounds = (1000, 3) if full else (100, 1)


METHOD = Method(random, _adapt, {"batch_size": 64, "epochs": 100}, has_alphas=False)
