"""PARSEC: Probabilistic Neural Architecture Search (Casale et al., 2019, arXiv:1902.05116)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from asap_jax.methods import bilevel
from asap_jax.methods.base import (
    Method,
    Strategy,
    cell_keys,
    derive_strongest,
    distribution_of_alphas,
    in_darts_space,
    zero_alphas,
)
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.spaces import SearchSpace


def parsec(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    samples: int = 4,
    likelihood_power: float = 1.0,
) -> Strategy:
    """Learns a prior over architectures by importance-weighted Monte Carlo empirical Bayes.

    An architecture a has one candidate per edge, drawn independently from pi = softmax(alpha). The
    evidence p(y | omega, pi) is the mean of p(y | a, omega) over pi; its gradient is estimated by
    K samples a_k of pi with weights w_k, proportional to p(y_val | x_val, a_k, omega) and of sum 1:

        omega:  sum_k w_k d log p(y_train | x_train, a_k, omega) / d omega,
        alpha:  sum_k w_k d log pi(a_k) / d alpha.

    So the alphas need no gradient through the network, and samples are computed one at a time, in
    the memory of one. Each update draws its own samples and weighs them on the alpha batch.
    Each edge's most probable candidate is derived.

    A likelihood of a batch of B images is exp(-B times its mean cross-entropy), so the weights come
    close to choosing the best of the samples: at B = 64 a difference of 0.05 is a factor of 25.
    That is the method as stated, and the default; `likelihood_power` tempers it.

    No code is public. Choices: the paper's samples also choose two inputs per node, here every
    sample keeps all edges and the rule of derivation chooses among them; the alphas start at 0 (the
    uniform prior); K is not the paper's. A step trains every sample on one batch and weighs it on
    another, twice. Under the plan "loop" a sample computes its own candidates only, under
    "unrolled" all of them.

    Args:
      space: edges and candidates; `none` may be sampled but is never derived.
      epochs, steps_per_epoch: unused, the method has no schedule.
      samples: K.
      likelihood_power: exponent of the batch's likelihood in the weights. 1 is its product over the
        images, 1 / B their geometric mean.
    """
    del epochs, steps_per_epoch
    if samples < 1:
        raise ValueError(f"samples has to be at least 1, got {samples}")
    if likelihood_power <= 0:
        raise ValueError(f"likelihood_power has to be above 0, got {likelihood_power}")

    def draw(alphas, key):
        """{cell type: [E] int}, the candidates of one architecture."""
        keys = cell_keys(space, key)
        return {cell: jax.random.categorical(keys[cell], alphas[cell]) for cell in keys}

    def log_prior(alphas, drawn):
        """log pi(a), scalar."""
        return sum(
            jnp.take_along_axis(jax.nn.log_softmax(alphas[cell]), chosen[:, None], -1).sum()
            for cell, chosen in drawn.items()
        )

    def mixture(arch, step, key):
        mixtures = {}
        for cell, chosen in draw(arch.alphas, key).items():
            soft = jax.nn.softmax(arch.alphas[cell])
            hard = jax.nn.one_hot(chosen, soft.shape[-1], dtype=soft.dtype)
            # Of these weights only the cost of cells is differentiated by the alphas.
            mixtures[cell] = Mixture(hard + (soft - lax.stop_gradient(soft)), hard > 0)
        return mixtures

    def trained(arch, step, key):
        each = jax.vmap(partial(mixture, arch, step))(jax.random.split(key, samples))
        return {c: Mixture(mix.weights.mean(0), mix.active.any(0)) for c, mix in each.items()}

    def weigh(loss, point):
        """([K] weights, their mean loss, statistics, logits) of the samples on the alpha batch."""

        def one(stats, key):
            value, (stats, logits) = loss(point.params, point.alphas, stats, point.val, key)
            return stats, (value, logits)

        keys = jax.random.split(point.key, samples)
        stats, (losses, logits) = lax.scan(one, point.batch_stats, keys)
        weights = jax.nn.softmax(-likelihood_power * len(point.val.labels) * losses)
        return weights, weights @ losses, stats, jnp.tensordot(weights, logits, 1)

    def of_alphas(loss, point):
        weights, value, stats, logits = weigh(loss, point)
        drawn = jax.vmap(partial(draw, point.alphas))(jax.random.split(point.key, samples))

        def surrogate(alphas):
            return -weights @ jax.vmap(partial(log_prior, alphas))(drawn)

        return (value, (stats, logits)), jax.grad(surrogate)(point.alphas)

    def of_omega(loss, point):
        weights, *_ = weigh(loss, point)

        def of_sample(stats, key):
            (value, (stats, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(
                point.params, point.alphas, stats, point.train, key
            )
            return stats, (value, logits, gradients)

        def add(carry, sample):
            stats, total = carry
            key, weight = sample
            stats, found = of_sample(stats, key)
            return (stats, jax.tree.map(lambda t, new: t + weight * new, total, found)), None

        shapes = jax.eval_shape(of_sample, point.batch_stats, point.key)[1]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        each = jax.random.split(point.key, samples), weights
        (stats, (value, logits, gradients)), _ = lax.scan(add, (point.batch_stats, nothing), each)
        return (value, (stats, logits)), gradients

    return Strategy(
        init=partial(zero_alphas, space),
        mixture=mixture,
        derive=derive_strongest(space),
        updates=bilevel.omega_then_alpha(of_alphas, differentiations=1, omega=of_omega),
        trained=trained,
        distribution=distribution_of_alphas,
    )


METHOD = Method(parsec, partial(in_darts_space, alpha_rate=0.3), {"batch_size": 64})
