"""Optimizers following PyTorch's conventions, and updates that skip frozen entries.

Weight decay is coupled: it is added to the gradient before momentum or Adam's moments, as in
`torch.optim.SGD` and `torch.optim.Adam`.
"""

import jax
import jax.numpy as jnp
import optax

from asap_jax.host.backend import on_cpu


def sgd(learning_rate, momentum=0.9, weight_decay=3e-4, clip=5.0, nesterov=False):
    """Global norm clipping, coupled weight decay, momentum; `learning_rate` is a schedule."""
    return optax.chain(
        clip_by_global_norm(clip),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, but on GPU the norm is that of one concatenated vector.

    A GPU would otherwise launch two kernels for each of a supernet's hundreds of arrays.
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
    """DARTS' look-ahead step: that of `sgd` including its momentum, but without clipping.

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
    """Adam with coupled weight decay, DARTS' optimizer for the alphas.

    Steps are counted per entry: with `update_where`, the count of a frozen entry does not grow.
    With a global count, the moments of a rarely live entry would be bias-corrected as if they had
    accumulated, and its steps would be several times the learning rate.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        _scale_by_adam(b1, b2),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a separate int32 count for each entry."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        counts = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int32), params)
        return optax.ScaleByAdamState(counts, zeros, zeros)

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda g, m: (1 - b1) * g + b1 * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: (1 - b2) * g**2 + b2 * v, updates, state.nu)
        counts = jax.tree.map(lambda count: count + 1, state.count)

        def step(m, v, count):
            m, v = m / (1 - b1**count).astype(m.dtype), v / (1 - b2**count).astype(v.dtype)
            return m / (jnp.sqrt(v) + eps)

        return jax.tree.map(step, mu, nu, counts), optax.ScaleByAdamState(counts, mu, nu)

    return optax.GradientTransformation(init, update)


def update_where(optimizer, live, gradients, state, params):
    """One optimizer step that updates only live entries.

    Dead entries keep their value and their optimizer state (momenta), so weight decay does not
    affect them. PyTorch treats parameters without a gradient in the same way.

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
