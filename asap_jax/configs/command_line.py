"""Parses absl flags and ml_collections config flags, with each mistake as one UserError."""

from pathlib import Path

from absl import flags

from asap_jax.configs import comparisons, presets, recipes
from asap_jax.host.errors import UserError, nearest

PACKAGED = {"search": presets, "train": recipes, "compare": comparisons}


def parse(argv) -> list[str]:
    """Parses the flags; returns the remaining arguments, like absl."""
    argv = ordered(argv)
    _check_file(argv)
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        known = nearest(error.flagname, flags.FLAGS)
        raise UserError(f"unknown option --{error.flagname}{known}") from error
    except (AttributeError, KeyError) as error:  # ml_collections suggests the nearest key itself
        text = _one_line(error.args[0]).replace("\\n", " ").replace("\\'", "'").strip("'")
        raise UserError(f"unknown config key '{text}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        while isinstance(cause := error.__cause__ or error.__context__, UserError):
            error = cause  # unwrap errors raised by a preset
        raise UserError(_one_line(error)) from error


def ordered(argv) -> list[str]:
    """Orders the arguments as ml_collections requires: --config=FILE first, then its values."""
    program, *rest = [packaged(argument) for argument in _joined(argv)]
    return [program, *sorted(rest, key=lambda each: _name(each) != "config")]


def _name(argument: str) -> str:
    """--config=FILE -> config."""
    return argument.partition("=")[0].lstrip("-") if argument.startswith("-") else ""


def _check_file(argv) -> None:
    for argument in argv:
        name, _, value = argument.partition("=")
        file = value.partition(":")[0]
        if name.lstrip("-") == "config" and not Path(file).is_file():
            raise UserError(
                f"there is no config file {file}: name a file with get_config(preset), or "
                "search:PRESET, train:RECIPE or compare:SIZE for those in the package"
            )


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


def packaged(argument: str) -> str:
    """--config=search:NAME -> the package's presets, train:NAME -> its recipes."""
    name, equals, value = argument.partition("=")
    file, _, preset = value.partition(":")
    if name.lstrip("-") == "config" and file in PACKAGED:
        return f"{name}{equals}{PACKAGED[file].__file__}:{preset}"
    return argument
