"""SNAS: Stochastic Neural Architecture Search (Xie et al., 2019, arXiv:1812.09926)."""

from functools import partial

import jax

from asap_jax import bilevel, derive, schedules
from asap_jax.relaxation import Mixture, gumbel_softmax
from asap_jax.spaces import SearchSpace
from asap_jax.strategies.base import (
    Strategy,
    cell_keys,
    distribution_of_alphas,
    zero_alphas,
)


def snas(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    initial_temperature: float = 1.0,
    final_temperature: float = 0.03,
) -> Strategy:
    """A fresh sample softmax((log alpha + Gumbel) / lambda) each step; one loss trains all.

    The alphas here are the paper's log alpha, and start at 0 (in the authors' code at 1 plus 0.01
    times a normal draw; a number added to all of an edge's changes nothing). Alphas and omega learn
    from the same batch, at one point and with one sample, and the batches are of all training
    images: what is called validation accuracy is measured on images that trained both. (The
    authors' code measures on the test images there.) At the end each edge takes its most probable
    candidate; all edges are kept, but for those whose choice is `none`.

    Args:
      space: edges and candidates.
      epochs: over which lambda falls, by a constant difference an epoch, as in the authors' code.
      steps_per_epoch: steps in an epoch.
      initial_temperature, final_temperature: lambda one epoch before the first, and in the last.
        (The authors' code has 1 and 0.03 over 150 epochs.)
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
