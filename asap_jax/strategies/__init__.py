"""Search methods, one small file each. A factory takes plain scalars and returns a `Strategy`."""

from asap_jax.strategies.asap import asap
from asap_jax.strategies.asap_pac import asap_pac
from asap_jax.strategies.base import Architecture, Strategy
from asap_jax.strategies.darts import darts
from asap_jax.strategies.edas import edas
from asap_jax.strategies.gdas import gdas
from asap_jax.strategies.gradual import accum_grad, magnitude, nap
from asap_jax.strategies.p_darts import p_darts
from asap_jax.strategies.pc_darts import pc_darts
from asap_jax.strategies.random import random
from asap_jax.strategies.snas import snas

STRATEGIES = {
    "asap": asap,
    "asap_pac": asap_pac,
    "darts": darts,
    "snas": snas,
    "gdas": gdas,
    "edas": edas,
    "magnitude": magnitude,
    "accum_grad": accum_grad,
    "nap": nap,
    "pc_darts": pc_darts,
    "p_darts": p_darts,
    "random": random,
}

__all__ = ["STRATEGIES", "Architecture", "Strategy", *STRATEGIES]
