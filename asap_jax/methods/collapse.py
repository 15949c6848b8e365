"""Signs of a collapsing search: what to measure after each epoch, and when to warn.

A collapsed search ends with a cell of skip connections that performs badly once trained. No sign is
conclusive: five of the eight normal operations in ASAP's published cell are skips.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from asap_jax.methods import derive
from asap_jax.networks.genotypes import Genotype

SKIP_SHARE = 0.75  # of a normal cell's operations
GAP = 0.3  # of accuracy, supernet minus derived
WINDOW, BACK, GROWTH = 5, 4, 1.3  # RobustDARTS' values, see `points_back_to`


def dominant_eigenvalue(
    loss: Callable, alphas, key, *, iterations: int = 30, tolerance: float = 1e-3
):
    """The eigenvalue of largest magnitude of the Hessian of `loss` at `alphas`, with its sign.

    Uses power iteration with reverse-over-reverse Hessian-vector products (the supernet's custom
    gradients do not support forward mode).

    Args:
      loss: tree of alphas -> scalar.
      alphas: any tree of arrays.
      key: PRNG key for the initial vector.
      iterations: maximum number of iterations.
      tolerance: relative change of the Rayleigh quotient at which to stop.

    Returns:
      (eigenvalue, number of iterations), scalars.
    """
    flat, unravel = ravel_pytree(alphas)

    def product(v):
        return jax.grad(lambda a: jnp.vdot(jax.grad(lambda a: loss(unravel(a)))(a), v))(flat)

    def more(carry):
        i, _, value, before = carry
        return (i < iterations) & (jnp.abs(value - before) > tolerance * jnp.abs(value))

    def iterate(carry):
        i, v, value, _ = carry
        image = product(v)
        length = jnp.linalg.norm(image)
        return i + 1, jnp.where(length > 0, image / length, v), jnp.vdot(v, image), value

    v = jax.random.normal(key, flat.shape, flat.dtype)
    nothing, far = jnp.asarray([0, jnp.inf], flat.dtype)
    start = (jnp.int32(0), v / jnp.linalg.norm(v), nothing, far)
    i, _, value, _ = lax.while_loop(more, iterate, start)
    return value, i


def points_back_to(values: Sequence[float], epochs: Sequence[int], start: int = 10) -> int | None:
    """RobustDARTS' stopping criterion: the epoch whose cells it returns, None if it is not met.

    The criterion is met if the mean of 5 measurements exceeds the mean 4 measurements earlier by a
    factor of 1.3. It points back to the middle of the earlier window, and counts only if that lies
    at least `start` epochs after the first measurement. (Zela et al., 2020, arXiv:1909.09656, and
    their code.)

    Args:
      values: the eigenvalues measured so far.
      epochs: epoch of each measurement; the authors measure every second epoch from the first one
        in which the alphas learn, so the earliest decision is in epoch 22 of 50.
      start: the authors use 10.
    """
    if len(values) < WINDOW + BACK:
        return None
    middle = epochs[-BACK - WINDOW // 2 - 1]
    if middle - epochs[0] < start:
        return None
    now, before = np.mean(values[-WINDOW:]), np.mean(values[-WINDOW - BACK : -BACK])
    return middle if now > GROWTH * before > 0 else None


def warnings(genotype: Genotype, record: Mapping, back: int | None, final: bool) -> dict[str, str]:
    """{sign: message} for the signs that currently show.

    Args:
      genotype: the genotype that would currently be derived.
      record: of the epoch; contains `gap` (in accuracy) if it was measured.
      back: the current result of `points_back_to`.
      final: the search ends here; before that, most methods' mixtures are far from their cells.
    """
    texts = {}
    count = sum(len(node) for node in genotype.normal)
    skips = derive.skips(genotype)["normal"]
    if count and skips >= SKIP_SHARE * count:
        texts["skips"] = (
            f"{skips} of the {count} operations of the normal cell are skip connections, as in a "
            "search that collapsed: compare the trained cell with one of the strategy `random`"
        )
    if final and record.get("gap", 0) > GAP:
        texts["gap"] = (
            f"the derived cells alone, with the supernet's weights, fall "
            f"{100 * record['gap']:.0f} points short of the supernet: what was left out of them, "
            "other candidates or whole edges, carried much of its accuracy, which says little "
            "about theirs"
        )
    if back is not None:
        texts["eigenvalue"] = (
            f"the dominant eigenvalue of the alphas' Hessian grew by more than {GROWTH} within "
            f"{BACK} measurements (RobustDARTS would stop here, with the cells of epoch "
            f"{back + 1}): the solution sharpens, and may not survive derivation"
        )
    return texts
