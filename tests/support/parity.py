"""What is compared between PyTorch's DARTS and this library, from a seed, and how it is summarized.

`compare_with_torch.py` runs both sides and writes `golden/*.json`; `test_golden.py` checks this
library against those numbers without torch. Weights, running statistics, images and labels come
from NumPy's generator by the sorted keys of PyTorch's state dict, so both sides can create them.
"""

import jax.numpy as jnp
import numpy as np

from asap_jax.networks import models, spaces
from asap_jax.networks.genotypes import GENOTYPES
from asap_jax.networks.mixture import Mixture

BATCH = 4
CLASSES = 10

# Seed 2 puts an activation within float32 rounding of a kink, which then flips: there PyTorch's
# float32 gradients are just as far from its own float64 ones, up to 2e-2.
SEEDS = {
    "cifar_PNASNet": 4,
    "imagenet_PNASNet": 4,
    "cifar_MdeNAS": 5,
    "imagenet_NAONet-WS": 5,
}


class Case:
    """One network at a size that runs quickly.

    An EvalNetwork has four cells: of three, the last would carry the auxiliary head, whose in-place
    ReLU in DARTS would reach the main classifier. With another cell after it, it has no effect.
    """

    def __init__(self, kind, genotype=None):
        self.kind, self.genotype = kind, genotype
        self.name = kind if genotype is None else f"{kind}_{genotype}"
        self.channels, self.cells = 4, 3 if kind == "search" else 4
        self.seed = SEEDS.get(self.name, 2)
        self.size = 224 if kind == "imagenet" else 32
        if kind == "search":
            self.network = models.Supernet(spaces.DARTS, CLASSES, self.channels, self.cells)
        else:
            self.network = models.EvalNetwork(
                GENOTYPES[genotype], CLASSES, self.channels, self.cells, kind, auxiliary=True
            )


CASES = [Case("search")]
CASES += [Case(kind, name) for kind in ("cifar", "imagenet") for name in GENOTYPES]


def inputs(case):
    """(images [N, H, W, 3] float64, labels [N], alphas {cell: [14, 8]})."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(BATCH, case.size, case.size, 3))
    labels = rng.integers(0, CLASSES, BATCH)
    return images, labels, {cell: rng.normal(size=(14, 8)) for cell in ("normal", "reduce")}


def weights(shapes, seed):
    """A state dict of float64 arrays for {key: shape}, drawn in order of the keys."""
    rng = np.random.default_rng(seed)
    values = {}
    for key in sorted(shapes):
        shape = tuple(shapes[key])
        if key.endswith("num_batches_tracked"):
            values[key] = np.zeros((), np.int64)
        elif key.endswith("running_var"):
            values[key] = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            values[key] = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        else:
            values[key] = rng.normal(size=shape) * 0.2 + (key.endswith("weight"))
    return values


def digest(tree):
    """{key: [sum, sum of squares, dot with a seeded vector]} of a flat dictionary of arrays."""
    result = {}
    for key in sorted(tree):
        flat = np.asarray(tree[key], np.float64).ravel()
        probe = np.random.default_rng(3).normal(size=flat.size)
        result[key] = [float(flat.sum()), float((flat**2).sum()), float(flat @ probe)]
    return result


def full_mixtures():
    """Every candidate of the DARTS space active, with equal weights."""
    ones = jnp.ones((14, 8))
    return {cell: Mixture(ones / 8, ones > 0) for cell in ("normal", "reduce")}
