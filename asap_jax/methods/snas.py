"""SNAS: Stochastic Neural Architecture Search (Xie et al., 2019, arXiv:1812.09926)."""

from functools import partial

import jax

from asap_jax.methods import bilevel, derive, schedules
from asap_jax.methods.base import (
    Method,
    Strategy,
    cell_keys,
    distribution_of_alphas,
    in_darts_space,
    zero_alphas,
)
from asap_jax.methods.relaxation import gumbel_softmax
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SearchSpace


def snas(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    initial_temperature: float = 1.0,
    final_temperature: float = 0.03,
) -> Strategy:
    """Samples softmax((log alpha + Gumbel) / lambda) at each step; one loss trains everything.

    The alphas here are the paper's log alpha and start at 0 (in the authors' code at 1 plus 0.01
    times a normal draw; a constant added to all alphas of an edge has no effect). Alphas and omega
    learn from the same batch, at one point and with one sample, and batches come from all training
    images: the reported validation accuracy is measured on images that trained both. (The authors'
    code measures it on the test images.) Each edge derives its most probable candidate; all edges
    are kept, except those that choose `none`.

    Args:
      space: edges and candidates.
      epochs: number of epochs over which lambda falls linearly, as in the authors' code.
      steps_per_epoch: steps per epoch.
      initial_temperature, final_temperature: lambda one epoch before the first, and in the last.
        (The authors' code uses 1 and 0.03 over 150 epochs.)
    """
    if not 0 < final_temperature <= initial_temperature:
        raise ValueError(
            f"final_temperature has to lie above 0 and not above initial_temperature, got "
            f"{final_temperature} and {initial_temperature}"
        )
    temperature = schedules.linear_down_to(
        initial_temperature, final_temperature, epochs, steps_per_epoch
    )

    def mixture(arch, step, key):
        return {
            cell: Mixture(
                gumbel_softmax(k, arch.alphas[cell], arch.masks[cell], temperature(step)),
                arch.masks[cell],
            )
            for cell, k in cell_keys(space, key).items()
        }

    return Strategy(
        init=partial(zero_alphas, space),
        mixture=mixture,
        derive=lambda arch, inputs, key, evaluate: derive.most_probable(
            jax.device_get(arch.alphas), space
        ),
        readings=lambda step: {"temperature": temperature(step)},
        updates=bilevel.joint(bilevel.single_level),
        distribution=distribution_of_alphas,
    )


METHOD = Method(
    snas,
    partial(in_darts_space, alpha_rate=0.3),
    {"batch_size": 64, "epochs": 150, "drop_path": 0.3, "cost_weight": 0.01},
)
