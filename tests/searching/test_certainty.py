"""How sure a search is, on histories whose answers are known."""

import itertools

import numpy as np
import pytest

from asap_jax import GENOTYPES, SPACES, Genotype, SearchSpace
from asap_jax.searching import certainty

SPACE = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), nodes=2)
OPEN = {cell: np.ones(SPACE.shape, bool) for cell in SPACE.cell_types}
DECIDED = {cell: np.eye(3, dtype=bool)[np.zeros(5, int)] for cell in SPACE.cell_types}
EVEN = {cell: np.full(SPACE.shape, 1 / 3) for cell in SPACE.cell_types}


def cells(*ops):
    """Two nodes with two inputs each; the reduction cell is the normal one."""
    nodes = ((ops[0], 0), (ops[1], 1)), ((ops[2], 0), (ops[3], 2))
    return Genotype(nodes, (2, 3), nodes, (2, 3))


A = cells("sep_conv_3x3", "sep_conv_3x3", "sep_conv_3x3", "sep_conv_3x3")
B = cells("sep_conv_3x3", "sep_conv_3x3", "sep_conv_3x3", "skip_connect")
C = cells("max_pool_3x3", "max_pool_3x3", "skip_connect", "skip_connect")


def noted(*genotypes, first=0, weights=EVEN, masks=OPEN):
    history = {}
    for epoch, genotype in enumerate(genotypes, first):
        certainty.note(history, epoch, genotype, weights, masks, SPACE)
    return history


def test_agreement_is_the_share_of_operations_in_common():
    assert certainty.agreement(A, A) == 1
    assert certainty.agreement(A, B) == certainty.agreement(B, A) == 3 / 4
    assert certainty.agreement(A, C) == 0
    assert certainty.between([A, B, C]) == pytest.approx((3 / 4 + 0 + 1 / 4) / 3)
    assert certainty.between([A]) is None
    other_source = Genotype((A.normal[0], A.normal[0]), (2, 3), A.reduce, (2, 3))
    assert certainty.agreement(A, other_source) == 7 / 8


def test_the_agreement_of_random_cells_is_the_one_stated():
    """Enumerated: all pairs of cells of a node with three inputs, of which two are kept."""
    space = SearchSpace(("sep_conv_3x3", "max_pool_3x3", "none"), nodes=1, edges=((0, 2), (1, 2)))
    ops = [name for name in space.candidates if name != "none"]
    every = [
        Genotype((((a, 0), (b, 1)),), (2,), (((c, 0), (d, 1)),), (2,))
        for a, b, c, d in itertools.product(ops, repeat=4)
    ]
    mean = np.mean([certainty.agreement(a, b) for a in every for b in every])
    assert certainty.by_chance(every[0], space) == pytest.approx(mean)
    # Two of i + 2 edges kept: 4 / (i + 2) of 8 inputs a cell, and one of 7 operations.
    expected = sum(4 / n for n in (2, 3, 4, 5)) / 8 / 7
    assert certainty.by_chance(GENOTYPES["ASAP"], SPACES["asap"]) == pytest.approx(expected)


def test_a_margin_is_the_lead_over_the_second():
    weights = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2], [3.0, 1.0, 0.0], [0, 0, 0]]
    alive = np.ones((5, 3), bool)
    alive[1] = [True, False, True]
    found = certainty.margins(weights, alive)
    assert found == pytest.approx([0.2, 0.0, 0.0, 0.5, 0.0])
    alive[0] = [True, False, False]  # decided: keeps the lead that it had
    alive[2] = [False, False, True]
    assert certainty.margins(weights, alive, [0.35, 0, 0.1, 0, 0])[:3] == [0.35, 0.0, 0.1]
    assert certainty.margins(weights, alive)[0] is None


def test_a_search_that_settles_early():
    history = noted(C, C, C, A, A, A, A, A, A)
    found = certainty.of_search(history, 9, A, DECIDED, SPACE)
    assert found["settled"] == 4 and found["epochs"] == 9
    assert found["agreement"] == 1
    assert found["decided"] == found["edges"] == 10
    assert found["clear"] == 0 and found["margin"] == 0


def test_a_search_that_changes_to_the_end():
    """The last third is three epochs; the last one is the result and does not count."""
    history = noted(A, A, A, A, A, A, C, B, A)
    found = certainty.of_search(history, 9, A, OPEN, SPACE)
    assert found["settled"] == 9
    assert found["agreement"] == pytest.approx((1 + 0 + 3 / 4) / 3)
    assert found["decided"] == 0


def test_epochs_before_the_alphas_learn_do_not_count():
    history = noted(A, B, first=5)
    found = certainty.of_search(history, 7, B, OPEN, SPACE)
    assert found["settled"] == 7
    assert found["agreement"] is None  # a third of two epochs
    assert certainty.of_search({}, 7, B, OPEN, SPACE) == {}


def test_a_search_that_returned_to_earlier_cells_has_not_settled_on_them():
    history = noted(A, A, A, C, C, C)
    found = certainty.of_search(history, 6, A, OPEN, SPACE)
    assert found["settled"] is None
    assert found["agreement"] == 0
    assert "cells unchanged" not in dict(certainty.rows(found))


def test_clear_edges_are_counted():
    weights = {cell: each.copy() for cell, each in EVEN.items()}
    weights["normal"][:2] = [0.6, 0.3, 0.1]
    found = certainty.of_search(noted(A, weights=weights), 1, A, OPEN, SPACE)
    assert found["clear"] == 2
    assert dict(certainty.rows(found))["edges with a clear lead"] == "2 of 10"


def test_what_is_never_derived_leads_nothing():
    """`none` in DARTS' cells; NAS-Bench-201's derive it."""
    ops = ("none", "max_pool_3x3", "skip_connect")
    darts = SearchSpace(ops, nodes=1, edges=((0, 2), (1, 2)))
    weights = {cell: np.array([[0.6, 0.2, 0.2]] * 2) for cell in darts.cell_types}
    masks = {cell: np.ones((2, 3), bool) for cell in darts.cell_types}
    nodes = ((("skip_connect", 0), ("skip_connect", 1)),)
    history, cells = {}, Genotype(nodes, (2,), nodes, (2,))
    certainty.note(history, 0, cells, weights, masks, darts)
    assert certainty.of_search(history, 1, cells, masks, darts)["margin"] == 0
    bench = SearchSpace(ops, nodes=1, skeleton="nasbench201")
    history, cells = {}, Genotype(((("skip_connect", 0),),), (1,), skeleton="nasbench201")
    weights, masks = ({"normal": each["normal"][:1]} for each in (weights, masks))
    certainty.note(history, 0, cells, weights, masks, bench)
    assert certainty.of_search(history, 1, cells, masks, bench)["margin"] == pytest.approx(0.4)


def test_an_edge_without_candidates_is_decided_and_strengths_have_no_margin():
    empty = {cell: np.zeros(SPACE.shape, bool) for cell in SPACE.cell_types}
    found = certainty.of_search(noted(A, weights=None), 1, A, empty, SPACE)
    assert found["decided"] == 10
    assert found["clear"] is found["margin"] is None
    assert "edges with a clear lead" not in dict(certainty.rows(found))


def test_only_changes_are_kept():
    assert len(noted(A, A, B, B, A)["cells"]) == 3


def test_words_name_chance_and_the_searches():
    found = certainty.of_search(noted(*[A] * 9), 9, A, OPEN, SPACE, 3)
    found |= {"agreement_of_searches": 0.25}
    chance = round(100 * certainty.by_chance(A, SPACE))
    assert dict(certainty.rows(found)) == {
        "edges with one candidate": "0 of 10",
        "edges with a clear lead": "0 of 10",
        "cells unchanged": "since epoch 1 of 9 of the last stage",
        "agreement, last third": f"100 % (by chance {chance} %)",
        "agreement, searches": f"25 % (by chance {chance} %)",
    }
    assert certainty.rows({}) == []
