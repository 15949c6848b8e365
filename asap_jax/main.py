"""The command: runs what its flags and a config describe.

    python -m asap_jax.main --config=configs/search.py:digits --workdir=runs/digits
    python -m asap_jax.main --mode=train --config=configs/search.py:small --config.genotype=ASAP
    python -m asap_jax.main --config=configs/train.py:asap_small
    python -m asap_jax.main --config=configs/search.py:digits --dry_run
    python -m asap_jax.main --mode=evaluate --workdir=runs/digits --split=train
    python -m asap_jax.main --mode=watch --workdir=runs/digits
    python -m asap_jax.main --mode=compare --config=configs/compare.py:tiny

`--config` takes a file with `get_config(name)` and, after a colon, the preset's name. Outside a
checkout, `--config=search:digits`, `--config=train:asap_small` and `--config=compare:tiny` name the
same presets, recipes and comparisons, which the package includes.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from asap_jax.configs import command_line, presets
from asap_jax.host import compile_cache, processes, run_log, starting, workdir
from asap_jax.host.errors import UserError, nearest
from asap_jax.host.interruption import NOBODY_READS, Interrupted, is_ignored_hangup
from asap_jax.networks import genotypes

UNREAD = 128 + NOBODY_READS  # the exit code that a shell reports
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="FILE:PRESET, search:PRESET, train:RECIPE or compare:SIZE.",
    sys_argv=command_line.ordered(sys.argv),  # where the flag looks for overridden values
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (runs/PRESET if unset).")
_MODE = flags.DEFINE_string(
    "mode",
    "",
    "search, train, evaluate, describe, report, export, watch or compare; if unset: config.mode, "
    "or search and train.",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Look at the data, the steps, the memory and the time; start nothing."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes of a run; how they meet: docs/running.md."
)
_SPLIT = flags.DEFINE_string("split", "", "What --mode=evaluate measures on (test if unset).")
_DATA = flags.DEFINE_string("data", "", "Data source for --mode=evaluate, if not the training's.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of prepared tfds sets, with --data.")


def _main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: options are written --name=value")
    from asap_jax.report import page
    from asap_jax.runs import comparing, inspection, look, runner, sweep, trained

    mode = _MODE.value
    if mode and mode not in runner.MODES:
        raise UserError(
            f"--mode={mode}{nearest(mode, runner.MODES)}: modes are {', '.join(runner.MODES)}, "
            "or none for a search and a training"
        )
    for flag in () if mode == "evaluate" else (_SPLIT, _DATA, _DATA_DIR):
        if flag.value:
            raise UserError(
                f"--{flag.name} belongs to --mode=evaluate; a run's data are named by "
                "--config.data.source and --config.data.dir"
            )
    if _DRY_RUN.value and mode not in ("", "search", "train"):
        raise UserError(
            f"--dry_run looks at a search or a training before it starts, and --mode={mode} is "
            "neither: leave one of them out"
        )
    logging.set_verbosity(logging.ERROR)  # orbax logs each file it writes
    if _DISTRIBUTED.value:
        if _DRY_RUN.value or mode not in ("", "search", "train"):
            raise UserError("--distributed shares a search or a training: leave it out")
        processes.join()
    compile_cache.enable()
    if mode == "evaluate":
        if _WORKDIR.value is None or _CONFIG.value is not None:
            raise UserError(
                "--mode=evaluate takes --workdir, the folder of a run that is done, and no "
                "--config; --data names other images"
            )
        inspection.evaluate(_WORKDIR.value, _DATA.value, _SPLIT.value, _DATA_DIR.value)
        return
    if mode in ("report", "export", "watch"):
        if _WORKDIR.value is None or _CONFIG.value is not None:
            raise UserError(f"--mode={mode} takes --workdir, the folder of a run, and no --config")
        if mode == "watch":
            _watch(_WORKDIR.value)
        elif mode == "report":
            print(page.write(_WORKDIR.value))
        else:
            out = Path(_WORKDIR.value) / "export"
            print(*trained.load(_WORKDIR.value).export(out), sep="\n")
        return
    config = _config(mode)
    if (mode == "compare") != ("run" in config):
        needs = "takes a config of configs/compare.py, such as --config=compare:tiny"
        raise UserError(
            f"--mode=compare {needs}"
            if mode == "compare"
            else "this config compares methods: add --mode=compare"
        )
    folder = workdir.locate(_WORKDIR.value or _default_workdir(mode, config))
    if mode == "describe":
        inspection.describe(config, folder)
        return
    if _DRY_RUN.value:
        try:
            look.look(config, folder, mode=mode)
            run_log.say("\nnothing was begun; the same command without --dry_run starts the run")
        except KeyboardInterrupt as stop:
            _complain("interrupted; nothing was begun")
            _leave(_exit_code(stop))
        return
    try:
        if mode == "compare":
            comparing.compare(config, folder)
        else:
            runner.run(config, folder, mode=mode, command=_arguments(folder))
    except sweep.RunFailed as failure:
        _complain(str(failure))
        sys.exit(failure.code)
    except KeyboardInterrupt as stop:
        where = "at once, so what was saved before is all there is"
        if mode == "compare":
            where = "the runs in progress saved their state"
        if isinstance(stop, Interrupted):
            where = f"{stop.where}, all saved"
        if _exit_code(stop) != UNREAD and processes.leads():
            _complain(f"interrupted; {where}. To go on:\n  {_again(folder)}")
        if not isinstance(stop, Interrupted) and not processes.alone():
            _end(_exit_code(stop))  # the others know nothing of it
        _leave(_exit_code(stop))


def _watch(folder) -> None:
    """Exits with 0 if the run is done, with 1 if it stopped before; quietly at a signal."""
    from asap_jax.runs import watch

    try:
        done = watch.watch(folder)
    except KeyboardInterrupt as stop:
        sys.exit(_exit_code(stop))
    sys.exit(UNREAD if done is None else int(not done))


def _config(mode):
    """The config given; when describing a run, its workdir's own config."""
    if _CONFIG.value is not None:
        return _CONFIG.value
    if mode == "describe" and _WORKDIR.value is not None:
        config = presets.get_config()
        presets.update(config, workdir.read_config(workdir.locate(_WORKDIR.value)))
        return config
    raise UserError(
        "--config is missing: for a first run, --config=configs/search.py:digits (or "
        "--config=search:digits outside a checkout)"
    )


def _again(folder) -> str:
    return shlex.join(["python", "-m", "asap_jax.main", *_arguments(folder)])


def _arguments(folder) -> list[str]:
    """The command's own arguments, plus the default workdir if none is given."""
    arguments = sys.argv[1:]
    if not any(argument.lstrip("-").startswith("workdir") for argument in arguments):
        arguments = [*arguments, f"--workdir={folder}"]
    return arguments


def _default_workdir(mode, config) -> Path:
    """runs/PRESET, plus the name of the published cells to train, if any."""
    preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    parts = [preset.replace(",", "-") or "paper"]
    if mode == "compare":
        return Path("runs") / f"compare-{preset or 'digits'}"
    if mode == "describe":
        parts.append("described")
    if config.genotype:
        described = genotypes.is_text(config.genotype)
        parts.append("cells" if described else Path(config.genotype).stem)
    return Path("runs") / "-".join(parts)


class _Terminated(KeyboardInterrupt):
    """Like Ctrl-C, but by the signal `signum`."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


def _terminate(signum, frame) -> None:
    """Ends the command at once, like Ctrl-C; during steps `Interruption` handles the signal."""
    raise _Terminated(signum)


def _exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code that a shell reports for the signal."""
    return 128 + getattr(stop, "signum", signal.SIGINT)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        print(f"asap_jax: {text}", file=sys.stderr)


def _leave(code: int) -> None:
    """Exits; at once if a program is being compiled, since that cannot be canceled."""
    processes.leave()
    waited_for = [t for t in threading.enumerate() if not t.daemon]
    if len(waited_for) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run() -> None:
    """Runs the command; user errors are reported in one paragraph, with exit code 2."""
    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and not is_ignored_hangup(signum):
            signal.signal(signum, _terminate)
    starting.over()
    try:
        _run()
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # nobody reads the output any more, which is not an error
            run_log.mute()
            sys.exit(UNREAD)


def _run() -> None:
    try:
        app.run(_main, flags_parser=command_line.parse)
    except UserError as error:
        _complain(str(error))
        _end(2)
    except KeyboardInterrupt as stop:
        _complain("interrupted")
        _end(_exit_code(stop))
    except BrokenPipeError:
        run_log.mute()
        _end(UNREAD)
    except RuntimeError as error:
        if processes.alone():
            raise
        traceback.print_exc()
        if not processes.lost(error):
            _end(1)
        _complain(
            f"what the processes of this run compute together failed "
            f"({' '.join(str(error).split())[:200]}), as it does when one of them is gone: the "
            "same commands go on from what was saved"
        )
        _end(processes.GONE)
    except Exception:
        if processes.alone():
            raise
        traceback.print_exc()
        _end(1)


def _end(code: int) -> None:
    """Exits; as one of several processes without waiting for the others, which may wait for it."""
    if processes.alone():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
