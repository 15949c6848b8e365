"""DARTS: Differentiable Architecture Search (Liu et al., 2019, arXiv:1806.09055), first order."""

import jax
import jax.numpy as jnp

from asap_jax import bilevel, derive
from asap_jax.relaxation import Mixture, masked_softmax
from asap_jax.spaces import CELL_TYPES, SearchSpace
from asap_jax.strategies.base import Architecture, Strategy


def darts(space: SearchSpace, epochs: int, steps_per_epoch: int) -> Strategy:
    """A plain softmax over all candidates to the last step, then the strongest edges.

    Alphas start at 1e-3 times a normal draw; each step trains them first, then omega.
    """
    del epochs, steps_per_epoch
    shape = (len(space.edges), len(space.candidates))

    def init(key):
        keys = jax.random.split(key, len(CELL_TYPES))
        return Architecture(
            {
                cell: 1e-3 * jax.random.normal(k, shape)
                for cell, k in zip(CELL_TYPES, keys, strict=True)
            },
            {cell: jnp.ones(shape, bool) for cell in CELL_TYPES},
        )

    def mixture(arch, step, key):
        return {
            cell: Mixture(masked_softmax(alphas, arch.masks[cell]), arch.masks[cell])
            for cell, alphas in arch.alphas.items()
        }

    return Strategy(
        init=init,
        mixture=mixture,
        prune=lambda arch, gradients, step: arch,
        finished=lambda arch: jnp.bool_(False),
        derive=lambda arch, inputs, key, evaluate: derive.strongest(
            arch.alphas, arch.masks, space, inputs
        ),
        readings=lambda step: {},
        alpha_gradient=bilevel.first_order,
        learns=lambda step: jnp.bool_(True),
        alpha_first=True,
    )
