"""A training of published cells, or of cells that a search found, by the papers' recipes.

    python -m asap_jax.main --config=configs/train.py:asap_small      ASAP's CIFAR-10 network
    python -m asap_jax.main --config=configs/train.py:cifar100        a column of its table 2
    python -m asap_jax.main --config=configs/train.py:cifar100 --config.genotype=DARTS_V2
    python -m asap_jax.main --config=configs/train.py:asap_small --config.genotype=runs/paper

Any value can be changed on the command line: --config.train.epochs=100 (every schedule follows).
asap_jax/configs/recipes.py has the recipes, with their time and the errors that the papers report.
"""

from asap_jax.configs.recipes import get_config

__all__ = ["get_config"]
