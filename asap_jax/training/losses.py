"""Loss functions."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits, labels, class_weights=None, smoothing=0.0):
    """Mean cross-entropy of a batch, scalar.

    With class weights this is the weighted mean, as in torch.nn.CrossEntropyLoss(weight=...).

    Args:
      logits: [N, K].
      labels: [N] int32.
      class_weights: [K], or None for equal weights.
      smoothing: share of the target spread evenly over the classes.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))
    if class_weights is None:
        return losses.mean()
    weights = jnp.asarray(class_weights, logits.dtype)[labels]
    return jnp.mean(weights * losses) / weights.mean()


def accuracy(logits, labels) -> jax.Array:
    """Share of a batch that is classified correctly, scalar; logits [N, K], labels [N]."""
    return jnp.mean(logits.argmax(-1) == labels)


def all_finite(tree) -> jax.Array:
    """Scalar bool: whether every float in a tree of arrays is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in floats], bool).all()
