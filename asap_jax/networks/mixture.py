"""The mixture of candidates that a supernet computes: its interface with a method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.networks.genotypes import Genotype
from asap_jax.networks.spaces import SearchSpace


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


def one_hot_mixture(genotype: Genotype, space: SearchSpace) -> dict[str, Mixture]:
    """The mixture with which a supernet of `space` computes only the genotype's candidates."""
    mixtures = {}
    for cell, (nodes, _) in genotype.cells.items():
        weights = np.zeros(space.shape, jnp.result_type(float))
        for target, node in enumerate(nodes, space.inputs):
            for op, source in node:
                weights[space.edges.index((source, target)), space.candidates.index(op)] = 1
        mixtures[cell] = Mixture(jnp.asarray(weights), jnp.asarray(weights > 0))
    return mixtures
