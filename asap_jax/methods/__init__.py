"""Search methods, one small file each: a function that builds a `Strategy`, and its `Method`."""

from asap_jax.methods import (
    asap,
    asap_pac,
    beta_darts,
    darts,
    darts_plus,
    drnas,
    dso_nas,
    edas,
    enas,
    evolution,
    gdas,
    gradual,
    p_darts,
    parsec,
    pc_darts,
    pr_darts,
    random,
    snas,
)
from asap_jax.methods.base import Architecture, Method, Strategy

METHODS: dict[str, Method] = {
    "asap": asap.METHOD,
    "asap_pac": asap_pac.METHOD,
    "darts": darts.METHOD,
    "darts_plus": darts_plus.METHOD,
    "beta_darts": beta_darts.METHOD,
    "snas": snas.METHOD,
    "gdas": gdas.METHOD,
    "drnas": drnas.METHOD,
    "edas": edas.METHOD,
    "parsec": parsec.METHOD,
    "magnitude": gradual.MAGNITUDE,
    "accum_grad": gradual.ACCUM_GRAD,
    "nap": gradual.NAP,
    "dso_nas": dso_nas.METHOD,
    "pc_darts": pc_darts.METHOD,
    "p_darts": p_darts.METHOD,
    "pr_darts": pr_darts.METHOD,
    "enas": enas.METHOD,
    "random": random.METHOD,
    "evolution": evolution.METHOD,
}
# What `config.search.strategy.name` chooses from. A program may add functions of its own.
STRATEGIES = {name: method.strategy for name, method in METHODS.items()}


def named(name: str) -> Method:
    """The method of that name, or of a strategy that a program added, which has no settings."""
    return METHODS.get(name) or Method(STRATEGIES[name])


__all__ = ["METHODS", "STRATEGIES", "Architecture", "Method", "Strategy", "named"]
