"""PR-DARTS: Prune and Replace NAS (Laube and Zell, 2019, arXiv:1906.07528)."""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from asap_jax.methods import bilevel, derive, pruning
from asap_jax.methods.base import (
    PAPER_CELLS,
    Method,
    Strategy,
    in_darts_space,
    normal_alphas,
    softmax_mixture,
)
from asap_jax.methods.relaxation import masked_softmax
from asap_jax.networks.models import cell_types
from asap_jax.networks.spaces import SearchSpace

# An operation, and the larger one that computes the same if its new taps are 0.
MORPHS = {
    "sep_conv_3x3": "sep_conv_5x5",
    "sep_conv_5x5": "sep_conv_7x7",
    "dil_conv_3x3": "dil_conv_5x5",
    "nor_conv_1x1": "nor_conv_3x3",
}


def pr_darts(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    keep: tuple[int, ...] = (6, 6, 6, 6, 6, 4, 3, 2),
    grow: tuple[int, ...] = (3, 3, 3, 3, 3, 0, 0, 0),
    lengths: tuple[int, ...] = (15, 15, 10, 10, 10, 10, 10, 10, 10),
    grace: float = 1 / 3,
    reset_alphas: bool = False,
) -> Strategy:
    """DARTS in cycles: each ends by dropping candidates and growing others out of those that stay.

    A search starts with the candidates that no other one of the space grows into. After a cycle an
    edge keeps its `keep - grow` strongest candidates, and then `grow` new ones, each drawn by the
    strength of the one it grows out of: the same operation with a kernel larger by a ring
    (`MORPHS`), which starts with its parent's kernel inside zeros, its norms and their statistics.
    At that moment it computes what its parent does. What was dropped never comes back, so an edge
    may have fewer to grow.

    The weights of the network pass from cycle to cycle; optimizers and learning rate start anew,
    and in the first epochs of a cycle only omega learns. The alphas pass as well, a parent's weight
    in the softmax shared equally with what grew out of it, so that growing leaves the network's
    function as it was; the authors' code draws them anew (`reset_alphas`). The cell follows DARTS'
    rule.

    Masks grow between cycles, each of which compiles its own step for all candidates of the space
    (on GPUs, as ever, for fewer as they go); within a cycle they stay.

    Differences to the authors' code: they also shrink kernels, change the dilation, and stack or
    unstack separable convolutions; retry what was dropped when nothing else is new; and raise the
    batch size to what the GPU's memory holds.

    Args:
      space: edges and candidates; `none` is part of the mixture but never derived.
      epochs: of all cycles together; the authors use 100.
      steps_per_epoch: omega steps per epoch.
      keep: candidates an edge has after each cycle but the last, those that grew included.
      grow: how many of these grow, after each cycle but the last.
      lengths: relative lengths of the cycles.
      grace: share of a cycle's epochs in which only omega learns; the authors use 5 of 15, 3 of 10.
      reset_alphas: draw the alphas anew in each cycle.

    Raises:
      ValueError: the lists describe different numbers of cycles, or a value is out of range.
    """
    cycles = len(lengths)
    if not len(keep) == len(grow) == cycles - 1:
        raise ValueError(
            f"lengths, keep and grow describe {cycles}, {len(keep) + 1} and {len(grow) + 1} cycles "
            "(keep and grow have one entry less than there are cycles)"
        )
    if any(not 0 <= new < total for new, total in zip(grow, keep, strict=True)):
        raise ValueError(f"grow has to lie in [0, keep) in each cycle: got {grow}, keep {keep}")
    if min(lengths) <= 0 or epochs < cycles:
        raise ValueError(
            f"{cycles} cycles need positive lengths and at least as many epochs: got {lengths} and "
            f"{epochs}"
        )
    if not 0 <= grace < 1:
        raise ValueError(f"grace has to lie in [0, 1), as a share of the epochs; got {grace}")
    ends = _ends(epochs, lengths)

    def cycle(index, given=None, grown=None):
        length = ends[index + 1] - ends[index]
        begin = min(round(grace * length), length - 1)

        def init(key):
            key, key_alphas = jax.random.split(key)
            fresh = normal_alphas(space, key_alphas)
            if given is None:
                mask = jnp.asarray([name not in _grown(space) for name in space.candidates])
                masks = {cell: full & mask for cell, full in fresh.masks.items()}
                nothing = {cell: jnp.zeros_like(full) for cell, full in fresh.masks.items()}
                extra = {"key": jax.random.key_data(key), "dropped": nothing}
                return fresh._replace(masks=masks, extra=extra)
            return given._replace(alphas=fresh.alphas) if reset_alphas else given

        def go_on(arch):
            arch, new = drop_and_grow(
                jax.device_get(arch), space, keep[index], grow[index], cycle=index
            )
            return cycle(index + 1, arch, new)

        def inherit(network, params, batch_stats):
            return morph(network, params, batch_stats, grown)

        return Strategy(
            init=init,
            mixture=lambda arch, step, key: softmax_mixture(arch),
            derive=lambda arch, inputs, key, evaluate: derive.strongest(
                arch.alphas, arch.masks, space, inputs
            ),
            learns=lambda step: step >= begin * steps_per_epoch,
            updates=bilevel.alpha_then_omega(bilevel.first_order),
            epochs=length,
            inherit=None if grown is None else inherit,
            next_stage=go_on if index < cycles - 1 else None,
        )

    return cycle(0)


def drop_and_grow(arch, space: SearchSpace, keep: int, grow: int, cycle: int):
    """What an edge has after a cycle.

    Args:
      arch: the Architecture at the end of the cycle, on the host; `extra` holds the random key and
        what was dropped so far.
      keep, grow: candidates an edge has then, and how many of them grow.
      cycle: number of the cycle, for the draws.

    Returns:
      (Architecture, {cell type: {(edge, child): parent}}), candidates by index.
    """
    key = jax.random.wrap_key_data(jnp.asarray(arch.extra["key"]))
    rng = np.random.default_rng(np.asarray(jax.random.bits(jax.random.fold_in(key, cycle), (4,))))
    alphas, masks, dropped, grown = {}, {}, {}, {}
    for cell, mask in arch.masks.items():
        weights = np.asarray(masked_softmax(arch.alphas[cell], mask))
        stay = np.asarray(pruning.keep_best_of_edge(mask, arch.alphas[cell], keep - grow))
        dropped[cell] = arch.extra["dropped"][cell] | (mask & ~stay)
        masks[cell], alphas[cell], grown[cell] = stay.copy(), arch.alphas[cell].copy(), {}
        for edge in range(len(mask)):
            for parent, child in _draw(rng, space, stay[edge], dropped[cell][edge], weights[edge]):
                if len(grown[cell].keys() & {(edge, o) for o in range(mask.shape[1])}) == grow:
                    break
                masks[cell][edge, child] = True
                grown[cell][edge, child] = parent
                alphas[cell][edge, parent] -= np.log(2)
                alphas[cell][edge, child] = alphas[cell][edge, parent]
    extra = {"key": arch.extra["key"], "dropped": dropped}
    arrays = jax.tree.map(jnp.asarray, (alphas, masks, extra))
    return arch._replace(alphas=arrays[0], masks=arrays[1], extra=arrays[2]), grown


def _draw(rng, space, stay, dropped, weights) -> Iterable[tuple[int, int]]:
    """(parent, child) of what an edge can grow, in the order drawn, by the parents' weights."""
    possible = []
    for parent in np.flatnonzero(stay):
        name = MORPHS.get(space.candidates[parent])
        child = space.candidates.index(name) if name in space.candidates else None
        if child is not None and not stay[child] and not dropped[child]:
            possible.append((int(parent), child))
    if not possible:
        return []
    shares = np.maximum(np.array([weights[parent] for parent, _ in possible], float), 1e-12)
    order = rng.choice(len(possible), len(possible), replace=False, p=shares / shares.sum())
    return [possible[i] for i in order]


def morph(network, params, batch_stats, grown):
    """The weights and statistics with those of each grown candidate made from its parent's.

    Args:
      network: the supernet.
      params, batch_stats: of the cycle before.
      grown: see `drop_and_grow`.
    """
    params, batch_stats = jax.device_get((params, batch_stats))
    space = network.space
    for i, kind in enumerate(cell_types(space.skeleton, network.cells)):
        for stride, edges in space.by_stride(kind == "reduce").items():
            for tree in (params, batch_stats):
                group = tree.get(f"cell{i}", {}).get(f"stride{stride}", {})
                for (edge, child), parent in grown[kind].items():
                    names = space.candidates[parent], space.candidates[child]
                    if edge not in edges or names[1] not in group:
                        continue
                    row = list(edges).index(edge)
                    group[names[1]] = jax.tree.map(
                        lambda small, large, row=row: _with_row(large, row, small[row]),
                        group[names[0]],
                        group[names[1]],
                    )
    return jax.tree.map(jnp.asarray, (params, batch_stats))


def _with_row(array, row: int, small):
    """[E, ...] with one row replaced by a smaller array, in the middle of zeros."""
    pads = [((n - m) // 2,) * 2 for n, m in zip(array.shape[1:], small.shape, strict=True)]
    array = array.copy()
    array[row] = np.pad(small, pads)
    return array


def _grown(space: SearchSpace) -> set[str]:
    """The candidates that another one of the space grows into."""
    return {MORPHS[name] for name in space.candidates if name in MORPHS}


def _ends(epochs: int, lengths: tuple[int, ...]) -> list[int]:
    """[cycles + 1], the epochs at which cycles begin and end; each has at least one."""
    total, ends = sum(lengths), [0]
    for i, done in enumerate(itertools.accumulate(lengths)):
        rest = len(lengths) - 1 - i
        ends.append(min(max(round(epochs * done / total), ends[-1] + 1), epochs - rest))
    return ends


def _adapt(search) -> None:
    """A larger kernel to grow into; fewer cycles for small searches."""
    in_darts_space(search, 0.6)
    if search.space == "darts" and not search.candidates:
        search.candidates = (
            "max_pool_3x3",
            "avg_pool_3x3",
            "skip_connect",
            "sep_conv_3x3",
            "sep_conv_5x5",
            "sep_conv_7x7",
            "dil_conv_3x3",
            "dil_conv_5x5",
        )
    if search.cells != PAPER_CELLS:
        options = search.strategy
        options.keep, options.grow, options.lengths = (4, 2), (2, 0), (2, 1, 1)


METHOD = Method(
    pr_darts,
    _adapt,
    {
        "batch_size": 128,
        "epochs": 100,
        "omega": {"final_learning_rate": 0.01},
        "strategy": {"reset_alphas": True},
    },
)
