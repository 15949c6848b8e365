"""Gradients of the alphas, by the way each method relates them to the network's weights omega.

Every function here has the signature

    (loss, params, alphas, batch_stats, train_batch, val_batch)
        -> ((value, (new batch_stats, logits)), gradients of the alphas)

with loss(params, alphas, batch_stats, batch) -> (value, (new batch_stats, logits)).
"""

import jax


def first_order(loss, params, alphas, batch_stats, train_batch, val_batch):
    """Gradient of the validation loss with omega held fixed (ASAP's line 6; DARTS with xi = 0)."""
    del train_batch
    return jax.value_and_grad(loss, 1, has_aux=True)(params, alphas, batch_stats, val_batch)
