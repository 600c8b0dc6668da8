"""Where the configuration tree lies, and the one decorator that turns a function of it into a command."""

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue


def find_config_dir() -> Path:
    """The `conf/` folder: beside the packages in a clone, inside `experiments/` in an installed wheel."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "conf", here.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no conf/ folder beside or inside {here}: reinstall tokenscale, or run from a clone"
    )


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Run a function as `python -m experiments.<config_name>` on `conf/<config_name>.yaml`.

    A user's mistake (ValueError or OSError with a message that says what to do, also from a constructor that
    Hydra calls; a value that must be given and is not) ends in that one message and exit status 2; everything
    else keeps its traceback, as it is ours to mend. `HYDRA_FULL_ERROR=1` shows the traceback of both.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> Any:
            try:
                # What this imports would slow down --help and completion.
                from experiments.settings.check import check_settings

                return function(check_settings(config_name, config))
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
            if config is None and (mistake := find_wrong_group(sys.argv[1:])) is not None:
                print(f"error: {mistake}", file=sys.stderr)
                raise SystemExit(2)
            return command(config)

        return run

    return decorate


def find_wrong_group(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first config group that is given no name, as `trainer=null`; None if none is.

    Hydra ends in a traceback there.
    """
    for argument in arguments:
        given = re.fullmatch(r"\+{0,2}([\w/]+)(@[\w.]+)?=(null|true|false|[-+\d.]+|\{.*\}|)", argument)
        folder = find_config_dir() / given[1] if given else None
        if given and folder is not None and folder.is_dir():
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            name = f"{given[1]}{given[2] or ''}"
            return f"{name}={given[3]}: give one of {options}, or ~{name} to leave it out"
    return None


def describe_mistake(error: BaseException | None) -> str | None:
    """What a user is told about their own mistake; None when the error is not one."""
    match error:
        case InstantiationException():
            return _describe_building(error)
        case MissingMandatoryValue():
            return f"{error.full_key} has no default: give {error.full_key}=..."
        case InterpolationResolutionError():
            return " ".join(str(error).split())
        case ValueError() | OSError():
            return str(error)
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
