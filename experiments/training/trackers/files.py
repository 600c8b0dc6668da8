"""Trackers that write files: CSV, and event files for TensorBoard."""

import csv
import json
import textwrap
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from experiments.labels.files import to_file_name
from experiments.training.trackers.base import Run, Tracker, check_installed
from m3_backbone.arguments import checked
from m3_backbone.images import open_picture
from m3_backbone.outcomes.shards import write_bytes, write_text

CURVES, CONFIGURATION = "curves.csv", "configuration.json"


class RunLogger(Logger):
    """Base class of loggers of our own, with the name of a run and its id as the version."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def version(self) -> str:
        return self._run.id


class CsvLogger(RunLogger):
    """Logger that appends every value to `curves.csv` as step, metric, value.

    Lightning's CSVLogger deletes the values of a run that it continues.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        super().__init__(run)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        path = self.folder / CURVES
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("step", "metric", "value"))
            writer.writerows((step, name, float(value)) for name, value in metrics.items())

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        content = vars(params) if isinstance(params, Namespace) else params
        write_text(self.folder / CONFIGURATION, _to_json(content) + "\n")


class Csv(Tracker):
    """Writes each run to `folder`/GROUP/NAME/ID: curves and tables as CSV, configuration as JSON, images."""

    @checked
    def __init__(self, *, folder: str | Path) -> None:
        self.folder = Path(folder)

    def open(self, run: Run, configuration: Mapping[str, Any]) -> Logger:
        logger = CsvLogger(self.folder / run.group / to_file_name(run.name) / run.id, run)
        logger.log_hyperparams(dict(configuration))
        return logger

    def show_table(self, logger: Logger, name: str, table: pa.Table) -> None:
        assert isinstance(logger, CsvLogger)
        content = pa.BufferOutputStream()
        pa.csv.write_csv(table, content)
        write_bytes(logger.folder / f"{name}.csv", content.getvalue().to_pybytes())

    def show_image(self, logger: Logger, name: str, image: bytes) -> None:
        assert isinstance(logger, CsvLogger)
        write_bytes(logger.folder / f"{name}.png", image)


class TensorBoard(Tracker):
    """Writes event files to `folder`/GROUP/NAME/ID; `tensorboard --logdir FOLDER` shows them.

    The configuration is shown as text, and with the results of a run on the page of hyperparameters.
    """

    @checked
    def __init__(self, *, folder: str | Path) -> None:
        check_installed("tensorboard")
        self.folder = Path(folder)

    def open(self, run: Run, configuration: Mapping[str, Any]) -> Logger:
        logger = TensorBoardLogger(
            self.folder / run.group, to_file_name(run.name), run.id, default_hp_metric=False
        )
        logger.log_hyperparams(dict(configuration))
        logger.experiment.add_text("configuration", textwrap.indent(_to_json(configuration), "    "))
        return logger

    def show_results(self, logger: Logger, results: Mapping[str, float]) -> None:
        assert isinstance(logger, TensorBoardLogger)
        logger.log_hyperparams(dict(logger.hparams), dict(results))

    def show_table(self, logger: Logger, name: str, table: pa.Table) -> None:
        assert isinstance(logger, TensorBoardLogger)
        rows = [table.column_names, ["---"] * table.num_columns]
        rows += [[_format_cell(value) for value in row.values()] for row in table.to_pylist()]
        logger.experiment.add_text(name, "\n".join(f"| {' | '.join(row)} |" for row in rows))

    def show_image(self, logger: Logger, name: str, image: bytes) -> None:
        assert isinstance(logger, TensorBoardLogger)
        pixels = np.asarray(open_picture(image, name=name))
        logger.experiment.add_image(name, pixels, dataformats="HWC")


def _to_json(configuration: Mapping[str, Any]) -> str:
    return json.dumps(configuration, indent=1, ensure_ascii=False)


def _format_cell(value: Any) -> str:
    """Return a value as text of a Markdown table."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
