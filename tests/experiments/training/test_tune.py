"""Searches on synthetic labels: many workers on one study, the killed one's trial, what is left behind."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from experiments.command_line.entry_point import describe_mistake
from experiments.command_line.script import find_config_dir
from experiments.reporting.study import conclude
from experiments.training.space import (
    Parameter,
    find_defaults,
    format_overrides,
    read_space,
    write_experiment,
)
from experiments.training.study import WORKER, SharedStudy
from experiments.training.trained import TrainingSettings
from experiments.training.trainer import TrainingLabels
from experiments.training.tuning import search
from predictor.classical.question_only import QuestionOnly
from predictor.learned import LearnedPredictor, make_quiet_trainer
from predictor.networks.cross_attention import CrossAttention
from predictor.policy.front import policy_value
from tests.predictor.synthetic import make_labels, write_labels

WORDS = [Parameter("predictor.max_words", "int", low=1, high=3)]
PENALTY = [Parameter("predictor.inverse_penalty", "float", low=1e-3, high=10, log=True)]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "labels"
    write_labels(folder, {"train": make_labels(80, seed=0)})
    return folder


@pytest.fixture
def run_search(labels, tmp_path):
    def run(*, name="words", objectives=("recovered",), seed=0, trainer=None, **arguments):
        sampler = optuna.samplers.TPESampler(seed=0)
        return search(
            lambda overrides: QuestionOnly(inverse_penalties=(float(overrides[0].split("=")[1]),)),
            PENALTY,
            labels=labels,
            worker=SharedStudy(name, tmp_path / "study", objectives=objectives, sampler=sampler),
            settings=TrainingSettings(seed, 0.3, trainer=trainer or {}),
            **arguments,
        )

    return run


def count(study, *states):
    return len(study.get_trials(deepcopy=False, states=states))


def kill_during_a_trial(worker, path):
    """Stop the process, look whether a trial of its own is under way, and kill it then, else let it go on."""
    running = False
    while not running:
        assert worker.poll() is None, worker.communicate()[0]
        os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.05)
        os.kill(worker.pid, signal.SIGSTOP)
        # Before the study is there, and while the process holds the database, there is nothing to read.
        with contextlib.suppress(KeyError, ValueError, OSError, SQLAlchemyError, StorageInternalError):
            trials = open_study(path).get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            running = any(f"-{worker.pid}-" in trial.user_attrs.get(WORKER, "") for trial in trials)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()


@pytest.mark.parametrize(
    ("storage", "num_trials"), [pytest.param(None, 40, marks=pytest.mark.slow), ("shared.journal", 40)]
)
@pytest.mark.slow
def test_two_workers_one_killed_end_with_all_trials_finished(labels, tmp_path, storage, num_trials):
    folder = tmp_path / "study"
    path = f"{tmp_path / storage}" if storage else f"sqlite:///{folder / 'study.db'}"
    command = [
        *(sys.executable, "-m", "experiments.tune", "~backbone", f"paths.labels={labels}"),
        *(f"paths.outputs={tmp_path}", f"study.folder={folder}", f"study.num_trials={num_trials}"),
        *("study.heartbeat=1", "study.grace=3", f"study.storage={path}"),
        *("predictor=question_only", "tune=question_only", "validation_fraction=0.3"),
    ]
    environment, pipe = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.PIPE
    workers = [
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    victim, survivor = workers
    kill_during_a_trial(victim, path)

    output = survivor.communicate(timeout=120)[0]
    assert survivor.returncode == 0, output
    study = open_study(path)
    assert count(study, TrialState.COMPLETE, TrialState.PRUNED) == num_trials
    assert count(study, TrialState.RUNNING, TrialState.WAITING) == 0
    killed = [
        t for t in study.get_trials(states=(TrialState.FAIL,)) if f"-{victim.pid}-" in t.user_attrs[WORKER]
    ]
    assert len(killed) == 1
    again = [t for t in study.trials if t.system_attrs.get("failed_trial") == killed[0].number]
    assert [trial.state for trial in again] == [TrialState.COMPLETE]
    assert killed[0].params.items() <= again[0].params.items()
    assert f"{num_trials} finished trials" in output


def open_study(path):
    if path.endswith(".journal"):
        backend = optuna.storages.journal.JournalFileBackend(path)
        return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    engine = {"connect_args": {"timeout": 1}}
    return optuna.load_study(study_name=None, storage=optuna.storages.RDBStorage(path, engine))


def test_the_value_is_the_recovered_gap_on_validation(run_search, labels):
    study = run_search(num_trials=3)
    assert count(study, TrialState.COMPLETE) == 3
    train, validation = TrainingLabels(labels, TrainingSettings(0, 0.3)).parts
    cost, score = validation.inputs.visual_tokens, validation.outcomes.score
    for trial in study.trials:
        predictor = QuestionOnly(inverse_penalties=(trial.params["predictor.inverse_penalty"],))
        value = policy_value(predictor.fit(train, validation).predict(validation.inputs), cost, score)
        mix = policy_value(np.tile(train.outcomes.score.mean(axis=0), (len(score), 1)), cost, score)
        expected = (value - mix) / (policy_value(score, cost, score) - mix)
        assert trial.value == pytest.approx(expected, abs=1e-6)


def test_it_goes_on_where_it_stopped(run_search):
    run_search(num_trials=3)
    numbers = [trial.number for trial in run_search(num_trials=5).trials]
    assert numbers == [0, 1, 2, 3, 4]
    assert len(run_search(num_trials=5).trials) == 5


def test_what_the_configuration_says_is_tried_first(run_search):
    study = run_search(num_trials=2, defaults={"predictor.inverse_penalty": 0.5})
    assert study.trials[0].params == {"predictor.inverse_penalty": 0.5}


def test_other_labels_are_refused(run_search):
    run_search(num_trials=1)
    with pytest.raises(ValueError, match="started with other seed"):
        run_search(num_trials=2, seed=1)
    with pytest.raises(ValueError, match="other objectives"):
        run_search(num_trials=2, objectives=["recovered", "flops"])
    with pytest.raises(ValueError, match="started with other predictor"):
        run_search(num_trials=2, around={"max_words": 3})
    with pytest.raises(ValueError, match="started with other trainer"):
        run_search(num_trials=2, trainer={"limit_train_batches": 1})
    run_search(name="less", num_trials=1, trainer={"limit_train_batches": 1})
    with pytest.raises(ValueError, match="started with other trainer"):
        run_search(name="less", num_trials=2)


@pytest.mark.long
def test_a_trial_that_falls_behind_is_pruned(labels, tmp_path):
    """A learning rate of nearly nothing after three that learn: its epochs are worse than the median."""
    folder = tmp_path / "study"
    study = SharedStudy("rates", folder, objectives=["recovered"]).study
    for rate in (1e-2, 1e-2, 1e-2, 1e-9):
        study.enqueue_trial({"predictor.learning_rate": rate})
    study = search(
        lambda overrides: LearnedPredictor(
            network=functools.partial(CrossAttention, width=16),
            learning_rate=float(overrides[0].split("=")[1]),
            max_epochs=4,
            average_decay=0.5,
        ),
        [Parameter("predictor.learning_rate", "float", low=1e-9, high=1e-2, log=True)],
        labels=labels,
        worker=SharedStudy(
            "rates",
            folder,
            objectives=["recovered"],
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
        ),
        settings=TrainingSettings(0, 0.3),
        num_trials=4,
        make_trainer=make_quiet_trainer,
    )
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED]
    assert list(study.trials[0].intermediate_values) == [0, 1, 2, 3]
    assert max(study.trials[3].intermediate_values) == 2
    assert not list((folder / "trials").iterdir())


def test_no_more_trials_than_asked_for_when_two_take_the_last_place(tmp_path):
    study = SharedStudy("places", tmp_path, objectives=["recovered"], heartbeat=1, grace=5)
    first, second = (study.study.ask() for _ in range(2))
    with pytest.raises(Exception, match="has its 1 trials"):
        study._run_trial(lambda trial: 1.0, 1, second)
    assert study._run_trial(lambda trial: 1.0, 1, first) == 1.0


@pytest.fixture(params=[None, "shared.journal"], ids=["database", "journal"])
def join(request, tmp_path):
    """`join()` is one more worker of a study in `tmp_path`."""
    storage = request.param and str(tmp_path / request.param)
    return functools.partial(
        SharedStudy, "shared", tmp_path, storage=storage, objectives=["recovered"], heartbeat=1, grace=1
    )


def test_a_worker_killed_while_asking_for_a_trial_holds_up_nobody(join, caplog):
    dead = join().study.ask()  # it has neither a worker's name nor a heartbeat
    survivor = join()
    with caplog.at_level("INFO"):
        survivor.run(lambda trial: 1.0, 2)
    assert count(survivor.study, TrialState.COMPLETE) == 2
    (failed,) = survivor.study.get_trials(states=(TrialState.FAIL,))
    assert failed.number == dead.number
    again = [t for t in survivor.study.trials if t.system_attrs.get("failed_trial") == failed.number]
    assert [trial.state for trial in again] == [TrialState.COMPLETE]
    assert "waiting for trials of other workers: 0 (a worker without a name)" in caplog.text


def test_a_trial_that_is_tried_again_is_not_taken_for_one_of_the_dead_worker(join):
    """Whoever takes it is not known before it has written its own name: until then nobody frees it."""
    dead = join()
    trial = dead.study.ask()
    trial.set_user_attr(WORKER, "a dead worker")
    dead._retry(dead.study, dead.study.get_trials()[0])
    taken = dead.study.ask()
    assert WORKER not in taken.user_attrs
    join().free_stale_trials()
    assert dead.study.trials[taken.number].state == TrialState.RUNNING


def test_a_worker_whose_trial_was_taken_over_goes_on(join):
    """As one that was stopped for longer than the grace, and does its next trial when it wakes up."""
    worker = join()
    storage = worker.study._storage

    def objective(trial):
        if trial.number == 0:
            storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        return 1.0

    worker.run(objective, 2)
    states = [trial.state for trial in worker.study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_an_interrupted_trial_is_tried_again_with_its_values(join):
    def interrupt(trial):
        trial.suggest_float("x", 0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        join().run(interrupt, 1)
    assert interrupted.value.__notes__ == ["The interrupted trial will be tried again."]
    worker = join()
    worker.run(lambda trial: trial.suggest_float("x", 0, 1), 1)
    first, second = worker.study.trials
    assert [first.state, second.state] == [TrialState.FAIL, TrialState.COMPLETE]
    assert second.params == first.params


@pytest.mark.long
def test_the_experiment_file_makes_what_the_best_trial_was(run_search, tmp_path, capsys):
    study = run_search(num_trials=3)
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        best = conclude(study, tmp_path, "words", ["recovered"], ["predictor=question_only"])
    assert best == study.best_value
    printed = capsys.readouterr().out
    assert "experiment=tuned_words" in printed
    assert (
        "the validation part that also selected each trial's epochs, trees, neighbours or shares" in printed
    )
    assert {"history.png", "history.pdf"} <= {path.name for path in tmp_path.iterdir()}
    text = (tmp_path / "experiment" / "tuned_words.yaml").read_text()
    assert f"trial {study.best_trial.number} of 3" in text
    assert "the same validation part selected its epochs" in text
    assert OmegaConf.create(text).predictor == {
        "inverse_penalty": study.best_params["predictor.inverse_penalty"]
    }


@pytest.mark.long
def test_groups_values_and_lists_are_written_as_hydra_reads_them(tmp_path):
    overrides = ["predictor=question_only", "predictor.inverse_penalties=[0.3]", "predictor.max_words=3"]
    overrides += ["+predictor.extra=null", "trainer=gpu"]
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "tuned.yaml"
    file.write_text(write_experiment(overrides, ["a comment"]))
    search_path = f"hydra.searchpath=[file://{tmp_path}]"
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("train", [search_path, "experiment=tuned"])
        same = compose("train", overrides)
    assert config.predictor == same.predictor and config.trainer == same.trainer
    assert config.predictor.inverse_penalties == [0.3]


def test_an_experiment_goes_on_from_another(tmp_path):
    overrides = ["experiment=embedded_short", "predictor=mlp", "task=easy_vqa"]
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "tuned.yaml"
    file.write_text(write_experiment([*overrides, "predictor.batch_size=7"], ["a comment"]))
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("run", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=tuned"])
        same = compose("run", [*overrides, "predictor.batch_size=7"])
    for key in ("predictor", "task", "limit", "backbone"):
        assert config[key] == same[key]


@pytest.mark.long
def test_with_two_objectives_every_unbeaten_trial_gets_a_file(run_search, tmp_path):
    study = run_search(num_trials=4, objectives=["recovered", "flops"], name="pareto")
    conclude(study, tmp_path, "pareto", ["recovered", "flops"], ["predictor=question_only"])
    numbers = {path.stem.rpartition("_")[2] for path in (tmp_path / "experiment").glob("tuned_pareto_*.yaml")}
    values = {trial.number: (trial.values[0], -trial.values[1]) for trial in study.trials}
    unbeaten = {
        number
        for number, (gap, thrift) in values.items()
        if not any(a >= gap and b >= thrift and (a, b) != (gap, thrift) for a, b in values.values())
    }
    assert numbers == {str(number) for number in unbeaten}
    assert (tmp_path / "pareto.png").stat().st_size > 0


@pytest.mark.parametrize("name", sorted(path.stem for path in (find_config_dir() / "tune").glob("*.yaml")))
def test_every_space_fits_its_predictor(name):
    """Each value of a space that bears a predictor's name can be set, and makes that predictor."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("tune", [f"predictor={name}", f"tune={name}"])
        space = read_space(OmegaConf.to_container(config.tune.space, resolve=True))
        values = {parameter.name: find_first(parameter) for parameter in space}
        tried = compose("tune", [f"predictor={name}", f"tune={name}", *format_overrides(values)])
        instantiate(tried.predictor, _convert_="all")
    numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
    assert find_defaults(space, tried) == numbers


def find_first(parameter):
    if parameter.choices:
        return parameter.choices[0]
    return int(parameter.low) if parameter.type == "int" else parameter.low


@pytest.mark.parametrize(
    "item", [{"name": "x", "type": "int", "low": 1}, {"name": "x", "type": "choice"}, {"key": "x"}]
)
def test_what_is_no_parameter_is_refused(item):
    with pytest.raises(ValueError, match="parameter"):
        read_space([item])


def test_a_database_without_its_driver_says_what_to_install_and_keeps_the_password(tmp_path):
    with pytest.raises(ValueError, match=r"pip install 'psycopg\[binary\]'") as refused:
        SharedStudy(
            "mine", tmp_path, storage="postgresql+pg8000://me:secret@host/name", objectives=["recovered"]
        )
    assert "postgresql+pg8000://..." in str(refused.value) and "secret" not in str(refused.value)


def test_a_database_that_another_process_makes_at_the_same_time_is_opened(tmp_path, monkeypatch):
    """Such as a dashboard, or a worker whose study has another folder: neither takes our lock."""
    made = []

    def lose_the_race(*arguments, **options):
        storage = RDBStorage(*arguments, **options)
        made.append(storage)
        if len(made) == 1:
            raise IntegrityError("INSERT INTO alembic_version", {}, Exception("UNIQUE constraint failed"))
        return storage

    monkeypatch.setattr("experiments.training.study.RDBStorage", lose_the_race)
    study = SharedStudy("mine", tmp_path, objectives=["recovered"]).study
    assert len(made) == 2 and study.trials == []


@pytest.mark.parametrize("storage", ["nosuch://x", "sqlite:///no/such/folder/x.db", "no url://"])
def test_a_database_that_cannot_be_opened_is_one_line(tmp_path, storage):
    with pytest.raises(Exception) as caught:
        SharedStudy("x", tmp_path, storage=storage, objectives=["recovered"])
    message = describe_mistake(caught.value)
    assert message is not None and len(message.splitlines()) == 1
    assert message.startswith("the database of the study cannot be used: ")
    assert message.endswith(": give another one with study.storage=...")
