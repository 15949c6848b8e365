"""P-DARTS: Progressive Differentiable Architecture Search (Chen et al., 2019, arXiv:1904.12760)."""

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax import bilevel, derive, pruning
from asap_jax.relaxation import Dropout, masked_softmax
from asap_jax.spaces import SearchSpace
from asap_jax.strategies.base import Strategy, normal_alphas, softmax_mixture


def p_darts(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    extra_cells: tuple[int, ...] = (0, 6, 12),
    keep: tuple[int, ...] = (5, 3),
    skip_dropout: tuple[float, ...] = (0.0, 0.4, 0.7),
    grace: float = 0.4,
    max_skips: int = 2,
) -> Strategy:
    """DARTS in stages: each with a deeper supernet and, on each edge, fewer candidates.

    A stage ends by keeping the `keep` strongest candidates of each edge; the next one begins anew
    with weights and alphas. Dropout after the identities keeps them from winning by learning fast:
    its rate in a stage's epoch e of n, g of them grace, is r (n - 1 - e) / n while alphas rest and
    r exp(-0.2 (e - g)) then. At the end DARTS' rule; while the normal cell has more skips than
    `max_skips`, the weakest of them is taken away and the edges are chosen again.

    The authors' command has dropout 0.1, 0.4, 0.7; their code clips the alphas' gradient at a norm
    of 5, which is left out here.

    Args:
      space: edges and candidates; `none` is mixed in but never derived.
      epochs: of all stages together, spread evenly; the authors' 75.
      steps_per_epoch: omega steps in an epoch.
      extra_cells: cells of each stage's supernet beyond the config's; the authors' 5, 11 and 17.
      keep: candidates an edge holds after each stage but the last.
      skip_dropout: r of each stage.
      grace: share of a stage's epochs in which only omega learns; the authors' 10 of 25.
      max_skips: in the derived normal cell.

    Raises:
      ValueError: the stages' lists do not fit each other, or a value is out of range.
    """
    stages = len(extra_cells)
    if len(skip_dropout) != stages or len(keep) != stages - 1:
        raise ValueError(
            f"extra_cells, skip_dropout and keep describe {stages}, {len(skip_dropout)} and "
            f"{len(keep) + 1} stages (keep has one entry less than there are stages)"
        )
    if any(b > a for a, b in zip((len(space.candidates), *keep), (*keep, 1), strict=True)):
        raise ValueError(
            f"keep has to fall from at most {len(space.candidates)} candidates to at least 1: got "
            f"{keep}"
        )
    if epochs < stages:
        raise ValueError(f"{stages} stages need at least as many epochs, got {epochs}")
    if not all(0 <= rate < 1 for rate in skip_dropout):
        raise ValueError(f"skip_dropout has to lie in [0, 1), got {skip_dropout}")
    if not 0 <= grace < 1:
        raise ValueError(f"grace has to lie in [0, 1), as a share of the epochs; got {grace}")
    if min(extra_cells) < 0 or max_skips < 0:
        raise ValueError("extra_cells and max_skips have to be 0 or more")

    def derive_with_few_skips(arch, inputs, key, evaluate):
        weights, masks = jax.device_get(
            ({c: masked_softmax(a, arch.masks[c]) for c, a in arch.alphas.items()}, arch.masks)
        )
        masks = {cell: mask.copy() for cell, mask in masks.items()}
        while True:
            found = derive.of_weights(weights, masks, space, inputs)
            if derive.skips(found)["normal"] <= max_skips:
                return found
            skip = space.candidates.index("skip_connect")
            chosen = [
                space.edges.index((source, target))
                for target, node in enumerate(found.normal, space.inputs)
                for op, source in node
                if op == "skip_connect"
            ]
            masks["normal"][min(chosen, key=lambda e: weights["normal"][e, skip]), skip] = False

    def stage(index, masks=None):
        length = epochs // stages + (epochs % stages if index == stages - 1 else 0)
        begin = round(grace * length)
        rates = _dropout_rates(skip_dropout[index], length, begin)

        def init(key):
            arch = normal_alphas(space, key)
            return arch if masks is None else arch._replace(masks=masks)

        def mixture(arch, step, key):
            mixtures = softmax_mixture(arch)
            if not skip_dropout[index]:
                return mixtures
            dropout = Dropout(key, rates[jnp.minimum(step // steps_per_epoch, length - 1)])
            return {cell: mix._replace(skip_dropout=dropout) for cell, mix in mixtures.items()}

        def go_on(arch):
            left = {
                cell: pruning.keep_best_of_edge(mask, arch.alphas[cell], keep[index])
                for cell, mask in arch.masks.items()
            }
            return stage(index + 1, left)

        return Strategy(
            init=init,
            mixture=mixture,
            derive=derive_with_few_skips,
            learns=lambda step: step >= begin * steps_per_epoch,
            updates=bilevel.alpha_then_omega(bilevel.first_order),
            epochs=length,
            extra_cells=extra_cells[index],
            next_stage=go_on if index < stages - 1 else None,
        )

    return stage(0)


def _dropout_rates(rate: float, length: int, begin: int):
    """[length], the dropout of each epoch of a stage."""
    epoch = np.arange(length)
    resting, learning = (length - 1 - epoch) / length, np.exp(-0.2 * (epoch - begin))
    return jnp.asarray(rate * np.where(epoch < begin, resting, learning), jnp.float32)
