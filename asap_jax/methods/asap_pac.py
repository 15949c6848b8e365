"""ASAP with the schedule of its Theorem 2 (Noy et al., 2019, sections 3.2, 3.3 and 6.1)."""

import jax
import jax.numpy as jnp
import optax

from asap_jax.methods import pruning, schedules
from asap_jax.methods.base import Method, Strategy, derive_strongest, softmax_mixture, zero_alphas
from asap_jax.networks.spaces import SearchSpace


def asap_pac(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    delta: float = 0.1,
    gradient_bound: float = 0.01,
    grace: float = 0.1,
) -> Strategy:
    """Algorithm 1 with the temperature and threshold for which the paper proves (0, delta)-PAC.

    theta_t = e^-t / N and T(t) = eta L sqrt(8/t log(pi^2 N t^2 / (3 delta))), with t counting alpha
    steps from 1 (nu = 1/N, so rho = 1). The proof assumes plain gradient descent with gradients
    bounded by L, so alphas use SGD without weight decay and each gradient is clipped to L. T and
    the alphas are both proportional to eta, so eta is set to 1. The bound is conservative: at the
    paper's 11,700 alpha steps T is still about 0.13 eta L, so a search of usual length prunes few
    candidates; see docs/theory.md.

    Args:
      space: edges and candidates.
      epochs: length of the search.
      steps_per_epoch: omega steps per epoch.
      delta: probability that the survivor is not the best.
      gradient_bound: L. The paper gives no value; the default is based only on searches of the
        digits. `clipped_share` in the log is the share of unpruned alphas' gradients clipped by L
        so far in the search (49 % on the digits, docs/theory.md). The proof does not cover clipped
        gradients.
      grace: share of the epochs in which only omega learns.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta has to lie between 0 and 1, got {delta}")
    if gradient_bound <= 0:
        raise ValueError(f"gradient_bound has to be above 0, got {gradient_bound}")
    if not 0 <= grace < 1:
        raise ValueError(f"grace has to lie in [0, 1), as a share of the epochs; got {grace}")
    candidates = len(space.candidates)
    begin = round(grace * epochs) * steps_per_epoch
    temperature = schedules.pac_temperature(candidates, gradient_bound, delta)
    log_threshold = schedules.pac_log_threshold(candidates)

    def t(step):
        return step - begin + 1

    def mixture(arch, step, key):
        return softmax_mixture(arch, temperature(t(step)))

    def prune(arch, gradients, step):
        masks = {}
        for cell in space.cell_types:
            mask = arch.masks[cell]
            logits = jnp.where(mask, arch.alphas[cell] / temperature(t(step)), -jnp.inf)
            log_weights = jax.nn.log_softmax(logits, -1)
            masks[cell] = pruning.prune_below(mask, log_weights, log_threshold(t(step)))
        return arch._replace(masks=masks, extra=counted(arch, gradients))

    def counted(arch, gradients):
        """Counts the gradients of unpruned alphas so far, and how many of them L clipped."""
        cut = {cell: jnp.abs(g) > gradient_bound for cell, g in gradients.items()}
        seen = sum(mask.sum() for mask in arch.masks.values())
        clipped = sum((cut[cell] & mask).sum() for cell, mask in arch.masks.items())
        return {"seen": arch.extra["seen"] + seen, "clipped": arch.extra["clipped"] + clipped}

    def init(key):
        nothing = {"seen": jnp.int32(0), "clipped": jnp.int32(0)}
        return zero_alphas(space, key)._replace(extra=nothing)

    return Strategy(
        init=init,
        mixture=mixture,
        derive=derive_strongest(space),
        prune=prune,
        finished=lambda arch: pruning.decided(arch.masks),
        scheduled_by_epoch=False,
        readings=lambda step: {"temperature": temperature(t(step))},
        measured=lambda arch: {
            "clipped_share": arch.extra["clipped"] / jnp.maximum(arch.extra["seen"], 1)
        },
        learns=lambda step: step >= begin,
        alpha_optimizer=optax.chain(optax.clip(gradient_bound), optax.sgd(1.0)),
    )


METHOD = Method(asap_pac)
