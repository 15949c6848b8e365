"""DARTS+: Improved Differentiable Architecture Search with Early Stopping.

Liang et al., 2019, arXiv:1909.06035.
"""

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.layers.ops import OPERATIONS
from asap_jax.methods import derive
from asap_jax.methods.base import Method, Strategy, in_darts_space
from asap_jax.methods.darts import darts
from asap_jax.networks.spaces import SKELETONS, SearchSpace


def darts_plus(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    skips: int = 2,
    stable_epochs: int = 0,
    inputs_per_node: int | None = 2,
) -> Strategy:
    """First-order DARTS that stops before its cells collapse into skips.

    Criterion 1: the normal cell that would be derived has `skips` skip connections or more.
    Criterion 1*: the ranking of the alphas of the learnable candidates (those with weights) has
    been the same for `stable_epochs` epochs. Both are looked at after each epoch; whichever is met
    first ends the search, with the cells of that moment.

    The authors have no public code. Choices that the criteria leave open: the ranking is that of
    the candidates of every edge, of all cell types; an epoch counts as stable if it ends with the
    ranking with which the epoch before ended.

    Args:
      space: edges and candidates; `none` is part of the mixture but never derived.
      epochs: at most.
      steps_per_epoch: omega steps per epoch.
      skips: of criterion 1, the paper's 2; 0 for none.
      stable_epochs: of criterion 1*, 10 in the paper; 0 for none.
      inputs_per_node: edges that the derived cells keep at each node, None for all.
    """
    del epochs
    if skips < 0 or stable_epochs < 0 or not skips + stable_epochs:
        raise ValueError(
            "skips and stable_epochs have to be 0 or more, and one of them above 0, got "
            f"{skips} and {stable_epochs}; DARTS without a criterion is the strategy darts"
        )
    if skips and "skip_connect" not in space.candidates:
        raise ValueError(
            f"skips is {skips}, but the space has no skip_connect: set it to 0 and use "
            "stable_epochs"
        )
    learnable = np.array([bool(OPERATIONS[o](4, 1, False).weights) for o in space.candidates])
    if stable_epochs and learnable.sum() < 2:
        raise ValueError(
            f"stable_epochs is {stable_epochs}, but fewer than two of the candidates "
            f"{', '.join(space.candidates)} have weights to rank: set it to 0"
        )
    plain = darts(space, 1, steps_per_epoch)

    def ranking(alphas):
        return {c: jnp.argsort(-a[:, learnable], stable=True) for c, a in alphas.items()}

    def init(key):
        arch = plain.init(key)
        extra = {
            "ranking": ranking(arch.alphas),
            "stable": jnp.int32(0),  # epochs
            "over": jnp.bool_(False),
        }
        return arch._replace(extra=extra)

    def look(arch, gradients, step):
        """Not a pruning: it is called after each alpha step."""
        before, now = arch.extra["ranking"], ranking(arch.alphas)
        same = jnp.stack([jnp.all(now[cell] == before[cell]) for cell in now]).all()
        stable = jnp.where(same, arch.extra["stable"] + 1, 0)
        over = jnp.bool_(False)
        if skips:
            over |= derived_skips(arch.alphas["normal"], space, inputs_per_node) >= skips
        if stable_epochs:
            over |= stable >= stable_epochs
        ends = (step + 1) % steps_per_epoch == 0
        after = {"ranking": now, "stable": stable, "over": over}
        extra = jax.tree.map(lambda new, old: jnp.where(ends, new, old), after, arch.extra)
        return arch._replace(extra=extra)

    return plain._replace(
        init=init,
        prune=look,
        finished=lambda arch: arch.extra["over"],
        scheduled_by_epoch=False,
        measured=lambda arch: {"stable_epochs": arch.extra["stable"]},
    )


def derived_skips(alphas, space: SearchSpace, inputs_per_node: int | None):
    """The skips of the cell that `derive.strongest` would take from alphas [E, O], none pruned."""
    weights = jax.nn.softmax(alphas)
    named = jnp.array([name != "none" for name in space.candidates])
    eligible = jnp.where(named, weights, -jnp.inf)
    choice, strength = eligible.argmax(-1), eligible.max(-1)
    if SKELETONS[space.skeleton].derives_none:
        strength = jnp.where(named[weights.argmax(-1)], strength, -jnp.inf)
    count = jnp.int32(0)
    for target in space.intermediate:
        edges = jnp.array(space.incoming(target))
        kept = edges[jnp.argsort(-strength[edges], stable=True)[:inputs_per_node]]
        skip = choice[kept] == space.candidates.index("skip_connect")
        count += jnp.sum(skip & jnp.isfinite(strength[kept]))
    return count


def _adapt(search) -> None:
    in_darts_space(search, 0.3)
    search.strategy.inputs_per_node = derive.EDGES[search.edges]


METHOD = Method(darts_plus, _adapt, {"batch_size": 64})
