"""From alphas to mixture weights, and the struct in which network and strategy meet."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.genotypes import Genotype
from asap_jax.spaces import SearchSpace


class Dropout(NamedTuple):
    """Dropout of values or of whole samples while training; see `Mixture`.

    key: of the draws; each cell folds its number in.
    rate: scalar, the share of values or samples that are dropped.
    """

    key: jax.Array
    rate: jax.Array


class Mixture(NamedTuple):
    """How the candidates of one cell type are mixed.

    weights: [E, O], what each candidate's output is multiplied by.
    active: [E, O] bool; an inactive candidate is not computed, gets no gradient and no update.
    edge_weights: [E], a factor for each edge's output, or None: 1, and 0 where nothing is active.
    skip_dropout: of the values that the identities among the candidates give (P-DARTS); or None.
    drop_path: of the samples of an edge's output, each edge by itself (SNAS); or None. Not both.
    """

    weights: jax.Array
    active: jax.Array
    edge_weights: jax.Array | None = None
    skip_dropout: Dropout | None = None
    drop_path: Dropout | None = None

    @property
    def scaled(self) -> jax.Array:
        """[E, O] weights with the edges' own factor in them."""
        return (
            self.weights if self.edge_weights is None else self.weights * self.edge_weights[:, None]
        )


def masked_softmax(alphas, mask, temperature=1.0):
    """Phi of eq. 3 over the candidates that live; [E, O], exactly 0 where `mask` is False.

    Autodiff gives eq. 4 with the factor 1/T that the paper leaves out.
    """
    logits = jnp.where(mask, alphas / temperature, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def gumbel_softmax(key, alphas, mask, temperature):
    """A sample of the Gumbel-softmax (concrete) distribution: softmax((alphas + G) / temperature).

    Args:
      key: of the sample.
      alphas: [E, O] logits.
      mask: [E, O] bool; candidates that do not live get exactly 0.
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
    """Mean entropy of the edges' weights over ln N (figure 7): 1 is uniform, 0 decided."""
    terms = jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1)), 0)
    return jnp.maximum(jnp.mean(-terms.sum(-1)), 0) / np.log(weights.shape[-1])


def one_hot_mixture(genotype: Genotype, space: SearchSpace) -> dict[str, Mixture]:
    """The mixture under which a supernet of `space` computes just the genotype's candidates."""
    mixtures = {}
    for cell, (nodes, _) in genotype.cells.items():
        weights = np.zeros(space.shape, np.float32)
        for target, node in enumerate(nodes, space.inputs):
            for op, source in node:
                weights[space.edges.index((source, target)), space.candidates.index(op)] = 1
        mixtures[cell] = Mixture(jnp.asarray(weights), jnp.asarray(weights > 0))
    return mixtures
