"""Optimizers by PyTorch's conventions, and updates that leave frozen entries alone.

Weight decay is coupled: it is added to the gradient before momentum or Adam's moments see it, as
`torch.optim.SGD` and `torch.optim.Adam` do.
"""

import jax
import jax.numpy as jnp
import optax

from asap_jax.backend import on_cpu


def sgd(learning_rate, momentum=0.9, weight_decay=3e-4, clip=5.0, nesterov=False):
    """Clip by the global norm, coupled weight decay, momentum; learning_rate is a schedule."""
    return optax.chain(
        clip_by_global_norm(clip),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`; but on a CPU the norm is that of one long vector.

    A GPU would start two kernels for each of the hundreds of arrays that a supernet has.
    """
    if on_cpu():
        return optax.clip_by_global_norm(most)

    def update(updates, state, params=None):
        leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(updates)]
        norm = jnp.linalg.norm(jnp.concatenate(leaves))
        scale = jnp.where(norm < most, 1, most / norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.identity().init, update)


def virtual_sgd(learning_rate, momentum=0.9, weight_decay=3e-4):
    """The step that DARTS looks ahead by: `sgd`'s, its momentum included, but without the clip.

    Returns (params, gradients, state of `sgd`, step) -> params, differentiable in the gradients.
    """

    def step(params, gradients, state, count):
        trace = optax.tree_utils.tree_get(state, "trace")
        rate = learning_rate(count)
        return jax.tree.map(
            lambda w, g, m: w - rate * (momentum * m + g + weight_decay * w),
            params,
            gradients,
            trace,
        )

    return step


def adam(learning_rate=1e-3, b1=0.5, b2=0.999, weight_decay=1e-3):
    """Adam with coupled weight decay: DARTS' optimizer of the alphas."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1=b1, b2=b2)
    )


def update_where(optimizer, live, gradients, state, params):
    """One optimizer step that touches live entries only.

    Dead entries keep their value, and whatever the optimizer keeps for them (momenta) stays as it
    was, so that weight decay does not wear down what takes no part. PyTorch treats a parameter
    without a gradient so.

    Args:
      optimizer: an optax transformation.
      live: tree like `params` of bool arrays that broadcast against it.
      gradients, state, params: as in `optimizer.update`.

    Returns:
      (new params, new state).
    """
    structure = jax.tree.structure(params)

    def like_params(tree):
        return jax.tree.structure(tree) == structure

    def choose(new, old):
        return jax.tree.map(jnp.where, live, new, old) if like_params(new) else new

    updates, new_state = optimizer.update(gradients, state, params)
    new_params = choose(optax.apply_updates(params, updates), params)
    return new_params, jax.tree.map(choose, new_state, state, is_leaf=like_params)
