"""P-DARTS: Progressive Differentiable Architecture Search (Chen et al., 2019, arXiv:1904.12760)."""

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.methods import bilevel, derive, pruning
from asap_jax.methods.base import (
    PAPER_CELLS,
    Method,
    Strategy,
    check_stages,
    in_darts_space,
    normal_alphas,
    softmax_mixture,
)
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.mixture import Dropout
from asap_jax.networks.spaces import SearchSpace


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
    """DARTS in stages, each with a deeper supernet and fewer candidates per edge.

    A stage ends by keeping the `keep` strongest candidates of each edge; the next one starts with
    new weights and alphas. Dropout after the identities keeps them from winning by learning fast:
    in epoch e of a stage's n epochs, g of them grace, its rate is r (n - 1 - e) / n during grace
    and r exp(-0.2 (e - g)) afterwards. The final cell follows DARTS' rule; while the normal cell
    has more than `max_skips` skips, the weakest one is removed and the edges are chosen again.

    The authors' command uses dropout 0.1, 0.4, 0.7; their code clips the norm of the alphas'
    gradient at 5, which is omitted here.

    Args:
      space: edges and candidates; `none` is part of the mixture but never derived.
      epochs: of all stages together, split evenly; the authors use 75.
      steps_per_epoch: omega steps per epoch.
      extra_cells: cells per stage added to the config's; the authors use 5, 11 and 17 in total.
      keep: candidates that each edge keeps after each stage but the last.
      skip_dropout: r of each stage.
      grace: share of a stage's epochs in which only omega learns; the authors use 10 of 25.
      max_skips: maximum number of skips in the derived normal cell.

    Raises:
      ValueError: the lists describe different numbers of stages, or a value is out of range.
    """
    stages = len(extra_cells)
    if len(skip_dropout) != stages or len(keep) != stages - 1:
        raise ValueError(
            f"extra_cells, skip_dropout and keep describe {stages}, {len(skip_dropout)} and "
            f"{len(keep) + 1} stages (keep has one entry less than there are stages)"
        )
    check_stages(space, epochs, keep, grace)
    if not all(0 <= rate < 1 for rate in skip_dropout):
        raise ValueError(f"skip_dropout has to lie in [0, 1), got {skip_dropout}")
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
    """[length], the dropout rate of each epoch of a stage."""
    epoch = np.arange(length)
    resting, learning = (length - 1 - epoch) / length, np.exp(-0.2 * (epoch - begin))
    return jnp.asarray(rate * np.where(epoch < begin, resting, learning), jnp.float32)


def _adapt(search) -> None:
    """Three stages of equal length, as deep as the search is large."""
    in_darts_space(search, 0.6)
    full, benchmark = search.cells == PAPER_CELLS, search.space == "nasbench201"
    options = search.strategy
    options.extra_cells = (0, 6, 12) if full else (0, 3, 6) if benchmark else (0, 1, 2)
    options.keep = (4, 2) if benchmark else (5, 3)
    search.epochs = 3 * -(-search.epochs // 3)
    search.cells = 5 if full else search.cells


METHOD = Method(p_darts, _adapt, {"epochs": 75, "omega": {"final_learning_rate": 0.0}})
