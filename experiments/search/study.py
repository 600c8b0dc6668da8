"""A study that any number of processes, on any number of machines, bring to an end together.

Whoever dies leaves a trial that is still called running. A database (SQLite, PostgreSQL) is told of every
living worker by its heartbeat, Optuna's own; a journal file has none, so there each worker holds a file lock,
which the system frees when it dies. Either way such a trial is failed, and its values are tried again.
"""

import functools
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
    fail_stale_trials,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
TAKEN = (*FINISHED, TrialState.RUNNING, TrialState.WAITING)
Direction = Literal["maximize", "minimize"]
WORKER = "worker"
# Seconds after which a running trial whose worker never gave its name counts as given up.
_NAMELESS = 60

# Heartbeats are called experimental since 2021.
warnings.filterwarnings("ignore", category=ExperimentalWarning)


class Withdrawn(Exception):
    """A trial that was begun although others had taken the last places."""


class SharedStudy:
    """One of the processes that work on a study; made, it has joined.

    `storage` is the URL of a database, or a file that ends in `.journal`; None: SQLite in `folder`. A worker
    of a database whose heart has not beaten for `grace` seconds (it beats every `heartbeat`) is dead. With a
    journal, `folder` has to be one that all workers see, for their locks lie there. A trial is tried again
    `max_retries` times at most.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        storage: str | None,
        directions: Sequence[Direction],
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        heartbeat: int = 10,
        grace: int = 40,
        max_retries: int = 3,
    ) -> None:
        self.folder, self.poll_seconds = folder, min(1.0, heartbeat / 2)
        self._retry = RetryHeartbeatStaleTrialCallback(max_retry=max_retries)
        folder.mkdir(parents=True, exist_ok=True)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # Tables are made once, whoever comes first.
        with FileLock(folder / ".lock"):
            opened = _open_storage(
                storage or f"sqlite:///{folder / 'study.db'}", heartbeat, grace, self._retry
            )
            self.study = optuna.create_study(
                study_name=name,
                storage=opened,
                directions=list(directions),
                sampler=sampler,
                pruner=pruner,
                load_if_exists=True,
            )
        if [direction.name.lower() for direction in self.study.directions] != list(directions):
            raise ValueError(
                f"study {name!r} was begun with other objectives: give this one another study.name"
            )
        self._is_journal = isinstance(opened, JournalStorage)

    def begin_with(self, values: dict[str, Any]) -> None:
        """Try these values first, unless somebody has."""
        with FileLock(self.folder / ".lock"):
            if values and not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(values)

    def run(self, objective: Callable[[optuna.Trial], Any], num_trials: int) -> None:
        """Work on the study until `num_trials` of all its trials are finished, pruned ones included.

        Waits for trials of other workers at the end, and takes over those of dead ones. What `objective`
        raises fails the trial and ends this worker.
        """
        with self._stay_alive():
            while self.count(FINISHED) < num_trials:
                self.free_stale_trials()
                waiting = self.count((TrialState.WAITING,))
                if not waiting and self.count(TAKEN) >= num_trials:
                    time.sleep(self.poll_seconds)
                    continue
                self.study.optimize(
                    functools.partial(self._run_trial, objective, num_trials), n_trials=1, catch=(Withdrawn,)
                )

    def count(self, states: Sequence[TrialState]) -> int:
        """How many trials of the study are in one of these states."""
        return len(self.study.get_trials(deepcopy=False, states=tuple(states)))

    def free_stale_trials(self) -> None:
        """Fail the running trials of dead workers, and queue their values anew."""
        if not self._is_journal:
            fail_stale_trials(self.study)
            return
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if not self._is_dead(trial):
                continue
            try:
                self.study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue  # another worker was faster
            self._retry(self.study, trial)

    def _run_trial(
        self, objective: Callable[[optuna.Trial], Any], num_trials: int, trial: optuna.Trial
    ) -> Any:
        trial.set_user_attr(WORKER, self.worker)
        # Two workers may have seen the last place free: of all trials the first ones keep theirs.
        earlier = self.study.get_trials(deepcopy=False, states=TAKEN)
        if sum(other.number < trial.number for other in earlier) >= num_trials:
            raise Withdrawn(f"the study has its {num_trials} trials")
        return objective(trial)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is None:
            started = trial.datetime_start or datetime.now()
            return (datetime.now() - started).total_seconds() > _NAMELESS
        if worker == self.worker:
            return False
        lock = FileLock(self._lock_of(worker))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True

    def _lock_of(self, worker: str) -> Path:
        folder = self.folder / "workers"
        folder.mkdir(exist_ok=True)
        return folder / f"{worker}.lock"

    @contextmanager
    def _stay_alive(self) -> Any:
        with ExitStack() as stack:
            if self._is_journal:
                stack.enter_context(FileLock(self._lock_of(self.worker)))
            yield


def find_origin(trial: optuna.Trial) -> int:
    """The number of the trial, or of the one that it tries again after a worker's death."""
    frozen = trial.study.trials[trial.number]
    origin = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
    return trial.number if origin is None else origin


def _open_storage(
    storage: str, heartbeat: int, grace: int, retry: RetryHeartbeatStaleTrialCallback
) -> BaseStorage:
    if storage.endswith(".journal"):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(storage))
    if "://" not in storage:
        raise ValueError(
            f"storage={storage} is neither a database (sqlite:///FILE, postgresql://...) nor a .journal file"
        )
    # Writers of one SQLite file wait for each other rather than give up.
    arguments = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return RDBStorage(
            storage,
            engine_kwargs=arguments,
            heartbeat_interval=heartbeat,
            grace_period=grace,
            heartbeat_stale_trial_callback=retry,
        )
    except ImportError as error:
        raise ValueError(
            f"no driver for the database of {storage.partition('://')[0]}://...: for PostgreSQL "
            "pip install 'psycopg[binary]'"
        ) from error
