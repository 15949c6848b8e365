"""Search methods, one small file each. A factory takes plain scalars and returns a `Strategy`."""

from asap_jax.methods.asap import asap
from asap_jax.methods.asap_pac import asap_pac
from asap_jax.methods.base import Architecture, Strategy
from asap_jax.methods.darts import darts
from asap_jax.methods.edas import edas
from asap_jax.methods.gdas import gdas
from asap_jax.methods.gradual import accum_grad, magnitude, nap
from asap_jax.methods.p_darts import p_darts
from asap_jax.methods.pc_darts import pc_darts
from asap_jax.methods.random import random
from asap_jax.methods.snas import snas

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
