"""From alphas to mixture weights."""

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.networks.spaces import SearchSpace


def masked_softmax(alphas, mask, temperature: float | jax.Array = 1.0):
    """Phi of eq. 3 over the unpruned candidates; [E, O], exactly 0 where `mask` is False.

    Autodiff gives eq. 4 with the factor 1/T that the paper omits.
    """
    logits = jnp.where(mask, alphas / temperature, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def gumbel_softmax(key, alphas, mask, temperature):
    """Samples the Gumbel-softmax (concrete) distribution: softmax((alphas + G) / temperature).

    Args:
      key: PRNG key.
      alphas: [E, O] logits.
      mask: [E, O] bool; pruned candidates get exactly 0.
      temperature: near 0 samples are one-hot, drawn with the softmax's probabilities.
    """
    return masked_softmax(
        alphas + jax.random.gumbel(key, alphas.shape, alphas.dtype), mask, temperature
    )


def node_softmax(betas, space: SearchSpace):
    """[E], the softmax of betas [E] over the edges into each node (PC-DARTS, eq. 4)."""
    return jnp.concatenate(
        [
            jax.nn.softmax(betas[jnp.asarray(space.incoming(target))])
            for target in space.intermediate
        ]
    )


def normalised_entropy(weights):
    """Mean entropy of the edges' weights over ln N (figure 7): 1 is uniform, 0 is decided."""
    terms = jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1)), 0)
    return jnp.maximum(jnp.mean(-terms.sum(-1)), 0) / np.log(weights.shape[-1])
