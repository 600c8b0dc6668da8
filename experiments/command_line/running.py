"""The running command: its command line, sweep and configuration, as reports and records state them."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.command_line.script import SCRIPT, is_started_by_script

if TYPE_CHECKING:
    from experiments.labels.held_out import EvaluationRecorder
    from experiments.labels.records import WorkRecord


def format_command(entry_point: str, choices: Sequence[str]) -> str:
    """Return a command line that starts like the running one: with `tokenscale` or with `python -m`."""
    program = (
        [SCRIPT, entry_point] if is_started_by_script() else ["python", "-m", f"experiments.{entry_point}"]
    )
    return shlex.join([*program, *choices])


def is_one_after_another() -> bool:
    """Return whether the running command is a job of a sweep whose jobs do not run at the same time."""
    return is_sweep() and HydraConfig.get().runtime.choices.get("hydra/launcher") == "basic"


def is_sweep() -> bool:
    """Return whether the running command is one job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@dataclass(frozen=True)
class Provenance:
    """Origin of a report: the command, its configuration (YAML), and the time."""

    command: str
    config: str
    made: str

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """Return the provenance of the running command."""
        return cls(
            format_running_command(),
            OmegaConf.to_yaml(config, resolve=True),
            f"{datetime.now():%Y-%m-%d %H:%M}",
        )


def make_recorder(config: DictConfig, configuration: str | None = None) -> "EvaluationRecorder":
    """Return the recorder through which the running command opens test splits.

    `configuration` is recorded with each evaluation; None: the resolved `config`.
    """
    from experiments.labels.held_out import EvaluationRecorder

    return EvaluationRecorder(
        Path(config.paths.evaluations),
        format_running_command() if HydraConfig.initialized() else "called from Python",
        OmegaConf.to_yaml(config, resolve=True) if configuration is None else configuration,
        config.allow_unrecorded,
    )


def format_running_command(*, overwrite: bool = True) -> str:
    """Return the running command with its overrides; in a sweep, that of the job.

    Without `overwrite`, the options of that name are left out, as they would replace finished files.
    """
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    return format_command(
        str(hydra_config.job.config_name), overrides if overwrite else leave_out_overwrite(overrides)
    )


def format_given_command() -> str:
    """Return the command line that resumes the running command, or its whole sweep.

    `overwrite=true` is left out, as it would replace finished files.
    """
    hydra_config = HydraConfig.get()
    name = str(hydra_config.job.name)
    if Path(sys.argv[0]).stem == name:
        arguments = sys.argv[1:]
    elif hydra_config.mode == RunMode.MULTIRUN:
        # A job in a separate process has its own overrides only; those of the sweep are in a file.
        sweep = Path(hydra_config.sweep.dir) / "multirun.yaml"
        given = OmegaConf.load(sweep).hydra.overrides.task if sweep.is_file() else hydra_config.overrides.task
        arguments = ["-m", *given]
    else:
        arguments = list(hydra_config.overrides.task)
    command = str(hydra_config.job.config_name) if name == "__main__" else name  # the command is a package
    return format_command(command, leave_out_overwrite(arguments))


def record_command() -> "WorkRecord":
    """Return a record of the running command, or of the job of a sweep, with the command that repeats it."""
    from experiments.labels.records import WorkRecord

    hydra_config = HydraConfig.get()
    return WorkRecord.begin(
        command=format_running_command(overwrite=False),
        launcher=[text for text in hydra_config.overrides.hydra if text.startswith("hydra/launcher=")]
        + [text for text in hydra_config.overrides.hydra if text.startswith("hydra.launcher.")],
    )


def leave_out_overwrite(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without those that replace finished files."""
    return [argument for argument in arguments if not argument.partition("=")[0].endswith("overwrite")]
