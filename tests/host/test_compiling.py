"""Programs compiled ahead of their first call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import asap_jax
from asap_jax.configs import presets
from asap_jax.host.compiling import Compiler, Prepared


def test_a_prepared_function_takes_trees_of_another_structure():
    """As the accuracy does, of a supernet with edge weights and of its cells alone."""
    traced = []

    @jax.jit
    def total(tree):
        traced.append(jax.tree.structure(tree))
        return sum(leaf.sum() for leaf in jax.tree.leaves(tree))

    compiler, prepared = Compiler(1), Prepared(total)
    both, one = {"a": jnp.ones(3), "b": np.ones(2)}, {"a": jnp.ones(3), "b": None}
    prepared.prepare(compiler, both)
    assert float(prepared(both)) == 5
    assert float(prepared(one)) == 3
    assert float(prepared(both)) == 5
    assert traced == [jax.tree.structure(both), jax.tree.structure(one)]
    with pytest.raises(TypeError, match="called with"):  # not compiled anew for other shapes
        prepared({"a": jnp.ones(4), "b": np.ones(2)})
    compiler.close()


def test_the_gap_of_a_method_with_edge_weights():
    """PC-DARTS: the cells alone have no edge weights."""
    config = tiny()
    strategy = presets.get_config("digits,pc_darts").search.strategy
    presets.update(config.search, {"epochs": 2, "cells": 3, "strategy": strategy.to_dict()})
    assert config.search.watch.images
    outcome = asap_jax.search(config, quiet=True)
    assert set(outcome.search["gap"]) == {"top2", "all"}
