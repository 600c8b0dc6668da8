"""Decorator that turns a function of a configuration into a command, and its messages for user errors."""

import functools
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from experiments.command_line.overrides import (
    FULL_ERROR,
    Composing,
    compose,
    find_malformed,
    find_wrong_argument,
    rename_settings,
)
from experiments.command_line.running import (
    format_command,
    format_given_command,
    leave_out_overwrite,
    record_command,
)
from experiments.command_line.script import (
    append_working_directory,
    describe_missing,
    exit_on_closed_output,
    find_config_dir,
    is_started_by_script,
)
from experiments.labels.devices import remember_visible, restore_visible

# Errors of Optuna and SQLAlchemy: a full disk, a database of another user, no server, an unknown URL.
_ERRORS_OF_DATABASES = ("StorageInternalError", "OperationalError", "NoSuchModuleError", "ArgumentError")


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Run a function as the command `tokenscale <config_name>` on `conf/<config_name>.yaml`.

    A user error (ValueError or OSError with a message that says what to do, also from a constructor called by
    Hydra; a missing mandatory value) ends in one message and exit status 2. Other errors are bugs and keep
    their traceback. `HYDRA_FULL_ERROR=1` shows the traceback of both. An interrupted command (Ctrl-C) prints
    what is lost, from the notes of the KeyboardInterrupt, and how to resume; its exit status is 130.
    Characters that the terminal cannot show are replaced.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        composing = Composing(find_config_dir(), config_name)

        @functools.wraps(function)
        def run_checked(config: DictConfig) -> Any:
            composing.end()
            replace_unprintable()
            restore_visible(os.environ)
            if is_started_by_script():
                append_working_directory()
            with resumable(format_given_command), printing_mistakes(config_name):
                # Imported here, as it would slow down --help and completion.
                from experiments.settings.check import check_settings

                with recording_job():
                    return function(check_settings(config_name, config))

        command = hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name=config_name)(
            run_checked
        )

        @functools.wraps(function)
        @exit_on_closed_output()
        def run(config: DictConfig | None = None) -> Any:
            if config is not None:
                return command(config)
            remember_visible()
            arguments = sys.argv[1:] = rename_settings(sys.argv[1:])
            # For an interrupt before a job begins, or between two jobs.
            with resumable(lambda: format_command(config_name, leave_out_overwrite(arguments))):
                return run_arguments(composing, command, arguments)

        return run

    return decorate


def run_arguments(composing: Composing, command: Callable[[], Any], arguments: Sequence[str]) -> Any:
    """Check the arguments of the command line and call the command, or print its help."""
    folder, name = composing.config_dir, composing.config_name
    overrides = [argument for argument in arguments if argument not in ("-h", "--help")]
    if any(text.startswith("-") for text in overrides):
        # With another flag, as --config-dir, Hydra prints its own help.
        exit_on_mistake(find_wrong_argument(folder, name, arguments))
        return command()
    if len(overrides) < len(arguments):
        exit_on_mistake(find_wrong_argument(folder, name, overrides))
        from experiments.command_line.help import format_help

        print(format_help(name, compose(folder, name, overrides, with_hydra=True)))
        raise SystemExit(0)
    exit_on_mistake(find_malformed(folder, arguments))
    return composing.run(command, arguments)


@contextmanager
def resumable(format_resuming: Callable[[], str]) -> Iterator[None]:
    """Exit with status 130 at an interrupt, and print what is lost and the command that resumes."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        lost = "".join(f"{note} " for note in getattr(interrupt, "__notes__", ()))
        print(
            f"\nInterrupted. {lost}Finished files are kept; run `{format_resuming()}` again to resume.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


@contextmanager
def printing_mistakes(command: str) -> Iterator[None]:
    """Exit with status 2 and a message for an error of the user; others keep their traceback."""
    try:
        yield
    except Exception as error:
        mistake = describe_mistake(error, command)
        if mistake is None or os.environ.get(FULL_ERROR) == "1":
            raise
        _print_mistake(mistake)
        raise SystemExit(2) from error


def exit_on_mistake(mistake: str | None) -> None:
    """Exit with status 2 and a message; do nothing for None."""
    if mistake is not None:
        _print_mistake(mistake)
        raise SystemExit(2)


def _print_mistake(mistake: str) -> None:
    for line in mistake.splitlines():
        print(f"error: {line}", file=sys.stderr)


def replace_unprintable() -> None:
    """Replace characters that the terminal cannot encode, instead of raising an error.

    A log file that can no longer be written to does not raise an error either.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.raiseExceptions = False


def recording_job() -> AbstractContextManager[None]:
    """Keep a record of the running command in its folder, if it has one, for `tokenscale status`."""
    if not HydraConfig.initialized() or os.environ.get("LOCAL_RANK", "0") != "0":
        return nullcontext()
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir) / str(hydra_config.output_subdir)
    if hydra_config.output_subdir is None or not folder.is_dir():
        return nullcontext()
    from experiments.labels.records import JOB_RECORD, recording

    record = record_command()
    own_folder = shlex.quote(f"hydra.run.dir={hydra_config.runtime.output_dir}")
    return recording(
        folder / JOB_RECORD, record.model_copy(update={"command": f"{record.command} {own_folder}"})
    )


def describe_mistake(error: BaseException | None, command: str = "") -> str | None:
    """Return the message for a user error of a command; None for any other error."""
    match error:
        case ModuleNotFoundError():
            return describe_missing(error, command)
        case InstantiationException():
            return _describe_building(error, command)
        case MissingMandatoryValue():
            return f"{error.full_key} has no default: give {error.full_key}=..."
        case InterpolationResolutionError():
            return " ".join(str(error).split())
        case OSError() if error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}"
        case ValueError() | OSError():
            return str(error)
        case MemoryError():
            reason = str(error) or "an allocation failed"
            return f"there is not enough memory ({reason}): give smaller numbers, or fewer images at a time"
        case Exception() if type(error).__name__ in _ERRORS_OF_DATABASES:
            reason = str(error.__cause__ or error).splitlines()[0]
            return (
                f"the database of the study cannot be used: {reason}: give another one with study.storage=..."
            )
        case Exception() if type(error).__name__ == "MisconfigurationException":
            # Lightning's, known by name: importing it here would slow down commands that do not train.
            return f"Lightning cannot do what the trainer settings ask for: {error} trainer=cpu runs anywhere"
    return None


def _describe_building(error: InstantiationException, command: str) -> str | None:
    """Return the message for an object of the configuration, with its arguments named as options."""
    mistake = describe_mistake(error.__cause__, command)
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
