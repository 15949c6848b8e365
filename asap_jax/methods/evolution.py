"""Regularized evolution (Real et al., 2019, arXiv:1802.01548), on shared weights."""

import collections
from collections.abc import Callable

import jax
import numpy as np

from asap_jax.methods import derive
from asap_jax.methods.base import PAPER_CELLS, Method, Strategy
from asap_jax.methods.random import draw, drawable, uniform_training
from asap_jax.networks.mixture import one_hot_mixture
from asap_jax.networks.spaces import SearchSpace


def evolution(
    space: SearchSpace,
    epochs: int,
    steps_per_epoch: int,
    *,
    inputs_per_node: int | None = 2,
    population: int = 100,
    sample: int = 25,
    cycles: int = 3000,
    images: int = 640,
    best: int = 10,
) -> Strategy:
    """AmoebaNet's evolution over cells, ranked by shared weights trained as those of `random`.

    Algorithm 1 of the paper runs after the training of the shared weights: a population of uniform
    architectures; then each cycle draws `sample` of them with replacement, appends a mutation of
    the best of these, and removes the oldest, however good it is. The most accurate architectures
    of all that were ever evaluated are ranked again on the whole alpha half.

    A mutation changes one input of one node of one cell type, all drawn uniformly: either its
    operation or its source, for another one. (A node that keeps all its edges has no other source;
    then its operation changes.)

    Differences from the paper: there each architecture is trained anew, a mutation leaves it as it
    is with a probability of 0.05, a node may read one source twice, and a cell concatenates only
    the nodes that none of its others reads.

    Args:
      space: edges and candidates; `none` is drawn only if it can be derived.
      epochs, steps_per_epoch: unused, the method has no schedule.
      inputs_per_node: edges that a trained architecture keeps at each node, None for all.
      population: P, the paper's 100.
      sample: S, the paper's 25.
      cycles: C, architectures evaluated in all, with the first population; the paper's 20,000.
      images: of the alpha half, for the accuracies that evolution compares.
      best: of all evaluated, ranked on the whole half.
    """
    del epochs, steps_per_epoch
    for name, value in (
        ("population", population),
        ("sample", sample),
        ("images", images),
        ("best", best),
    ):
        if value < 1:
            raise ValueError(f"{name} has to be at least 1, got {value}")
    if cycles < population:
        raise ValueError(
            f"cycles counts the first population of {population} as well: it is {cycles}, and has "
            "to be at least as much"
        )

    def derive_best(arch, inputs, key, evaluate):
        key_first, key_rest = jax.random.split(key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key_rest)))
        known = {}  # a genotype's accuracy is always the same

        def accuracy(masks):
            found = derive.all_living(masks, space)
            if found not in known:
                known[found] = evaluate(one_hot_mixture(found, space), images)
            return known[found]

        evolve(
            draw(space, inputs, key_first, population),
            accuracy,
            lambda parent: mutate(rng, parent, space),
            rng,
            sample=sample,
            cycles=cycles,
        )
        finalists = sorted(known, key=lambda found: -known[found])[:best]
        return max(finalists, key=lambda found: evaluate(one_hot_mixture(found, space)))

    return uniform_training(space, inputs_per_node, derive_best)


def evolve(
    first: list, fitness: Callable, mutation: Callable, rng, *, sample: int, cycles: int
) -> list[tuple]:
    """Algorithm 1: returns all individuals that were evaluated, (individual, fitness), in order.

    Args:
      first: the first population.
      fitness: individual -> number, higher is better.
      mutation: individual -> another one.
      rng: NumPy's generator, for the tournaments.
      sample: individuals of a tournament, drawn with replacement; ties go to the first drawn.
      cycles: individuals to evaluate in all, with the first population.
    """
    history = [(each, fitness(each)) for each in first]
    living = collections.deque(history, maxlen=len(first))  # the oldest leaves as one is appended
    while len(history) < cycles:
        drawn = rng.integers(len(living), size=sample)
        parent, _ = max((living[i] for i in drawn), key=lambda individual: individual[1])
        child = mutation(parent)
        history.append((child, fitness(child)))
        living.append(history[-1])
    return history


def mutate(rng, masks: dict[str, np.ndarray], space: SearchSpace) -> dict[str, np.ndarray]:
    """Changes the operation or the source of one input, whichever can change.

    Args:
      rng: NumPy's generator.
      masks: {cell type: [E, O] bool}, at most one candidate an edge; not changed.
      space: edges and candidates.
    """
    cell = space.cell_types[rng.integers(len(space.cell_types))]
    node = space.intermediate[rng.integers(len(space.intermediate))]
    mask = masks[cell].copy()
    incoming = np.array(space.incoming(node))
    used = mask[incoming].any(-1)
    edge = rng.choice(incoming[used])
    operation = int(mask[edge].argmax())
    operations = [o for o in np.flatnonzero(drawable(space)) if o != operation]
    sources = incoming[~used]
    mask[edge] = False
    if len(sources) and (rng.integers(2) or not operations):
        mask[rng.choice(sources), operation] = True
    else:
        mask[edge, rng.choice(operations or [operation])] = True
    return masks | {cell: mask}


def _adapt(search) -> None:
    """As many architectures as `random` ranks, and a trained one with the derived one's inputs."""
    options = search.strategy
    options.inputs_per_node = derive.EDGES[search.edges]
    if search.cells != PAPER_CELLS:
        options.population, options.sample, options.cycles = 20, 5, 100


METHOD = Method(evolution, _adapt, {"batch_size": 64, "epochs": 100}, has_alphas=False)
