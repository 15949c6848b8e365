"""Search methods, one small file each. A factory takes plain scalars and returns a `Strategy`."""

from asap_jax.strategies.asap import asap
from asap_jax.strategies.base import Architecture, Strategy
from asap_jax.strategies.darts import darts
from asap_jax.strategies.random import random

STRATEGIES = {"asap": asap, "darts": darts, "random": random}

__all__ = ["STRATEGIES", "Architecture", "Strategy", "asap", "darts", "random"]
