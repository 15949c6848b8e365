"""This library's side of the comparison: all quantities of `parity`, in the given dtype."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asap_jax import Context, Mixture, Supernet, from_torch, to_torch
from asap_jax.methods.relaxation import masked_softmax


def run(case, state_dict, images, labels, alphas, dtype, reference=False):
    """Computes the quantities to compare, keyed as in PyTorch.

    Returns:
      {"eval_logits", "train_logits", "aux_logits", "stats", "gradients", "alpha_gradients"}.
    """
    cast = {k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in state_dict.items()}
    variables = from_torch(cast, case.network)
    x, y = jnp.asarray(images, dtype), jnp.asarray(labels)
    alphas = jax.tree.map(lambda a: jnp.asarray(a, dtype), alphas)
    supernet = isinstance(case.network, Supernet)

    def logits(params, batch_stats, alphas, train):
        context = Context(train=train, reference=reference)
        arguments = [context]
        if supernet:
            full = {cell: jnp.ones(a.shape, bool) for cell, a in alphas.items()}
            mixtures = {
                cell: Mixture(masked_softmax(a, full[cell]), full[cell])
                for cell, a in alphas.items()
            }
            arguments = [mixtures, context]
        out, new = case.network.apply(
            {"params": params, "batch_stats": batch_stats}, x, *arguments, mutable=["batch_stats"]
        )
        return (out, None) if supernet else out, new["batch_stats"]

    def loss(params, alphas):
        (main, aux), new = logits(params, variables["batch_stats"], alphas, True)
        value = optax.softmax_cross_entropy_with_integer_labels(main, y).mean()
        if aux is not None:
            value += 0.4 * optax.softmax_cross_entropy_with_integer_labels(aux, y).mean()
        return value, (main, aux, new)

    # Where a ReLU zeroes a pixel, the norm after it gives equal values side by side, and max-pool
    # meets ties. Unoptimized code rounds neighbors differently and so breaks the ties: full
    # optimization here, as for a user, whatever conftest sets.
    options = {"xla_backend_optimization_level": 3}
    if jax.__version__.startswith("0.10."):
        options["xla_cpu_use_fusion_emitters"] = True

    @partial(jax.jit, compiler_options=options)
    def everything(variables, alphas):
        (_, (main, aux, new)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            variables["params"], alphas
        )
        (plain, _), _ = logits(variables["params"], variables["batch_stats"], alphas, False)
        return plain, main, aux, new, gradients

    plain, main, aux, new, (g_params, g_alphas) = everything(variables, alphas)
    flat = to_torch({"params": g_params, "batch_stats": new}, case.network)
    keep = {key: value for key, value in flat.items() if "num_batches" not in key}
    return {
        "eval_logits": np.asarray(plain),
        "train_logits": np.asarray(main),
        "aux_logits": None if aux is None else np.asarray(aux),
        "stats": {k: v for k, v in keep.items() if "running_" in k},
        "gradients": {k: v for k, v in keep.items() if "running_" not in k},
        "alpha_gradients": {k: np.asarray(v) for k, v in g_alphas.items()} if supernet else {},
    }
