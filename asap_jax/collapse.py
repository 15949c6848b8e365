"""Signs that a search collapses: what is watched after each epoch, and when to warn.

A collapsed search ends with a cell of skip connections that does badly once trained. No sign is a
proof: five of the eight normal operations of ASAP's published cell are skips.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from asap_jax import derive
from asap_jax.genotypes import Genotype

SKIP_SHARE = 0.75  # of a normal cell's operations
GAP = 0.3  # of accuracy, supernet minus derived
WINDOW, BACK, GROWTH = 5, 4, 1.3  # RobustDARTS' (Zela et al., 2020): see `eigenvalue_grows`


def dominant_eigenvalue(
    loss: Callable, alphas, key, *, iterations: int = 30, tolerance: float = 1e-3
):
    """The eigenvalue of largest magnitude of the Hessian of `loss` at `alphas`, with its sign.

    Power iteration on Hessian-vector products, taken reverse over reverse (the supernet's own
    gradient rules forbid forward mode).

    Args:
      loss: tree of alphas -> scalar.
      alphas: any tree of arrays.
      key: of the first vector.
      iterations: at most.
      tolerance: relative change of the Rayleigh quotient at which to stop.

    Returns:
      (eigenvalue, iterations done), scalars.
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


def eigenvalue_grows(history: Sequence[float]) -> bool:
    """RobustDARTS' sign: the mean over 5 epochs exceeds that of 4 epochs ago by a factor of 1.3."""
    if len(history) < WINDOW + BACK:
        return False
    now = np.mean(history[-WINDOW:])
    before = np.mean(history[-WINDOW - BACK : -BACK])
    return bool(now > GROWTH * before > 0)


def warnings(genotype: Genotype, record: Mapping, history: Mapping, final: bool) -> dict[str, str]:
    """{sign: what to say} of the signs that show now.

    Args:
      genotype: what would be derived now.
      record: of the epoch: `gap` (of accuracy) if it was measured.
      history: {"eigenvalue": its values so far}, one an epoch, if they were asked for.
      final: the search ends here; before, most methods' mixtures are far from their cells.
    """
    said = {}
    count = sum(len(node) for node in genotype.normal)
    skips = derive.skips(genotype)["normal"]
    if count and skips >= SKIP_SHARE * count:
        said["skips"] = (
            f"{skips} of the {count} operations of the normal cell are skip connections, as in a "
            "search that collapsed: compare the trained cell with one of the strategy `random`"
        )
    if final and record.get("gap", 0) > GAP:
        said["gap"] = (
            f"the derived cells alone, with the supernet's weights, fall "
            f"{100 * record['gap']:.0f} points short of the supernet: what was left out of them, "
            "other candidates or whole edges, carried much of its accuracy, which says little "
            "about theirs"
        )
    if eigenvalue_grows(history.get("eigenvalue", ())):
        said["eigenvalue"] = (
            f"the dominant eigenvalue of the alphas' Hessian grew by more than {GROWTH} within "
            f"{BACK} epochs (RobustDARTS would stop here): the solution sharpens, and may not "
            "survive derivation"
        )
    return said
