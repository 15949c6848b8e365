"""ASAP: Architecture Search, Anneal and Prune, in JAX and Flax."""

from asap_jax.export import from_torch, to_torch
from asap_jax.genotypes import GENOTYPES, Genotype
from asap_jax.networks import EvalNetwork, Supernet, count_parameters, multiply_adds
from asap_jax.ops import OPERATIONS, Context, Layer
from asap_jax.relaxation import Mixture
from asap_jax.spaces import SPACES, SearchSpace
from asap_jax.strategies import STRATEGIES, Strategy

__all__ = [
    "GENOTYPES",
    "OPERATIONS",
    "SPACES",
    "STRATEGIES",
    "Context",
    "EvalNetwork",
    "Genotype",
    "Layer",
    "Mixture",
    "SearchSpace",
    "Strategy",
    "Supernet",
    "count_parameters",
    "from_torch",
    "multiply_adds",
    "to_torch",
]
