"""ASAP: Architecture Search, Anneal and Prune, in JAX and Flax."""

from asap_jax.host import starting  # noqa: F401  first, for its effect: what follows takes seconds

# isort: split
from asap_jax.api import compare, look, run, search, train
from asap_jax.data import Dataset
from asap_jax.host.errors import UserError
from asap_jax.layers.ops import OPERATIONS, Context, Layer, register
from asap_jax.methods import STRATEGIES, Strategy
from asap_jax.networks.genotypes import GENOTYPES, Genotype
from asap_jax.networks.mixture import Mixture
from asap_jax.networks.models import EvalNetwork, Supernet, count_parameters, multiply_adds
from asap_jax.networks.pytorch import from_torch, to_torch
from asap_jax.networks.spaces import SPACES, SearchSpace
from asap_jax.runs.inspection import describe, evaluate
from asap_jax.runs.trained import TrainedNetwork, load


def _version() -> str:
    """The installed distribution's version; "unknown" for a checkout that is only on the path."""
    from importlib import metadata

    try:
        return metadata.version("asap_jax")
    except metadata.PackageNotFoundError:
        return "unknown"


__version__ = _version()

__all__ = [
    "GENOTYPES",
    "OPERATIONS",
    "SPACES",
    "STRATEGIES",
    "Context",
    "Dataset",
    "EvalNetwork",
    "Genotype",
    "Layer",
    "Mixture",
    "SearchSpace",
    "Strategy",
    "Supernet",
    "TrainedNetwork",
    "UserError",
    "__version__",
    "compare",
    "count_parameters",
    "describe",
    "evaluate",
    "from_torch",
    "load",
    "look",
    "multiply_adds",
    "register",
    "run",
    "search",
    "to_torch",
    "train",
]
