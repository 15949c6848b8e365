"""Random search with weight sharing (Li and Talwalkar, 2019, arXiv:1902.07638)."""

import jax
import jax.numpy as jnp

from asap_jax.genotypes import Genotype
from asap_jax.relaxation import Mixture, one_hot_mixture
from asap_jax.spaces import CELL_TYPES, SearchSpace
from asap_jax.strategies.base import Architecture, Strategy


def random(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    inputs_per_node: int | None = 2,
    samples: int = 100,
) -> Strategy:
    """One uniform architecture a minibatch trains the shared weights; the best of a sample wins.

    Args:
      space: edges and candidates; `none` is never drawn.
      epochs, steps_per_epoch: unused, the method has no schedule.
      inputs_per_node: edges that a sampled architecture keeps at each node, None for all.
      samples: architectures ranked with the shared weights on the alpha half, at the end.
    """
    del epochs, steps_per_epoch
    if samples < 1:
        raise ValueError(f"samples has to be at least 1, got {samples}")
    shape = (len(space.edges), len(space.candidates))
    named = jnp.array([name != "none" for name in space.candidates])

    def sample(key, inputs_per_node):
        """One architecture's candidates, [E, O] bool."""
        key_op, key_edge = jax.random.split(key)
        logits = jnp.broadcast_to(jnp.where(named, 0.0, -jnp.inf), shape)
        chosen = jax.nn.one_hot(jax.random.categorical(key_op, logits), shape[1], dtype=bool)
        if inputs_per_node is None:
            return chosen
        order = jax.random.uniform(key_edge, (shape[0],))
        kept = [
            jnp.argsort(jnp.argsort(order[jnp.array(space.incoming(target))])) < inputs_per_node
            for target in range(2, space.nodes + 2)
        ]
        return chosen & jnp.concatenate(kept)[:, None]

    def mixture(arch, step, key):
        mixtures = {}
        for cell, k in zip(CELL_TYPES, jax.random.split(key, len(CELL_TYPES)), strict=True):
            chosen = sample(k, inputs_per_node)
            mixtures[cell] = Mixture(chosen.astype(jnp.float32), chosen)
        return mixtures

    def genotype(key, inputs_per_node):
        cells = {}
        for cell, k in zip(CELL_TYPES, jax.random.split(key, len(CELL_TYPES)), strict=True):
            chosen = jax.device_get(sample(k, inputs_per_node))
            cells[cell] = tuple(
                tuple(
                    (space.candidates[chosen[e].argmax()], space.edges[e][0])
                    for e in space.incoming(target)
                    if chosen[e].any()
                )
                for target in range(2, space.nodes + 2)
            )
        concat = tuple(range(2, space.nodes + 2))
        return Genotype(cells["normal"], concat, cells["reduce"], concat)

    def best_of_sample(arch, inputs, key, evaluate):
        drawn = [genotype(k, inputs) for k in jax.random.split(key, samples)]
        return max(drawn, key=lambda found: evaluate(one_hot_mixture(found, space)))

    return Strategy(
        init=lambda key: Architecture(
            {cell: jnp.zeros(shape) for cell in CELL_TYPES},
            {cell: jnp.ones(shape, bool) for cell in CELL_TYPES},
        ),
        mixture=mixture,
        prune=lambda arch, gradients, step: arch,
        finished=lambda arch: jnp.bool_(False),
        derive=best_of_sample,
        readings=lambda step: {},
        alpha_gradient=None,
        learns=lambda step: jnp.bool_(False),
    )
