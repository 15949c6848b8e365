"""The command: flags and a config in, a run out.

    python -m asap_jax.main --config=configs/search.py:digits --workdir=runs/digits

`--config` takes a file with `get_config(name)` and the preset's name after a colon. Outside a
checkout `--config=search:digits` names the same presets, which the package carries.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from asap_jax import compile_cache, presets
from asap_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE:PRESET, or search:PRESET.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the run's files (runs/PRESET if unset)."
)


def _main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: options are written --name=value")
    from asap_jax import job  # late: a misspelt flag should not wait for matplotlib and tfds

    logging.set_verbosity(logging.WARNING)  # orbax tells of each file it writes
    compile_cache.enable()
    job.run(_CONFIG.value, _WORKDIR.value or _default_workdir())


def _default_workdir() -> Path:
    preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    return Path("runs") / (preset.replace(",", "-") or "paper")


def _parse(argv) -> list[str]:
    """absl's flags, each mistake as one UserError."""
    argv = [_packaged(argument) for argument in _joined(argv)]
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        known = presets.nearest(error.flagname, flags.FLAGS)
        raise UserError(f"unknown option --{error.flagname}{known}") from error
    except (AttributeError, KeyError) as error:  # ml_collections names the nearest key itself
        text = _one_line(error.args[0]).replace("\\n", " ").replace("\\'", "'").strip("'")
        raise UserError(f"unknown config key '{text}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        while isinstance(error.__cause__ or error.__context__, UserError):
            error = (
                error.__cause__ or error.__context__
            )  # ml_collections wraps what a preset raises
        raise UserError(_one_line(error)) from error
    if _CONFIG.value is None:
        raise UserError(
            "--config is missing: for a first run, --config=configs/search.py:digits (or "
            "--config=search:digits outside a checkout)"
        )
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not Path(file).is_file():
        raise UserError(
            f"there is no config file {file}: name a file with get_config(preset), or "
            "search:PRESET for the presets in the package"
        )
    return rest


def _one_line(text) -> str:
    return " ".join(str(text).split())


def _joined(argv) -> list[str]:
    """'--config', 'X' -> '--config=X'."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--config", "-config"):
            argument = f"{joined.pop()}={argument}"
        joined.append(argument)
    return joined


def _packaged(argument: str) -> str:
    """--config=search:NAME -> the presets inside the package."""
    name, equals, value = argument.partition("=")
    file, _, preset = value.partition(":")
    if name.lstrip("-") == "config" and file == "search":
        return f"{name}{equals}{presets.__file__}:{preset}"
    return argument


def run() -> None:
    """Runs the command; what the user can mend is said in one paragraph, with exit code 2."""
    try:
        app.run(_main, flags_parser=_parse)
    except UserError as error:
        print(f"asap_jax: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
