"""Evolution: ages, tournaments and mutations."""

import jax
import numpy as np
import pytest
from small_space import CELLS, KEY, SPACE

from asap_jax import STRATEGIES
from asap_jax.methods import derive, evolution, random
from asap_jax.networks.spaces import DARTS, NASBENCH201


def test_evolution_removes_the_oldest_even_if_it_is_the_best():
    """Large tournaments find the best living one: 10 wins once, then it has died of age."""
    parents = []

    def mutation(parent):
        parents.append(parent)
        return -len(parents)

    history = evolution.evolve(
        [10, 0, 1], lambda x: x, mutation, np.random.default_rng(0), sample=60, cycles=8
    )
    assert history == [(x, x) for x in (10, 0, 1, -1, -2, -3, -4, -5)]
    assert parents == [10, 1, 1, -1, -2]  # of (10 0 1), (0 1 -1), (1 -1 -2), (-1 -2 -3), ...


def test_evolution_draws_its_tournaments_uniformly_with_replacement():
    """The best of 2 out of 4, ranks 0 to 3: rank r wins with ((r + 1)^2 - r^2) / 16."""
    wins = np.zeros(4)
    rng = np.random.default_rng(0)

    def mutation(parent):
        wins[parent] += 1
        return parent

    for _ in range(4000):
        evolution.evolve([2, 0, 3, 1], lambda x: x, mutation, rng, sample=2, cycles=5)
    np.testing.assert_allclose(wins / 4000, [1 / 16, 3 / 16, 5 / 16, 7 / 16], atol=0.03)


def differing(masks, other):
    """[(cell type, edges that differ)] of the cell types that differ."""
    edges = {c: np.flatnonzero((masks[c] != other[c]).any(-1)).tolist() for c in masks}
    return [(c, found) for c, found in edges.items() if found]


@pytest.mark.parametrize("inputs", [2, None])
@pytest.mark.parametrize("space", [SPACE, DARTS, NASBENCH201])
def test_a_mutation_changes_one_operation_or_one_source(space, inputs):
    rng = np.random.default_rng(0)
    kinds, masks = set(), random.draw(space, inputs, KEY, 1)[0]
    for _ in range(200):
        child = evolution.mutate(rng, masks, space)
        [(cell, edges)] = differing(masks, child)
        for target in space.intermediate:
            rows = space.incoming(target)
            assert child[cell][rows].sum() == masks[cell][rows].sum()
        assert (child[cell].sum(-1) <= 1).all()
        assert not any(each[:, ~random.drawable(space)].any() for each in child.values())
        if len(edges) == 2:  # a source
            assert space.edges[edges[0]][1] == space.edges[edges[1]][1]
            before, after = (each[cell][edges].any(0) for each in (masks, child))
            np.testing.assert_array_equal(before, after)
        kinds.add((cell, len(edges)))
        masks = child
    lengths = {1} if inputs is None else {1, 2}
    assert kinds == {(cell, length) for cell in space.cell_types for length in lengths}


def test_evolution_finds_the_best_cell_of_a_known_fitness():
    """The number of inputs that a cell has in common with a target, 8 at most."""
    strategy = STRATEGIES["evolution"](SPACE, 9, 3, population=20, sample=5, cycles=400, images=7)
    target = random.draw(SPACE, 2, jax.random.key(9), 1)[0]
    asked = []

    def evaluate(mixtures, images=None):
        agreed = sum(float((mixtures[c].active & target[c]).sum()) for c in CELLS)
        asked.append((images, agreed))
        return agreed

    arch = strategy.init(KEY)
    found = strategy.derive(arch, 2, KEY, evaluate)
    assert found == derive.all_living(target, SPACE)
    few = [agreed for images, agreed in asked if images == 7]
    assert max(few[:10]) < max(few) == 8
    assert [images for images, _ in asked[-10:]] == [None] * 10
    assert len(few) == len(asked) - 10 <= 400  # an architecture that is met again is not evaluated
    first, asked[:] = list(asked), []
    assert strategy.derive(arch, 2, KEY, evaluate) == found
    assert asked == first
    asked.clear()
    strategy.derive(arch, 2, jax.random.key(1), evaluate)
    assert asked != first
