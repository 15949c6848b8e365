"""Random search with weight sharing (Li and Talwalkar, 2019, arXiv:1902.07638)."""

from functools import partial

import jax
import jax.numpy as jnp

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
    shape = space.shape
    with_none = SKELETONS[space.skeleton].derives_none
    drawn = jnp.array([with_none or name != "none" for name in space.candidates])

    def sample(key, inputs_per_node):
        """The candidates of one architecture, [E, O] bool."""
        key_op, key_edge = jax.random.split(key)
        logits = jnp.broadcast_to(jnp.where(drawn, 0.0, -jnp.inf), shape)
        chosen = jax.nn.one_hot(jax.random.categorical(key_op, logits), shape[1], dtype=bool)
        if inputs_per_node is None:
            return chosen
        order = jax.random.uniform(key_edge, (shape[0],))
        kept = [
            jnp.argsort(jnp.argsort(order[jnp.array(space.incoming(target))])) < inputs_per_node
            for target in space.intermediate
        ]
        return chosen & jnp.concatenate(kept)[:, None]

    def mixture(arch, step, key):
        mixtures = {}
        for cell, k in cell_keys(space, key).items():
            chosen = sample(k, inputs_per_node)
            mixtures[cell] = Mixture(chosen.astype(jnp.float32), chosen)
        return mixtures

    def drawn_genotypes(key, inputs_per_node):
        def one(key):
            return {cell: sample(k, inputs_per_node) for cell, k in cell_keys(space, key).items()}

        chosen = jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(key, samples)))
        each = [{cell: masks[i] for cell, masks in chosen.items()} for i in range(samples)]
        return [derive.all_living(masks, space) for masks in each]

    def best_of_rounds(arch, inputs, key, evaluate):
        finalists = []
        for round_key in jax.random.split(key, rounds):
            ranked = sorted(
                drawn_genotypes(round_key, inputs),
                key=lambda found: -evaluate(one_hot_mixture(found, space), images),
            )
            finalists += ranked[:best]
        return max(finalists, key=lambda found: evaluate(one_hot_mixture(found, space)))

    return Strategy(
        init=partial(zero_alphas, space),
        mixture=mixture,
        derive=best_of_rounds,
        updates=bilevel.omega_alone(),
        learns=lambda step: jnp.bool_(False),
        distribution=None,
    )


def _adapt(search) -> None:
    """A sampled cell keeps as many inputs as the derived one; small searches rank small samples."""
    options, full = search.strategy, search.cells == PAPER_CELLS
    options.inputs_per_node = derive.EDGES[search.edges]
    options.samples, options.rounds = (1000, 3) if full else (100, 1)


METHOD = Method(random, _adapt, {"batch_size": 64, "epochs": 100})
