"""ASAP on CIFAR-10 from start to end: the paper's search, then its training of what was found.

    python -m asap_jax.main --config=configs/cifar10.py --config.data.dir=DIR --workdir=runs/cifar10

On one H200, computed from measured steps (65 ms falling to 18 ms in the search, 24 ms for 96 images
in the training): a quarter hour of search, then 5 hours of training for 1,500 epochs. The paper:
4.8 hours of search on a GPU of 2018, and 1.99 % error for its own cell. Not run in full with this
package.

A shorter training that still says something: --config.train.epochs=100 (20 minutes). Several
searches, of which the best is trained: --config.searches=4.
"""

from asap_jax.configs import recipes


def get_config():
    config = recipes.get_config("asap_small")
    config.mode = config.genotype = ""  # search first
    config.search.edges = "top2"  # as in the paper's figures; "all" keeps every edge
    config.train.seeds = 1  # the paper does not say how many its error is a mean of
    return config
