"""Trackers that are services with a local mode: Weights & Biases and MLflow."""

import importlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from experiments.training.trackers.base import Run, Status, Tracker, check_installed
from m3_backbone.arguments import checked
from m3_backbone.images import open_picture

# Tag of a run in MLflow with the id of a `Run`, as MLflow chooses the ids of its runs itself.
_ID_TAG = "tokenscale.run"


class Wandb(Tracker):
    """Runs of Weights & Biases. `offline` writes them to `folder`/wandb, and `wandb sync` uploads them."""

    @checked
    def __init__(self, *, folder: str | Path, project: str = "tokenscale", offline: bool = True) -> None:
        check_installed("wandb")
        self.folder, self.project, self.offline = Path(folder), project, offline

    def open(self, run: Run, configuration: Mapping[str, Any]) -> Logger:
        self.folder.mkdir(parents=True, exist_ok=True)
        logger = WandbLogger(
            run.name,
            self.folder,
            version=run.id,
            offline=self.offline,
            project=self.project,
            group=run.group,
            settings={"silent": self.offline},
        )
        logger.log_hyperparams(dict(configuration))
        return logger

    def show_table(self, logger: Logger, name: str, table: pa.Table) -> None:
        assert isinstance(logger, WandbLogger)
        logger.log_table(name, table.column_names, [list(row.values()) for row in table.to_pylist()])

    def show_image(self, logger: Logger, name: str, image: bytes) -> None:
        assert isinstance(logger, WandbLogger)
        logger.log_image(name, [open_picture(image, name=name)])

    def close(self, logger: Logger, status: Status) -> None:
        assert isinstance(logger, WandbLogger)
        super().close(logger, status)
        # The next run of this process would continue a run that is not ended.
        logger.experiment.finish(exit_code=0 if status == "success" else 1)


class Mlflow(Tracker):
    """Runs of MLflow, in the database and the folder of artifacts in `folder`, or on the server `server`."""

    @checked
    def __init__(
        self, *, folder: str | Path, experiment: str = "tokenscale", server: str | None = None
    ) -> None:
        check_installed("mlflow")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self.folder, self.experiment, self.server = Path(folder).resolve(), experiment, server

    def open(self, run: Run, configuration: Mapping[str, Any]) -> Logger:
        if self.server is None:
            self.folder.mkdir(parents=True, exist_ok=True)
        uri = self.server or f"sqlite:///{self.folder / 'mlflow.db'}"
        logger = MLFlowLogger(
            self.experiment,
            run.name,
            tracking_uri=uri,
            tags={_ID_TAG: run.id, "group": run.group},
            artifact_location=None if self.server else (self.folder / "artifacts").as_uri(),
            run_id=self._find_started(uri, run.id),
        )
        logger.experiment.update_run(str(logger.run_id), status="RUNNING")
        logger.log_hyperparams(dict(configuration))
        return logger

    def _find_started(self, uri: str, run_id: str) -> str | None:
        """Return MLflow's own id of a run that was opened before; None for a new run."""
        client = importlib.import_module("mlflow").MlflowClient(uri)
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        runs = client.search_runs([experiment.experiment_id], f"tags.`{_ID_TAG}` = '{run_id}'")
        return runs[0].info.run_id if runs else None

    def show_table(self, logger: Logger, name: str, table: pa.Table) -> None:
        assert isinstance(logger, MLFlowLogger)
        content = io.BytesIO()
        pa.csv.write_csv(table, content)
        logger.experiment.log_text(str(logger.run_id), content.getvalue().decode(), f"{name}.csv")

    def show_image(self, logger: Logger, name: str, image: bytes) -> None:
        assert isinstance(logger, MLFlowLogger)
        logger.experiment.log_image(str(logger.run_id), open_picture(image, name=name), f"{name}.png")
