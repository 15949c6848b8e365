"""From alphas to mixture weights, and the interface between network and strategy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.genotypes import Genotype
from asap_jax.spaces import SearchSpace


class Dropout(NamedTuple):
    """Dropout of values or whole samples in training; see `Mixture`.

    key: PRNG key; each cell folds in its index.
    rate: scalar, the share of values or samples to drop.
    """

    key: jax.Array
    rate: jax.Array


class Mixture(NamedTuple):
    """How the candidates of one cell type are mixed.

    weights: [E, O], factor of each candidate's output.
    active: [E, O] bool; an inactive candidate is not computed and gets no gradient or update.
    edge_weights: [E], a factor for each edge's output, or None: 1, and 0 where nothing is active.
    skip_dropout: dropout of the values of identity candidates (P-DARTS); or None.
    drop_path: dropout of samples of an edge's output, independent per edge (SNAS); or None. Only
      one of the two may be set.
    """

    weights: jax.Array
    active: jax.Array
    edge_weights: jax.Array | None = None
    skip_dropout: Dropout | None = None
    drop_path: Dropout | None = None

    @property
    def scaled(self) -> jax.Array:
        """[E, O] weights multiplied by the edge weights."""
        return (
            self.weights if self.edge_weights is None else self.weights * self.edge_weights[:, None]
        )


def masked_softmax(alphas, mask, temperature=1.0):
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


def one_hot_mixture(genotype: Genotype, space: SearchSpace) -> dict[str, Mixture]:
    """The mixture with which a supernet of `space` computes only the genotype's candidates."""
    mixtures = {}
    for cell, (nodes, _) in genotype.cells.items():
        weights = np.zeros(space.shape, np.float32)
        for target, node in enumerate(nodes, space.inputs):
            for op, source in node:
                weights[space.edges.index((source, target)), space.candidates.index(op)] = 1
        mixtures[cell] = Mixture(jnp.asarray(weights), jnp.asarray(weights > 0))
    return mixtures
