"""Where the configuration tree lies, and the one decorator that turns a function of it into a command."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

# Overrides that say where and how a job runs, and not what comes out of it.
_NOT_IN_KEY = ("paths.", "trainer", "engine", "limit.", "latest", "allow_small")


def key_of_job() -> str:
    """`/` and a digest of what a job of a sweep was asked for; nothing for a command that is run alone.

    Jobs of a sweep that run at the same time and train different predictors of one name leave them in
    different folders (`paths.predictors`); the same sweep finds them again.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    asked = sorted(text for text in HydraConfig.get().overrides.task if not text.startswith(_NOT_IN_KEY))
    return f"/{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"


OmegaConf.register_new_resolver("key_of_job", key_of_job, replace=True)


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
                return function(config)
            except Exception as error:
                mistake = describe_mistake(error)
                if mistake is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                print(f"error: {mistake}", file=sys.stderr)
                raise SystemExit(2) from error

        return hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name=config_name)(
            guarded
        )

    return decorate


def describe_mistake(error: BaseException | None) -> str | None:
    """What a user is told about their own mistake; None when the error is not one."""
    match error:
        case InstantiationException():
            return describe_mistake(error.__cause__)
        case MissingMandatoryValue():
            return f"{error.full_key} has no default: give {error.full_key}=..."
        case ValueError() | OSError():
            return str(error)
        case Exception() if type(error).__name__ == "MisconfigurationException":
            # Lightning's, known by name: importing it here would slow down commands that do not train.
            return f"Lightning cannot do what the trainer settings ask for: {error} trainer=cpu runs anywhere"
    return None
