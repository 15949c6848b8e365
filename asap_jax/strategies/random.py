"""Random search with weight sharing (Li and Talwalkar, 2019, arXiv:1902.07638)."""

from functools import partial

import jax
import jax.numpy as jnp

from asap_jax import derive
from asap_jax.relaxation import Mixture, one_hot_mixture
from asap_jax.spaces import SKELETONS, SearchSpace
from asap_jax.strategies.base import Strategy, cell_keys, zero_alphas


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
      space: edges and candidates; `none` is drawn only where it can be derived.
      epochs, steps_per_epoch: unused, the method has no schedule.
      inputs_per_node: edges that a sampled architecture keeps at each node, None for all.
      samples: architectures ranked with the shared weights on the alpha half, at the end.
    """
    del epochs, steps_per_epoch
    if samples < 1:
        raise ValueError(f"samples has to be at least 1, got {samples}")
    shape = space.shape
    with_none = SKELETONS[space.skeleton].derives_none
    drawn = jnp.array([with_none or name != "none" for name in space.candidates])

    def sample(key, inputs_per_node):
        """One architecture's candidates, [E, O] bool."""
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

    def genotype(key, inputs_per_node):
        chosen = {cell: sample(k, inputs_per_node) for cell, k in cell_keys(space, key).items()}
        return derive.all_living(chosen, space)

    def best_of_sample(arch, inputs, key, evaluate):
        sampled = [genotype(k, inputs) for k in jax.random.split(key, samples)]
        return max(sampled, key=lambda found: evaluate(one_hot_mixture(found, space)))

    return Strategy(
        init=partial(zero_alphas, space),
        mixture=mixture,
        derive=best_of_sample,
        alpha_gradient=None,
        learns=lambda step: jnp.bool_(False),
        distribution=None,
    )
