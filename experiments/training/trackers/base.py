"""Interface of trackers: runs with curves, configuration, results, tables and images.

A tracker opens runs as loggers of Lightning, so that a training writes its curves without knowing which
tracker it is. Trackers differ in how they show tables and images, which Lightning's interface does not have.
"""

import importlib.util
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from m3_backbone.outcomes.shards import write_text

if TYPE_CHECKING:  # importing Lightning takes seconds
    import lightning
    from lightning.pytorch.loggers import Logger

Group = Literal["train", "tune", "evaluate"]
Status = Literal["success", "failed"]
MakeTrainer = Callable[..., "lightning.Trainer"]


@dataclass(frozen=True)
class Run:
    """A training, trial or evaluation in a tracker. Opening a run again with the same `id` continues it."""

    group: Group
    name: str
    id: str


class Tracker(ABC):
    """Opens runs, and shows results in them. The constructor raises an error if its package is missing."""

    @abstractmethod
    def open(self, run: Run, configuration: Mapping[str, Any]) -> "Logger":
        """Return the logger of a run that shows this configuration, a JSON object."""

    @abstractmethod
    def show_table(self, logger: "Logger", name: str, table: pa.Table) -> None:
        """Show a table in an open run."""

    @abstractmethod
    def show_image(self, logger: "Logger", name: str, image: bytes) -> None:
        """Show an image, the bytes of a PNG file, in an open run."""

    def show_results(self, logger: "Logger", results: Mapping[str, float]) -> None:
        """Show the final numbers of a run by name."""
        logger.log_metrics(dict(results))

    def close(self, logger: "Logger", status: Status) -> None:
        """Write everything that is pending, and end the run."""
        logger.finalize(status)


def check_installed(module: str) -> None:
    """Raise ModuleNotFoundError, which names the module, if the package of a tracker is missing."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def make_run_id() -> str:
    """Return an id of a new run: time, and random digits that tell runs of the same second apart."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{uuid.uuid4().hex[:6]}"


class FitRuns:
    """Runs of one fit: one for each trainer that the fit makes, and at least one; none without a tracker.

    A predictor that trains several networks one after the other makes several trainers; their runs are named
    NAME, NAME-2 and so on. Results are shown in the last one.
    """

    def __init__(self, tracker: Tracker | None, run: Run, configuration: Mapping[str, Any]) -> None:
        self._tracker, self._run, self._configuration = tracker, run, configuration
        self._num_trainers = 0
        # Opened before the fit, whose seconds are measured.
        self._logger = tracker.open(run, configuration) if tracker else None

    def wrap(self, make_trainer: MakeTrainer | None) -> MakeTrainer | None:
        """Return `make_trainer` (None: that of `predictor.learned`) with the logger of the next run."""
        if self._tracker is None:
            return make_trainer
        from predictor.learned import make_quiet_trainer

        make, tracker = make_trainer or make_quiet_trainer, self._tracker

        def make_tracked(**arguments: Any) -> "lightning.Trainer":
            self._num_trainers += 1
            if self._num_trainers > 1:
                self.close()
                name, run_id = (f"{part}-{self._num_trainers}" for part in (self._run.name, self._run.id))
                self._logger = tracker.open(Run(self._run.group, name, run_id), self._configuration)
            return make(logger=self._logger, **arguments)

        return make_tracked

    def show_results(self, results: Mapping[str, float]) -> None:
        """Show the final numbers of the fit."""
        if self._tracker is not None and self._logger is not None:
            self._tracker.show_results(self._logger, results)

    def close(self, status: Status = "success") -> None:
        """End the run that is open, if any."""
        if self._tracker is not None and self._logger is not None:
            self._tracker.close(self._logger, status)
            self._logger = None


@contextmanager
def track_fit(
    tracker: Tracker | None,
    group: Group,
    name: str,
    configuration: Mapping[str, Any],
    *,
    unfinished: Path,
    ends_with: type[Exception] | tuple[()] = (),
) -> Iterator[FitRuns]:
    """Open the runs of a fit.

    The file `unfinished` holds the id of the run until the fit ends, so that a fit that resumes after an
    interruption continues the curves of its run. An exception `ends_with` ends the fit as planned.
    """
    runs = FitRuns(tracker, Run(group, name, _keep_run_id(unfinished) if tracker else ""), configuration)
    try:
        yield runs
    except ends_with:
        runs.close()
        unfinished.unlink(missing_ok=True)
        raise
    except BaseException:
        runs.close("failed")
        raise
    runs.close()
    unfinished.unlink(missing_ok=True)


def _keep_run_id(path: Path) -> str:
    """Return the id in a file, which is written with a new id if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        run_id = make_run_id()
        write_text(path, run_id)
        return run_id
