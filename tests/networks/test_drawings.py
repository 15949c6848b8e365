"""Drawn cells, and what notebooks show of results."""

from xml.etree import ElementTree

import jax
import numpy as np

from asap_jax import GENOTYPES, EvalNetwork, TrainedNetwork
from asap_jax.data.images import Preparation
from asap_jax.networks import drawings
from asap_jax.runs import runner
from asap_jax.training import train_loop


def test_cells_are_one_svg_element_with_each_operation():
    drawn = ElementTree.fromstring(GENOTYPES["ASAP"]._repr_svg_())
    assert drawn.tag.endswith("}svg")
    text = " ".join(drawn.itertext())
    nodes = [
        pair
        for cell in ("normal", "reduce")
        for node in getattr(GENOTYPES["ASAP"], cell)
        for pair in node
    ]
    for op, _ in nodes:
        assert text.count(op.replace("_", " ")) >= sum(op == other for other, _ in nodes)


def test_a_file_is_drawn_as_the_element(tmp_path):
    drawings.draw_cells(GENOTYPES["ASAP"], [tmp_path / "cells.svg", tmp_path / "cells.png"])
    assert drawings.svg(GENOTYPES["ASAP"]) in (tmp_path / "cells.svg").read_text()
    assert (tmp_path / "cells.png").read_bytes()[:4] == b"\x89PNG"


def test_a_network_shows_its_cells_and_what_it_answers():
    module = EvalNetwork(GENOTYPES["ASAP"], 2, channels=4, cells=3)
    shapes = train_loop.variable_shapes(module, (8, 8, 1))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    network = TrainedNetwork(
        module,
        variables,
        ("<cat>", "dog"),
        Preparation(8, 8, "grey"),
        (0.5,),
        (0.2,),
        {"test_accuracy": 0.875},
    )
    shown = network._repr_html_()
    assert shown.startswith("<svg") and "<td>87.50 %</td>" in shown and "8 x 8 x 1" in shown
    assert "&lt;cat&gt;, dog" in shown and "<cat>" not in shown
    found = runner.Outcome(GENOTYPES["ASAP"], {}, network, {})
    assert found._repr_html_().startswith("<svg")
