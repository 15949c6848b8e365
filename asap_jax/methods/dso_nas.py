"""DSO-NAS: You Only Search Once (Zhang et al., 2018, arXiv:1811.01567)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asap_jax.host.errors import UserError
from asap_jax.methods import bilevel, derive, pruning
from asap_jax.methods.base import PAPER_CELLS, Architecture, Method, Strategy, full_masks
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SearchSpace

CLIP = 2.0  # of each scale's gradient, in the authors' code


def dso_nas(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    gamma: float = 1e-3,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    grace: float = 100 / 220,
    prune_every: int = 5,
) -> Strategy:
    """Scales every candidate by a free lambda >= 0 and drives useless ones to exactly 0 by L1.

    Scales start at 1 and are not normalized. In the first epochs only omega learns; then both
    alternate, omega on one half of the images, lambda on the other by the accelerated proximal
    gradient (eq. 10-12), for the loss plus gamma times the sum of the scales:

        z = S(lambda - eta g, eta gamma),  S(x, a) = sign(x) max(|x| - a, 0)
        m = z - lambda + mu m
        lambda = max(0, z + mu m)

    A scale of 0 is pruned, as is what is then useless: the candidates that leave a node without
    inputs, and those that enter a node without outputs (in NAS-Bench-201's cells; a "darts" cell
    outputs all its nodes, and one without inputs is 0 there). An edge may lose all its candidates
    or keep several, so the derived nodes differ in their inputs: all that is left is derived,
    whatever `config.search.edges` says.

    From the authors' code: eta 0.1 and mu 0.9 for lambda and omega (Nesterov), gradients of lambda
    clipped at 2, no weight decay on lambda, 100 epochs of pretraining and 120 of search, a network
    rebuilt without its zeros every 5 epochs; until then a scale may rise from 0 again. Differences:
    they scale connections between operations in a network of its own, here the candidates of
    the space's edges; their learning rate is 0.05 while pretraining.

    Args:
      space: edges and candidates. `none` only takes up a scale and is never derived.
      epochs: length of the search, pretraining included.
      steps_per_epoch: omega steps per epoch.
      gamma: weight of the L1 term. A scale whose gradient stays above -gamma falls to 0, by about
        10 eta gamma a step at mu = 0.9; short searches need more than the authors' 1e-3.
      learning_rate, momentum: eta and mu of the scales. `config.search.alpha` is not used.
      grace: share of the epochs in which only omega learns.
      prune_every: epochs between prunings.

    Raises:
      ValueError: an option is out of range; UserError at derivation if a cell has nothing left.
    """
    if gamma <= 0 or learning_rate <= 0:
        raise ValueError(
            f"gamma and learning_rate have to be above 0, got {gamma} and {learning_rate}"
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum has to lie in [0, 1), got {momentum}")
    if not 0 <= grace < 1:
        raise ValueError(f"grace has to lie in [0, 1), as a share of the epochs; got {grace}")
    if prune_every < 1:
        raise ValueError(f"prune_every has to be at least 1, got {prune_every}")
    named = np.array([name != "none" for name in space.candidates])
    begin, period = round(grace * epochs) * steps_per_epoch, prune_every * steps_per_epoch

    def init(key):
        masks = full_masks(space)
        return Architecture({c: jnp.ones(mask.shape) for c, mask in masks.items()}, masks)

    def mixture(arch, step, key):
        return {
            cell: Mixture(jnp.where(arch.masks[cell], scales, 0), arch.masks[cell])
            for cell, scales in arch.alphas.items()
        }

    def left(arch):
        return {
            cell: pruning.connected(mask & (arch.alphas[cell] > 0), space)
            for cell, mask in arch.masks.items()
        }

    def prune(arch, gradients, step):
        due = (step + 1) % period == 0
        found = left(arch)
        masks = {cell: jnp.where(due, found[cell], mask) for cell, mask in arch.masks.items()}
        return arch._replace(masks=masks)

    def derive_all_left(arch, inputs, key, evaluate):
        masks = jax.device_get(left(arch))
        for cell, mask in masks.items():
            if not (mask & named).any():
                raise UserError(
                    f"no cells follow: the scales of the {cell} cell are all 0 or not finite; "
                    f"lower config.search.strategy.gamma, now {gamma}, or learning_rate beside it"
                )
        return derive.all_living(masks, space)

    return Strategy(
        init=init,
        mixture=mixture,
        derive=derive_all_left,
        prune=prune,
        scheduled_by_epoch=False,
        updates=bilevel.omega_then_alpha(bilevel.first_order),
        learns=lambda step: step >= begin,
        alpha_optimizer=optax.chain(
            optax.clip(CLIP), accelerated_proximal(learning_rate, gamma, momentum)
        ),
        distribution=None,  # scales are not normalized
        edges_may_empty=True,
    )


def accelerated_proximal(
    learning_rate: float, gamma: float, momentum: float
) -> optax.GradientTransformation:
    """The update of eq. 10-12, with L1 weight `gamma`, for parameters that stay at 0 or above.

    A parameter that reaches 0 is exactly 0. The state is m, a tree like the parameters.
    """

    def proximal(weight, gradient):
        moved = weight - learning_rate * gradient
        return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - learning_rate * gamma, 0)

    def update(updates, state, params=None):
        z = jax.tree.map(proximal, params, updates)  # `updates` are the gradients
        m = jax.tree.map(lambda z, weight, m: z - weight + momentum * m, z, params, state)
        moves = jax.tree.map(
            lambda z, m, weight: jnp.maximum(z + momentum * m, 0) - weight, z, m, params
        )
        return moves, m

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _adapt(search) -> None:
    """Small searches have fewer steps for a scale to fall from 1 to 0, and fewer epochs."""
    if search.cells != PAPER_CELLS:
        search.strategy.gamma, search.strategy.prune_every = 0.1, 1


METHOD = Method(
    dso_nas,
    _adapt,
    {
        "batch_size": 128,
        "epochs": 220,
        "omega": {
            "learning_rate": 0.1,
            "final_learning_rate": 0.1,
            "weight_decay": 1e-4,
            "nesterov": True,
        },
    },
)
