"""A small search space for tests of the methods."""

import jax
import jax.numpy as jnp

from asap_jax import SearchSpace

SPACE = SearchSpace(("dil_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
EDGES, CANDIDATES = len(SPACE.edges), len(SPACE.candidates)
CELLS = ("normal", "reduce")
KEY = jax.random.key(0)


def random_alphas(rng, space=SPACE):
    """{cell type: [E, O]} of standard normal alphas, drawn by a NumPy generator."""
    shape = (len(space.edges), len(space.candidates))
    return {cell: jnp.asarray(rng.normal(size=shape), jnp.float32) for cell in CELLS}
