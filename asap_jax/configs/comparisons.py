"""Comparisons: configs of many runs, methods times seeds.

`configs/compare.py` is a thin wrapper around `get_config`. `config.run` is the size's preset; what
differs from it there differs in every run, whatever a method's own preset has.
"""

from ml_collections import ConfigDict

from asap_jax.configs import presets, rules
from asap_jax.host import workdir
from asap_jax.host.errors import UserError, nearest
from asap_jax.methods import STRATEGIES, named

OF_ALPHAS = ("cost_weight", "target_params", "target_macs", "max_skips", "early_stop")
BY_EVIDENCE = "asap,darts,gdas,drnas,beta_darts,random"
OF_THE_PAPER = "asap,darts,enas,magnitude,accum_grad,random"

# {size: (preset, methods)}; "" for all methods.
SIZES = {
    "tiny": ("tiny", ""),
    "digits": ("digits", ""),
    "cifar10_small": ("cifar10_small", "asap,darts,random,magnitude,accum_grad"),
    "nb201_small": ("nb201_small", BY_EVIDENCE),
    "cifar10": ("paper", OF_THE_PAPER),
    "nb201": ("nb201", BY_EVIDENCE),
}


def get_config(name: str = "") -> ConfigDict:
    """The config of a comparison; raises UserError for an unknown size."""
    size = name or "digits"
    if size not in SIZES:
        raise UserError(
            f"unknown comparison {size!r}{nearest(size, SIZES)}: sizes are {', '.join(SIZES)}"
        )
    preset, methods = SIZES[size]
    config = ConfigDict()
    config.preset = preset  # a size of configs/search.py
    config.methods = methods or ",".join(STRATEGIES)  # comma-separated
    config.seeds = 3  # of each method
    config.first_seed = 0
    config.fair = True  # one budget for all; False for the authors' settings at the paper's size
    config.baseline = "random"  # what the others are tested against; "" for no test
    config.at_once = 0  # runs in progress; 0 for one per GPU, or a single one on a CPU
    config.run = presets.get_config(preset)
    config.lock()
    return config


def cases(config: ConfigDict) -> dict[str, list[str]]:
    """{method: arguments of the command for its runs}, all checked.

    Raises:
      UserError: a value that the comparison or one of its runs cannot use.
    """
    for key, value in config.items():
        if value is None:
            raise UserError(f"config.{key} is None, but has to be a value")
    methods = [each.strip() for each in config.methods.split(",") if each.strip()]
    known = f"methods are {', '.join(STRATEGIES)}"
    for each in methods:
        if each not in STRATEGIES:
            raise UserError(f"config.methods: unknown {each!r}{nearest(each, STRATEGIES)}; {known}")
    if not methods or len(set(methods)) < len(methods):
        raise UserError(f"config.methods={config.methods!r} names none, or one twice; {known}")
    for key, least in (("seeds", 1), ("first_seed", 0), ("at_once", 0)):
        if config[key] < least:
            raise UserError(f"config.{key} is {config[key]}, but has to be at least {least}")
    if config.baseline and config.baseline not in STRATEGIES:
        raise UserError(
            f"config.baseline: unknown {config.baseline!r}{nearest(config.baseline, STRATEGIES)}; "
            f"{known}"
        )
    usual = presets.get_config(config.preset)
    for key in ("seed", "genotype"):
        if config.run[key] != usual[key]:
            instead = "config.first_seed" if key == "seed" else "benchmarks/transfer.py"
            raise UserError(f"config.run.{key} differs from run to run here: use {instead}")
    if config.run.devices > 1:
        raise UserError(
            f"config.run.devices is {config.run.devices}, but each run of a comparison has one of "
            "its own: leave it out, and choose how many runs go on at once by config.at_once"
        )
    changes = [
        (key, new) for key, _, new in workdir.differences(usual.to_dict(), config.run.to_dict())
    ]
    found = {}
    for method in methods:
        preset = ",".join([config.preset, method, *["fair"] * config.fair])
        whole = presets.get_config(preset)
        for key, value in changes:
            presets.update(whole, _nested(key, value))
        without = [key for key in OF_ALPHAS if whole.search[key] != usual.search[key]]
        if without and not named(method).has_alphas:
            raise UserError(
                f"config.run.search.{without[0]} is {whole.search[without[0]]}, but {method} has "
                "no alphas that it could change: leave the method or the setting out"
            )
        try:
            rules.check(whole)
        except UserError as error:
            raise UserError(f"{method}: {error}") from error
        found[method] = [
            f"--config=search:{preset}",
            *(f"--config.{key}={value}" for key, value in changes),
        ]
    return found


def _nested(key: str, value) -> dict:
    """("a.b", 1) -> {"a": {"b": 1}}."""
    *groups, last = key.split(".")
    nested = {last: value}
    for group in reversed(groups):
        nested = {group: nested}
    return nested
