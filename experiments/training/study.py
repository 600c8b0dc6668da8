"""Optuna study shared by several worker processes, on any number of machines; objectives of its trials.

A worker that dies leaves a trial in the state "running". In a database (SQLite, PostgreSQL) workers write
Optuna's heartbeats. A journal file has no heartbeats, so each worker holds a file lock, which the system
releases when the worker dies. A worker that dies between creating a trial and writing its name into it is
detected in neither way: a trial without a worker's name counts as abandoned after `grace` seconds. The trials
of dead workers are marked as failed and their values are tried again. Objectives are measured on validation
samples.
"""

import copy
import logging
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
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
from sqlalchemy.exc import IntegrityError

from experiments.labels.files import wait_for_lock

log = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
TAKEN = (*FINISHED, TrialState.RUNNING, TrialState.WAITING)
Direction = Literal["maximize", "minimize"]
WORKER = "worker"

# Optuna has marked heartbeats as experimental since 2021.
warnings.filterwarnings("ignore", category=ExperimentalWarning)


class Withdrawn(Exception):
    """Raised in a trial that exceeds the number of trials, as other workers began theirs first."""


class TakenOver(Exception):
    """Raised in a trial that another worker has marked as failed, as this worker had no heartbeat."""


class Retry:
    """Enqueues the values of a failed trial again, at most `max_retries` times, without the worker's name."""

    def __init__(self, max_retries: int) -> None:
        self._queue = RetryHeartbeatStaleTrialCallback(max_retry=max_retries)

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        trial = copy.deepcopy(trial)
        # With the name of the dead worker, the new trial would be taken for one of a dead worker again.
        trial.user_attrs.pop(WORKER, None)
        self._queue(study, trial)


class SharedStudy:
    """Worker of a shared study; the constructor creates or joins the study.

    `storage` is the URL of a database, or a file that ends in `.journal`; None means SQLite in `folder`. With
    a database, a worker writes a heartbeat every `heartbeat` seconds, and counts as dead after `grace`
    seconds without one. With a journal, all workers need access to `folder`, which has their locks. A trial
    is tried again at most `max_retries` times. `objectives` are names in `OBJECTIVES`. Raises ValueError for
    unknown objectives, and for an existing study with other directions.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        objectives: Sequence[str],
        storage: str | None = None,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        heartbeat: int = 10,
        grace: int = 40,
        max_retries: int = 3,
    ) -> None:
        if unknown := set(objectives) - OBJECTIVES.keys():
            raise ValueError(f"study.objectives has {min(unknown)!r}: give some of {', '.join(OBJECTIVES)}")
        self.objectives = list(objectives)
        directions = [OBJECTIVES[objective].direction for objective in objectives]
        self.folder, self.grace, self.poll_seconds = folder, grace, min(1.0, heartbeat / 2)
        self._retry = Retry(max_retries)
        # Running trial without a worker's name -> time at which this process first saw it, by its own clock.
        self._nameless_since: dict[int, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # The first worker creates the tables; the others wait.
        with wait_for_lock(folder / ".lock", f"opens the study in {folder}"):
            opened = _open_storage(
                storage or f"sqlite:///{folder / 'study.db'}", heartbeat, grace, self._retry
            )
            self.study = optuna.create_study(
                study_name=name,
                storage=opened,
                directions=directions,
                sampler=sampler,
                pruner=pruner,
                load_if_exists=True,
            )
        if [direction.name.lower() for direction in self.study.directions] != directions:
            raise ValueError(
                f"study {name!r} was started with other objectives: give this study another name with "
                "study.name=NAME"
            )
        self._is_journal = isinstance(opened, JournalStorage)

    def begin_with(self, values: dict[str, Any]) -> None:
        """Enqueue these values as the first trial, unless the study has trials already."""
        with wait_for_lock(self.folder / ".lock", f"opens the study in {self.folder}"):
            if values and not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(values)

    def run(self, objective: Callable[[optuna.Trial], Any], num_trials: int) -> None:
        """Run trials until the study has `num_trials` finished ones, pruned ones included.

        At the end, waits for the trials of other workers, and takes over those of dead workers. An exception
        of `objective` fails the trial and ends this worker.
        """
        announced: set[int] = set()
        with self._stay_alive():
            while self.count(FINISHED) < num_trials:
                self.free_stale_trials()
                waiting = self.count((TrialState.WAITING,))
                if waiting or self.count(TAKEN) < num_trials:
                    self._run_one(objective, num_trials)
                    continue
                running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                if {trial.number for trial in running} - announced:
                    announced |= {trial.number for trial in running}
                    log.info(
                        "waiting for trials of other workers: %s; those of dead workers are taken over "
                        "within about %d seconds",
                        ", ".join(f"{trial.number} ({_name_worker(trial)})" for trial in running),
                        self.grace,
                    )
                time.sleep(self.poll_seconds)

    def count(self, states: Sequence[TrialState]) -> int:
        """Return the number of trials in one of these states."""
        return len(self.study.get_trials(deepcopy=False, states=tuple(states)))

    def free_stale_trials(self) -> None:
        """Mark the running trials of dead workers as failed, and enqueue their values again."""
        if not self._is_journal:
            fail_stale_trials(self.study)
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if not self._is_dead(trial):
                continue
            try:
                self.study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue  # another worker has done so meanwhile
            log.warning("trial %d of %s is tried again", trial.number, _name_worker(trial))
            self._retry(self.study, trial)

    def _run_one(self, objective: Callable[[optuna.Trial], Any], num_trials: int) -> None:
        """Create a trial and run it; a trial that other workers take over meanwhile is left to them."""
        taken_over = False

        def run(trial: optuna.Trial) -> Any:
            nonlocal taken_over
            try:
                return self._run_trial(objective, num_trials, trial)
            except (TakenOver, UpdateFinishedTrialError) as error:
                taken_over = True
                raise TakenOver(f"trial {trial.number} was taken over") from error

        try:
            self.study.optimize(run, n_trials=1, catch=(Withdrawn,))
        except Exception as error:
            # Optuna raises an error on marking a failed trial as failed again.
            if not taken_over:
                raise
            log.warning("a trial of this worker was taken over by another one (%s)", error)

    def _run_trial(
        self, objective: Callable[[optuna.Trial], Any], num_trials: int, trial: optuna.Trial
    ) -> Any:
        storage = self.study._storage
        if isinstance(storage, RDBStorage):
            # Optuna's thread does so slightly later, but a trial with a worker's name must have a heartbeat.
            storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(WORKER, self.worker)
        # Two workers may have begun the last trial at the same time: the earlier trials count.
        earlier = self.study.get_trials(deepcopy=False, states=TAKEN)
        if sum(other.number < trial.number for other in earlier) >= num_trials:
            raise Withdrawn(f"the study has its {num_trials} trials")
        try:
            value = objective(trial)
        except KeyboardInterrupt as interrupt:
            self._retry(self.study, storage.get_trial(trial._trial_id))
            interrupt.add_note("The interrupted trial will be tried again.")
            raise
        if storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
            raise TakenOver
        return value

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is None:
            # The start of the trial is not used, as it is by the clock of another machine.
            first_seen = self._nameless_since.setdefault(trial.number, time.monotonic())
            return time.monotonic() - first_seen > self.grace
        if not self._is_journal or worker == self.worker:
            return False  # a database has heartbeats
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


def _name_worker(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(WORKER, "a worker without a name"))


def find_origin(trial: optuna.Trial) -> int:
    """Return the number of the trial, or of the first attempt if it is a retry."""
    frozen = trial.study.trials[trial.number]
    origin = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
    return trial.number if origin is None else origin


def _open_storage(storage: str, heartbeat: int, grace: int, retry: Retry) -> BaseStorage:
    if storage.endswith(".journal"):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(storage))
    if "://" not in storage:
        raise ValueError(
            f"study.storage={storage}: give the URL of a database (sqlite:///FILE, postgresql://...) or a "
            ".journal file"
        )
    # Writers of an SQLite file wait up to 60 seconds for each other instead of failing.
    arguments = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {"pool_pre_ping": True}
    make = partial(
        RDBStorage,
        storage,
        engine_kwargs=arguments,
        heartbeat_interval=heartbeat,
        grace_period=grace,
        heartbeat_stale_trial_callback=retry,
    )
    try:
        try:
            return make()
        except IntegrityError:
            # Another process, with another folder or a dashboard, has created the tables meanwhile.
            return make()
    except ImportError as error:
        raise ValueError(
            f"no driver for the database of {storage.partition('://')[0]}://...: for PostgreSQL "
            "pip install 'psycopg[binary]'"
        ) from error


@dataclass(frozen=True)
class Objective:
    """Objective of a search: direction and label for plots."""

    direction: Direction
    label: str


OBJECTIVES: Mapping[str, Objective] = {
    "recovered": Objective("maximize", "share of the mix-to-oracle gap recovered on validation"),
    "tokens": Objective(
        "minimize", "mean visual tokens, or imported costs, at the default price, validation"
    ),
    "flops": Objective("minimize", "the predictor's own FLOPs per question"),
    "parameters": Objective("minimize", "parameters"),
}
