"""A search, then a training of what was found.

    python -m asap_jax.main --config=configs/search.py                the paper's CIFAR-10 search
    python -m asap_jax.main --config=configs/search.py:digits         8 x 8 digits, minutes on a CPU
    python -m asap_jax.main --config=configs/search.py:cifar10_small  a subset of CIFAR-10, likewise
    python -m asap_jax.main --config=configs/search.py:digits,darts   another strategy

Any value can be changed on the command line: --config.search.epochs=20. The presets themselves, and
every key with its meaning, stand in asap_jax/configs/presets.py.
"""

from asap_jax.configs.presets import get_config

__all__ = ["get_config"]
