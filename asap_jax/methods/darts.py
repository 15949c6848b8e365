"""DARTS: Differentiable Architecture Search (Liu et al., 2019, arXiv:1806.09055)."""

from functools import partial

from asap_jax.methods import bilevel
from asap_jax.methods.base import (
    Method,
    Strategy,
    derive_strongest,
    in_darts_space,
    normal_alphas,
    softmax_mixture,
)
from asap_jax.networks.spaces import SearchSpace

UPDATES = {
    "first": bilevel.alpha_then_omega(bilevel.first_order),
    "second": bilevel.alpha_then_omega(bilevel.second_order),
    "exact": bilevel.alpha_then_omega(bilevel.second_order_exact),
}


def darts(
    space: SearchSpace, epochs: int, steps_per_epoch: int, *, order: str = "first"
) -> Strategy:
    """A plain softmax over all candidates throughout the search, then the strongest edges.

    Alphas start at 1e-3 times a normal draw; each step trains them first, then omega.

    Args:
      space: edges and candidates; `none` is part of the mixture but never derived.
      epochs, steps_per_epoch: unused, the method has no schedule.
      order: "first" holds omega fixed (xi = 0); "second" takes a virtual omega step (eq. 7) with
        the published finite difference (eq. 8); "exact" differentiates through that step.
    """
    del epochs, steps_per_epoch
    if order not in UPDATES:
        raise ValueError(f"order has to be one of {', '.join(UPDATES)}, got {order!r}")
    return Strategy(
        init=partial(normal_alphas, space),
        mixture=lambda arch, step, key: softmax_mixture(arch),
        derive=derive_strongest(space),
        updates=UPDATES[order],
    )


METHOD = Method(darts, partial(in_darts_space, alpha_rate=0.3), {"batch_size": 64})
