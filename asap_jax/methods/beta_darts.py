"""beta-DARTS: Beta-Decay Regularization for Differentiable Architecture Search.

Ye et al., 2022, arXiv:2203.01665.
"""

from functools import partial

import jax
import jax.numpy as jnp

from asap_jax.methods import schedules
from asap_jax.methods.base import Method, Strategy, in_darts_space
from asap_jax.methods.darts import darts
from asap_jax.networks.spaces import SearchSpace


def beta_darts(
    space: SearchSpace, epochs: int, steps_per_epoch: int, *, weight: float = 50.0
) -> Strategy:
    """First-order DARTS with a decay of the mixture's weights (beta) in the alphas' loss.

    The loss of the alphas is L_val + w(e) * mean over edges of log sum_o exp(alpha_o). The gradient
    of the second term by an alpha is w softmax(alpha) / E, with E edges: a candidate is pulled down
    by as much as it weighs. w grows linearly with the epoch e, counted from 0: w(e) = 50 e / 100 in
    the authors' 100 epochs, weight * e / epochs here.

    With two cell types the term is the sum of both types' means. (The authors' public code has the
    term for NAS-Bench-201's space only, with one type.)

    Args:
      space: edges and candidates; `none` is part of the mixture but never derived.
      epochs: over which w grows.
      steps_per_epoch: omega steps per epoch.
      weight: w at the end of the last epoch; the authors use 50.
    """
    if weight < 0:
        raise ValueError(f"weight has to be 0 or more, got {weight}")
    grown = schedules.linear_by_epoch(weight, epochs, steps_per_epoch)

    def regularizer(arch, step):
        decay = sum(jnp.mean(jax.nn.logsumexp(alphas, axis=-1)) for alphas in arch.alphas.values())
        return grown(step) * decay

    plain = darts(space, epochs, steps_per_epoch)
    return plain._replace(
        regularizer=regularizer, readings=lambda step: {"regularizer_weight": grown(step)}
    )


METHOD = Method(beta_darts, partial(in_darts_space, alpha_rate=0.3), {"batch_size": 64})
