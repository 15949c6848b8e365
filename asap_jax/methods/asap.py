"""ASAP: Architecture Search, Anneal and Prune (Noy et al., 2019, arXiv:1904.04123)."""

import math
from functools import partial

from asap_jax.methods import bilevel, pruning, schedules
from asap_jax.methods.base import Method, Strategy, derive_strongest, softmax_mixture, zero_alphas
from asap_jax.networks.spaces import SearchSpace


def asap(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    initial_temperature: float = 1.3,
    decay: float | None = None,
    final_temperature: float | None = None,
    grace_temperature: float = 1.0,
    threshold: float = 0.4,
) -> Strategy:
    """Algorithm 1 with the exponential schedule (eq. 9) and a fixed threshold.

    Alphas start at 0. Every step trains omega; once T < `grace_temperature` (tau), each step also
    trains alpha on the other half and prunes candidates whose weight is below theta, except the
    last one of an edge. The search ends when every edge has one candidate left.

    Args:
      space: edges and candidates.
      epochs: length of the search.
      steps_per_epoch: omega steps per epoch.
      initial_temperature: T0. The paper gives 1.3 (4.1) and 1.6 (6.2.1); 1.3 is consistent with
        its statements.
      decay: factor of T per epoch. Defaults to the paper's 0.95 over 50 epochs, stretched to
        `epochs`: 0.95^(50 / epochs), so that a search of any length ends at T0 * 0.95^50 = 0.100.
      final_temperature: T in the last epoch, as an alternative to `decay`.
      grace_temperature: tau.
      threshold: theta = `threshold` / N with the space's N, constant for all edges and steps.

    Raises:
      ValueError: a temperature or threshold is out of range, or both `decay` and
        `final_temperature` are given.
    """
    if initial_temperature <= 0:
        raise ValueError(f"initial_temperature has to be above 0, got {initial_temperature}")
    if grace_temperature <= 0:
        raise ValueError(
            f"grace_temperature has to be above 0, got {grace_temperature}: the alphas learn only "
            "while the temperature is below it"
        )
    if decay is not None and final_temperature is not None:
        raise ValueError("asap takes decay or final_temperature, not both: one gives the other")
    if final_temperature is not None:
        if not 0 < final_temperature < initial_temperature:
            raise ValueError(
                f"final_temperature has to lie between 0 and initial_temperature "
                f"({initial_temperature}), got {final_temperature}"
            )
        decay = schedules.decay_to(initial_temperature, final_temperature, epochs)
    if decay is None:
        decay = math.pow(0.95, 50 / epochs)
    if not 0 < decay < 1:
        raise ValueError(f"decay has to lie between 0 and 1, got {decay}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold has to lie in (0, 1], in units of 1 / N, got {threshold}")
    candidates = len(space.candidates)
    temperature = schedules.exponential_temperature(initial_temperature, decay, steps_per_epoch)
    theta = schedules.constant(threshold / candidates)

    def mixture(arch, step, key):
        return softmax_mixture(arch, temperature(step))

    def prune(arch, gradients, step):
        weights = mixture(arch, step, None)
        masks = {
            cell: pruning.prune_below(mask, weights[cell].weights, theta(step))
            for cell, mask in arch.masks.items()
        }
        return arch._replace(masks=masks)

    return Strategy(
        init=partial(zero_alphas, space),
        mixture=mixture,
        derive=derive_strongest(space),
        prune=prune,
        finished=lambda arch: pruning.decided(arch.masks),
        readings=lambda step: {"temperature": temperature(step), "threshold": theta(step)},
        updates=bilevel.omega_then_alpha(bilevel.first_order),  # lines 4 and 6
        learns=lambda step: temperature(step) < grace_temperature,
    )


METHOD = Method(asap)
