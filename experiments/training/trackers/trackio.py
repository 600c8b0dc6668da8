"""Tracker for Trackio, which keeps runs in a local database; Lightning has no logger for it.

Trackio needs Pillow 12, and is therefore no extra of tokenscale: install it in an environment with
`pip install trackio`.
"""

import importlib
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lightning.pytorch.loggers import Logger
from torch import Tensor

from experiments.training.trackers.base import Run, Status, Tracker, check_installed
from experiments.training.trackers.files import RunLogger
from m3_backbone.arguments import checked
from m3_backbone.images import open_picture


class TrackioLogger(RunLogger):
    """Logger of one run of Trackio; `experiment` is the run of Trackio."""

    def __init__(self, experiment: Any, run: Run) -> None:
        super().__init__(run)
        self.experiment = experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        tensors = {name: value.item() for name, value in metrics.items() if isinstance(value, Tensor)}
        self.experiment.log({**metrics, **tensors}, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)


class Trackio(Tracker):
    """Runs of Trackio in a database in `folder`; `TRACKIO_DIR=FOLDER trackio show` shows them.

    Trackio itself sends runs elsewhere if its environment variables TRACKIO_SPACE_ID or TRACKIO_SERVER_URL
    are set.
    """

    @checked
    def __init__(self, *, folder: str | Path, project: str = "tokenscale") -> None:
        try:
            check_installed("trackio")
        except ModuleNotFoundError as error:
            raise ValueError(
                "trackio is not installed: pip install trackio (it needs pillow<13, so it is no extra)"
            ) from error
        # Trackio reads the variable when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str(Path(folder).resolve()))
        self.project = project

    def open(self, run: Run, configuration: Mapping[str, Any]) -> Logger:
        experiment = importlib.import_module("trackio").init(
            self.project,
            name=f"{run.name} {run.id}",
            group=run.group,
            config=dict(configuration),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        return TrackioLogger(experiment, run)

    def show_table(self, logger: Logger, name: str, table: pa.Table) -> None:
        logger.log_metrics({name: importlib.import_module("trackio").Table(dataframe=table.to_pandas())})

    def show_image(self, logger: Logger, name: str, image: bytes) -> None:
        pixels = np.asarray(open_picture(image, name=name))
        logger.log_metrics({name: importlib.import_module("trackio").Image(pixels)})

    def close(self, logger: Logger, status: Status) -> None:
        super().close(logger, status)
        importlib.import_module("trackio").finish()
