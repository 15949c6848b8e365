"""PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search.

Xu et al., 2020, arXiv:1907.05737.
"""

from functools import partial

import jax
import jax.numpy as jnp

from asap_jax.methods import bilevel, derive
from asap_jax.methods.base import (
    Architecture,
    Method,
    Strategy,
    cell_keys,
    in_darts_space,
    normal_alphas,
    softmax_mixture,
)
from asap_jax.methods.relaxation import node_softmax
from asap_jax.networks.spaces import SearchSpace


def pc_darts(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    partial_channels: int = 4,
    grace: float = 0.3,
) -> Strategy:
    """Mixes 1 / K of the channels; a softmax over each node's edges stabilizes input selection.

    An edge's output is beta_e * shuffle([sum_o softmax(alpha_e)_o o(x_1), x_2]): x_1 is the first
    1 / K of x's channels, x_2 the others, max-pooled 2 x 2 if the edge has stride 2. beta is a
    softmax over the edges into a node (eq. 4). Edges and candidates are ranked by alpha times beta.
    Alphas and betas start at 1e-3 times a normal draw; the alpha step comes first, as in DARTS.

    Args:
      space: edges and candidates; `none` is part of the mixture but never derived.
      epochs: length of the search.
      steps_per_epoch: omega steps per epoch.
      partial_channels: K, a divisor of the supernet's channels.
      grace: share of the epochs in which only omega learns; the authors use 15 of 50.
    """
    if partial_channels < 1:
        raise ValueError(f"partial_channels has to be at least 1, got {partial_channels}")
    if not 0 <= grace < 1:
        raise ValueError(f"grace has to lie in [0, 1), as a share of the epochs; got {grace}")
    begin = round(grace * epochs) * steps_per_epoch

    def init(key):
        key_alpha, key_beta = jax.random.split(key)
        arch = normal_alphas(space, key_alpha)
        betas = {
            cell: 1e-3 * jax.random.normal(k, (len(space.edges),))
            for cell, k in cell_keys(space, key_beta).items()
        }
        return arch._replace(alphas={"alphas": arch.alphas, "betas": betas})

    def edge_weights(arch):
        return {cell: node_softmax(betas, space) for cell, betas in arch.alphas["betas"].items()}

    def mixture(arch, step, key):
        mixtures = softmax_mixture(Architecture(arch.alphas["alphas"], arch.masks))
        betas = edge_weights(arch)
        return {c: mix._replace(edge_weights=betas[c]) for c, mix in mixtures.items()}

    def derive_by_both(arch, inputs, key, evaluate):
        return derive.strongest(
            arch.alphas["alphas"], arch.masks, space, inputs, jax.device_get(edge_weights(arch))
        )

    return Strategy(
        init=init,
        mixture=mixture,
        derive=derive_by_both,
        learns=lambda step: step >= begin,
        updates=bilevel.alpha_then_omega(bilevel.first_order),
        live=lambda arch, step, key: {
            "alphas": arch.masks,
            "betas": jax.tree.map(lambda beta: jnp.ones(beta.shape, bool), arch.alphas["betas"]),
        },
        partial_channels=partial_channels,
    )


METHOD = Method(
    pc_darts,
    partial(in_darts_space, alpha_rate=0.6),
    {"batch_size": 256, "omega": {"learning_rate": 0.1, "final_learning_rate": 0.0}},
)
