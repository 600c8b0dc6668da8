"""State of the jobs of run folders and of sweeps: which are done, running, failed or missing."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.command_line.running import format_command
from experiments.labels.records import JOB_RECORD, clean, clean_command, read_record
from experiments.results.metrics_json import METRICS

_HYDRA = ".hydra"
SWEEP_FILE = "multirun.yaml"
_MAX_BYTES = 2**22
# In this case the subfolder of a job is its number.
_NUMBERED = "${hydra.job.num}"


@dataclass(frozen=True)
class JobStatus:
    """State of one job: done, running, failed, killed, missing, or unknown.

    `overrides` distinguish the jobs of a sweep. `detail` is the process or the reason of a failure. `command`
    does the job again, in its own folder, started in `directory`.
    """

    folder: Path
    state: str
    overrides: str = ""
    detail: str = ""
    command: str = ""
    directory: str = ""


def is_job_folder(folder: Path) -> bool:
    """Return whether `folder` is that of a run or of a sweep."""
    return (folder / _HYDRA).is_dir() or (folder / SWEEP_FILE).is_file()


def list_jobs(folder: Path) -> list[JobStatus]:
    """Return the state of a run, of the jobs of a sweep, or of all runs and sweeps in a folder.

    Raises ValueError for a damaged `multirun.yaml`.
    """
    if (folder / SWEEP_FILE).is_file():
        return list(_list_sweep(folder))
    if (folder / _HYDRA).is_dir():
        return [_read_job(folder)]
    return [
        job
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.is_symlink() and is_job_folder(path)
        for job in list_jobs(path)
    ]


def _read_job(folder: Path, overrides: str = "", command: str = "") -> JobStatus:
    record = read_record(folder / _HYDRA / JOB_RECORD)
    if record is None:
        # A run of a version without records, or a job that ended before its command began.
        is_evaluated = (folder / METRICS).is_file()
        state = "done" if is_evaluated else "unknown" if (folder / _HYDRA).is_dir() else "missing"
        return JobStatus(folder, state, overrides, command="" if is_evaluated else command)
    return JobStatus(
        folder,
        record.state,
        overrides,
        record.outcome,
        clean_command(record.command) if record.state in ("failed", "killed") else "",
        clean(record.directory),
    )


def _list_sweep(folder: Path) -> Iterator[JobStatus]:
    """Yield the state of each job that the overrides of a sweep stand for."""
    path = folder / SWEEP_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        content: Any = OmegaConf.to_container(OmegaConf.load(path))  # interpolations stay as they are
        hydra = content["hydra"]
        name, subfolder = str(hydra["job"]["config_name"]), str(hydra["sweep"]["subdir"])
        choices = [_expand(str(text)) for text in hydra["overrides"]["task"]]
    except Exception as error:  # whatever reading YAML raises
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): run that sweep again") from error
    if subfolder != _NUMBERED:
        for job in sorted(folder.iterdir()):
            if (job / _HYDRA).is_dir():
                yield _read_job(job)
        return
    swept = [number for number, values in enumerate(choices) if len(values) > 1]
    for number, overrides in enumerate(itertools.product(*choices)):
        job = folder / str(number)
        command = format_command(name, [*overrides, f"hydra.run.dir={job}"])
        yield _read_job(job, clean(" ".join(overrides[index] for index in swept)), clean_command(command))


def _expand(override: str) -> list[str]:
    """Return the overrides that one override of a sweep stands for, in order."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return [override]
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
