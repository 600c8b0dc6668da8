"""Hydra callbacks: the folder that a command writes to, and the comparison of a finished sweep."""

import logging
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from experiments.labels.files import make_exclusively

log = logging.getLogger(__name__)


class OwnFolder(Callback):
    """Gives every run and every sweep a folder that no other command writes to.

    The folder of the configuration, which is named after the current second, gets the suffix -2, -3 and so on
    if it exists already. A folder given on the command line (`hydra.run.dir`, `hydra.sweep.dir`) is used as
    it is.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        take_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        take_folder(config, "sweep")


def take_folder(config: DictConfig, mode: str) -> None:
    """Make the folder `hydra.MODE.dir` and check that it can be written to, before any work.

    Raises SystemExit with a one-line message otherwise: Hydra would turn an exception of the callback into a
    warning, and then fail with a traceback.
    """
    key = f"hydra.{mode}.dir"
    folder = Path(str(config.hydra[mode].dir))
    is_named = any(choice.startswith(f"{key}=") for choice in config.hydra.overrides.hydra)
    try:
        if is_named:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = make_exclusively(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        way_out = f"{key}=FOLDER" if is_named else "paths.outputs=FOLDER"
        print(
            f"error: results cannot be written to {folder} ({error.strerror or error}): give another folder "
            f"with {way_out}",
            file=sys.stderr,
        )
        raise SystemExit(2) from error
    if not is_named:
        with read_write(config.hydra):
            config.hydra[mode].dir = str(folder)
            if mode == "sweep":  # the configuration of each job is composed from these overrides
                quoted = str(folder).replace("'", r"\'")
                config.hydra.overrides.hydra.append(f"{key}='{quoted}'")


class ComparisonReport(Callback):
    """Writes `compare.html` into the folder of a sweep whose jobs were evaluated; see `experiments.compare`.

    A sweep of another command has no metrics and is ignored; for a sweep over tasks or backbones, whose runs
    cannot be compared, the reason is logged.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not any(folder.glob("*/metrics.json")):
            return
        # Hydra creates this object at the start of every command: plotting is imported only when needed.
        from experiments.command_line.running import Provenance, format_command
        from experiments.reporting.comparison import compare_runs

        provenance = Provenance(
            command=format_command("compare", [f"runs={folder}"]),
            config=OmegaConf.to_yaml(config.hydra.overrides),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
        try:
            compare_runs([folder], output=folder, provenance=provenance)
        except ValueError as error:
            log.warning("the runs of this sweep are not compared: %s", error)
