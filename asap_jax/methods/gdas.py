"""GDAS: Searching for a Robust Neural Architecture in Four GPU Hours.

Dong and Yang, 2019, arXiv:1910.04465.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.methods import derive, schedules
from asap_jax.methods.base import (
    Method,
    Strategy,
    cell_keys,
    derive_strongest,
    distribution_of_alphas,
    in_darts_space,
    normal_alphas,
)
from asap_jax.methods.relaxation import gumbel_softmax
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SKELETONS, SearchSpace


def gdas(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    initial_temperature: float = 10.0,
    final_temperature: float = 0.1,
    pairs: bool = True,
) -> Strategy:
    """Samples one candidate per edge by a hard Gumbel-softmax with straight-through gradients.

    Only the sampled candidates are computed and get their own gradients; the other alphas learn
    through the softmax normalization. (The authors' code also adds the zero-valued weight of each
    unsampled candidate to the sum, a gradient without a forward value; omitted here.)

    Args:
      space: edges and candidates; `none` may be sampled but is never derived.
      epochs: number of epochs over which the temperature falls linearly.
      steps_per_epoch: omega steps per epoch.
      initial_temperature, final_temperature: tau in the first and in the last epoch.
      pairs: if a node keeps a fixed number of inputs (`edges=top2`), True keeps its strongest pairs
        of operation and source, two of which may share the source, as in the authors' code for
        DARTS' space; False uses DARTS' rule, the strongest candidate of each edge. With `edges=all`
        and in NAS-Bench-201's cells, DARTS' rule always applies.
    """
    if not 0 < final_temperature <= initial_temperature:
        raise ValueError(
            f"final_temperature has to lie above 0 and not above initial_temperature, got "
            f"{final_temperature} and {initial_temperature}"
        )
    temperature = schedules.linear_between(
        initial_temperature, final_temperature, epochs, steps_per_epoch
    )

    def mixture(arch, step, key):
        mixtures = {}
        for cell, k in cell_keys(space, key).items():
            soft = gumbel_softmax(k, arch.alphas[cell], arch.masks[cell], temperature(step))
            hard = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=soft.dtype)
            mixtures[cell] = Mixture(hard + (soft - lax.stop_gradient(soft)), hard > 0)
        return mixtures

    by_edge, of_edges = derive_strongest(space), SKELETONS[space.skeleton].derives_none

    def derive_pairs(arch, inputs, key, evaluate):
        if not pairs or inputs is None or of_edges:
            return by_edge(arch, inputs, key, evaluate)
        return derive.strongest_pairs(arch.alphas, arch.masks, space, inputs)

    return Strategy(
        init=partial(normal_alphas, space),
        mixture=mixture,
        derive=derive_pairs,
        readings=lambda step: {"temperature": jnp.float32(temperature(step))},
        distribution=distribution_of_alphas,
    )


METHOD = Method(
    gdas,
    partial(in_darts_space, alpha_rate=0.3),
    {"batch_size": 256, "epochs": 250, "omega": {"nesterov": True, "weight_decay": 5e-4}},
)
