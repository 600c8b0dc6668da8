"""The decorator that turns a function of a configuration into a command, and where a report comes from."""

import functools
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from experiments.cli import (
    SCRIPT,
    append_working_directory,
    describe_missing,
    find_config_dir,
    is_started_by_script,
)
from experiments.settings.command_line import compose, find_wrong_argument, rename_settings

# Optuna's and SQLAlchemy's: a full disk, a database of another user, no server, a URL that names nothing.
_ERRORS_OF_DATABASES = ("StorageInternalError", "OperationalError", "NoSuchModuleError", "ArgumentError")


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Run a function as `python -m experiments.<config_name>` on `conf/<config_name>.yaml`.

    A user's mistake (ValueError or OSError with a message that says what to do, also from a constructor that
    Hydra calls; a value that must be given and is not) ends in that one message and exit status 2; everything
    else keeps its traceback, as it is ours to mend. `HYDRA_FULL_ERROR=1` shows the traceback of both.
    An interrupted command (Ctrl-C) says what is lost, in the notes of the KeyboardInterrupt, and how to
    resume; its exit status is 130. Characters that the terminal cannot show are replaced.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> Any:
            replace_unprintable()
            if is_started_by_script():
                append_working_directory()
            try:
                # What this imports would slow down --help and completion.
                from experiments.settings.check import check_settings

                return function(check_settings(config_name, config))
            except KeyboardInterrupt as interrupt:
                lost = "".join(f"{note} " for note in getattr(interrupt, "__notes__", ()))
                print(
                    f"\nInterrupted. {lost}Finished files are kept; run `{format_given_command()}` again to "
                    "resume.",
                    file=sys.stderr,
                )
                raise SystemExit(130) from None
            except Exception as error:
                mistake = describe_mistake(error)
                if mistake is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                for line in mistake.splitlines():
                    print(f"error: {line}", file=sys.stderr)
                raise SystemExit(2) from error

        command = hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name=config_name)(
            guarded
        )

        @functools.wraps(function)
        def run(config: DictConfig | None = None) -> Any:
            if config is not None:
                return command(config)
            arguments = sys.argv[1:] = rename_settings(sys.argv[1:])
            overrides = [argument for argument in arguments if argument not in ("-h", "--help")]
            # With another flag, as --config-dir, help is Hydra's own.
            asks_for_help = overrides != arguments and not any(text.startswith("-") for text in overrides)
            try:
                mistake = find_wrong_argument(
                    find_config_dir(), config_name, overrides if asks_for_help else arguments
                )
                if mistake is not None:
                    print(f"error: {mistake}", file=sys.stderr)
                    raise SystemExit(2)
                if asks_for_help:
                    from experiments.help import format_help

                    print(
                        format_help(
                            config_name, compose(find_config_dir(), config_name, overrides, with_hydra=True)
                        )
                    )
                    raise SystemExit(0)
                return command()
            except KeyboardInterrupt:  # before the work of a job begins, or between two of them
                given = format_command(config_name, _without_overwrite(arguments))
                print(
                    f"\nInterrupted. Finished files are kept; run `{given}` again to resume.", file=sys.stderr
                )
                raise SystemExit(130) from None

        return run

    return decorate


def replace_unprintable() -> None:
    """Let output replace what the encoding of the terminal lacks, instead of ending a finished command.

    A log file that can no longer be written to does not interrupt the work either.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.raiseExceptions = False


def format_command(entry_point: str, choices: Sequence[str]) -> str:
    """Return a command as one types it: with `tokenscale` if the running one was, else with `python -m`."""
    program = (
        [SCRIPT, entry_point] if is_started_by_script() else ["python", "-m", f"experiments.{entry_point}"]
    )
    return shlex.join([*program, *choices])


def is_sweep() -> bool:
    """Return whether the running command is one job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


# Options that select labels, one of the predictors trained on them, and the settings of its training.
_LABELS = ("task", "backbone", "paths")
_PREDICTOR = (*_LABELS, "predictor", "seed")
_TRAINING = (
    "experiment",
    "calibrator",
    "trainer",
    "max_epochs",
    "validation_fraction",
    "budget",
    "tolerance",
)
# By command, the options that it shares with the one before, and those that have to be given.
_NEXT: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": ((*_LABELS, "experiment"), ()),
    "evaluate": ((*_PREDICTOR, *_TRAINING), ()),
    "answer": (_PREDICTOR, ("image=FILE", "question=what is it?")),
    "publish": (_PREDICTOR, ("folder=FOLDER",)),
}


def format_next(*commands: str) -> str:
    """Return lines with the commands that may come next, on the same labels and predictor.

    A command that cannot be told how the predictor was trained is left out.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    by_name = [(re.split(r"[.=@]", text.lstrip("+~"))[0], text) for text in overrides]
    lines = []
    for command in commands:
        names, given = _NEXT[command]
        if any(name in _TRAINING and name not in names for name, _ in by_name):
            continue
        shared = [text for name, text in by_name if name in names]
        lines.append(f"next: {format_command(command, [*shared, *given])}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from: the command, its configuration (YAML), and when it was run."""

    command: str
    config: str
    made: str

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """Return that of the running command."""
        hydra_config = HydraConfig.get()
        return cls(
            format_command(str(hydra_config.job.config_name), list(hydra_config.overrides.task)),
            OmegaConf.to_yaml(config, resolve=True),
            f"{datetime.now():%Y-%m-%d %H:%M}",
        )


def format_given_command() -> str:
    """The command that was given, a sweep as a whole, as one repeats it to resume.

    Without `overwrite=true`: that would begin by replacing what is finished.
    """
    hydra_config = HydraConfig.get()
    name = str(hydra_config.job.name)
    if Path(sys.argv[0]).stem == name:
        arguments = sys.argv[1:]
    elif hydra_config.mode == RunMode.MULTIRUN:
        # A job in a process of its own knows its own choices; the sweep has written down all of them.
        sweep = Path(hydra_config.sweep.dir) / "multirun.yaml"
        given = OmegaConf.load(sweep).hydra.overrides.task if sweep.is_file() else hydra_config.overrides.task
        arguments = ["-m", *given]
    else:
        arguments = list(hydra_config.overrides.task)
    command = str(hydra_config.job.config_name) if name == "__main__" else name  # the command is a package
    return format_command(command, _without_overwrite(arguments))


def _without_overwrite(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if not argument.partition("=")[0].endswith("overwrite")]


def describe_mistake(error: BaseException | None) -> str | None:
    """What a user is told about their own mistake; None when the error is not one."""
    match error:
        case ModuleNotFoundError():
            return describe_missing(error)
        case InstantiationException():
            return _describe_building(error)
        case MissingMandatoryValue():
            return f"{error.full_key} has no default: give {error.full_key}=..."
        case InterpolationResolutionError():
            return " ".join(str(error).split())
        case OSError() if error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}"
        case ValueError() | OSError():
            return str(error)
        case MemoryError():
            reason = str(error) or "no more could be had"
            return f"there is not enough memory ({reason}): give smaller numbers, or fewer images at a time"
        case Exception() if type(error).__name__ in _ERRORS_OF_DATABASES:
            reason = str(error.__cause__ or error).splitlines()[0]
            return f"the database of the study cannot be used: {reason}; study.storage=... names another one"
        case Exception() if type(error).__name__ == "MisconfigurationException":
            # Lightning's, known by name: importing it here would slow down commands that do not train.
            return f"Lightning cannot do what the trainer settings ask for: {error} trainer=cpu runs anywhere"
    return None


def _describe_building(error: InstantiationException) -> str | None:
    """What is wrong with an object of the configuration; arguments are named as options."""
    mistake = describe_mistake(error.__cause__)
    if (
        mistake is None
        and isinstance(error.__cause__, TypeError)
        and "call to target 'lightning." in str(error)
    ):
        mistake = f"Lightning cannot do what the trainer settings ask for: {error.__cause__}"
    place = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    if mistake is not None and place and re.match(r"\w+=", mistake):
        return f"{place[1]}.{mistake}"
    return mistake
