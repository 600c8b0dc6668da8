"""Trackers: what a run leaves in each, runs that resume, and what never reaches the tracker of a search."""

import csv
import importlib
import importlib.util
import json
from functools import partial

import lightning
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from PIL import Image

from experiments.command_line.entry_point import describe_mistake
from experiments.command_line.script import find_config_dir
from experiments.results.metrics_json import PICTURE, TABLE
from experiments.results.tracked import show_evaluation
from experiments.training.configured import make_tracker
from experiments.training.space import Parameter
from experiments.training.study import SharedStudy
from experiments.training.trackers.files import Csv, TensorBoard
from experiments.training.trackers.services import Mlflow, Wandb
from experiments.training.trained import TrainingSettings
from experiments.training.trainer import quiet_lightning, train_predictors
from experiments.training.tuning import search
from predictor.classical.question_only import QuestionOnly
from predictor.learned import LearnedPredictor, make_quiet_trainer
from predictor.networks.cross_attention import CrossAttention
from tests.predictor.synthetic import make_labels, write_labels

SETTINGS = TrainingSettings(seed=0, validation_fraction=0.2)
POLICY = {"cost_measure": "tokens", "policy": "mine", "kind": "predictor", "at": None}


def make_predictor():
    return LearnedPredictor(
        network=partial(CrossAttention, width=32), name="small", max_epochs=4, batch_size=40
    )


class Interrupt(lightning.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


def make_interrupted(**arguments):
    return make_quiet_trainer(**arguments | {"callbacks": [*arguments["callbacks"], Interrupt()]})


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "labels"
    write_labels(
        folder, {"train": make_labels(40, 0), "calibration": make_labels(20, 1, split="calibration")}
    )
    return folder


@pytest.fixture
def results(tmp_path):
    """Folder of an evaluation: a metric table with a number, and one value of a curve, and the front."""
    folder = tmp_path / "results"
    folder.mkdir()
    rows = [
        POLICY | {"metric": "mean_to_mix", "position": None, "value": 0.25, "low": 0.1, "high": 0.5},
        POLICY | {"metric": "at_budgets/score", "position": 0, "value": 0.5, "low": 0.4, "high": 0.6},
    ]
    columns = [(name, pa.string()) for name in ("cost_measure", "policy", "kind", "metric", "at")]
    columns += [("position", pa.int32()), *((name, pa.float64()) for name in ("value", "low", "high"))]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), folder / TABLE)
    Image.new("RGB", (8, 6), (200, 0, 0)).save(folder / PICTURE)
    return folder


def train(labels, folder, tracker, make_trainer=make_quiet_trainer):
    quiet_lightning()
    return train_predictors(
        [make_predictor()],
        labels=labels,
        folder=folder,
        settings=SETTINGS,
        make_trainer=make_trainer,
        tracker=tracker,
    )


def read_curve(run, metric):
    with (run / "curves.csv").open(encoding="utf-8") as file:
        return [(row["step"], row["value"]) for row in csv.DictReader(file) if row["metric"] == metric]


@pytest.mark.long
def test_resumed_training_continues_its_curves(labels, tmp_path):
    train(labels, tmp_path / "whole", Csv(folder=tmp_path / "csv"))
    (whole,) = (tmp_path / "csv" / "train" / "small").iterdir()
    interrupted = Csv(folder=tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        train(labels, tmp_path / "halves", interrupted, make_interrupted)
    (run,) = (tmp_path / "interrupted" / "train" / "small").iterdir()
    assert len(read_curve(run, "validation_value")) == 2
    (record,) = train(labels, tmp_path / "halves", interrupted)
    assert list(run.parent.iterdir()) == [run]
    curve = read_curve(run, "validation_value")
    assert len(curve) == 4 and curve == read_curve(whole, "validation_value")
    assert read_curve(run, "validation/value") == [("", str(record.value))]
    configuration = json.loads((run / "configuration.json").read_text(encoding="utf-8"))
    assert configuration == json.loads(json.dumps(record.identity))
    assert not list(tmp_path.rglob("*.run"))


@pytest.mark.long
def test_every_trial_of_a_search_is_a_run_without_the_test_split(labels, tmp_path):
    study = search(
        lambda overrides: QuestionOnly(inverse_penalties=(float(overrides[0].split("=")[1]),)),
        [Parameter("predictor.inverse_penalty", "float", low=0.1, high=10)],
        labels=labels,
        worker=SharedStudy(
            "words",
            tmp_path / "study",
            objectives=["recovered"],
            sampler=optuna.samplers.RandomSampler(seed=0),
        ),
        settings=TrainingSettings(0, 0.3),
        num_trials=2,
        tracker=Csv(folder=tmp_path / "csv"),
    )
    for trial in study.trials:
        (run,) = (tmp_path / "csv" / "tune" / f"words-trial-{trial.number}").iterdir()
        assert read_curve(run, "validation/recovered") == [("", str(trial.value))]
        with (run / "curves.csv").open(encoding="utf-8") as file:
            assert all(row["metric"].startswith("validation/") for row in csv.DictReader(file))
        assert json.loads((run / "configuration.json").read_text())["parameters"] == trial.params


def test_evaluation_is_shown_as_numbers_table_and_front(results, tmp_path):
    show_evaluation(Csv(folder=tmp_path / "csv"), results, name="mine", configuration={"seed": 3})
    (run,) = (tmp_path / "csv" / "evaluate" / "mine").iterdir()
    assert (run / "curves.csv").read_text().splitlines() == [
        "step,metric,value",
        ",test/mine/mean_to_mix,0.25",
    ]
    assert (run / "metric_table.csv").read_text().splitlines() == [
        '"cost_measure","policy","kind","metric","at","value","low","high"',
        '"tokens","mine","predictor","mean_to_mix",,0.25,0.1,0.5',
    ]
    assert (run / "front.png").read_bytes() == (results / PICTURE).read_bytes()


def test_tensorboard_has_curves_configuration_table_and_front(labels, results, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = TensorBoard(folder=tmp_path / "events")
    (record,) = train(labels, tmp_path / "predictors", tracker)
    show_evaluation(tracker, results, name="mine", configuration={"seed": 3})

    def read(group, name):
        (run,) = (tmp_path / "events" / group / name).iterdir()
        return accumulators.EventAccumulator(str(run)).Reload()

    trained, evaluated = read("train", "small"), read("evaluate", "mine")
    assert len(trained.Scalars("validation_value")) == 4
    assert trained.Scalars("validation/value")[0].value == pytest.approx(record.value)
    assert "configuration/text_summary" in trained.Tags()["tensors"]
    assert evaluated.Scalars("test/mine/mean_to_mix")[0].value == 0.25
    (image,) = evaluated.Images("front")
    assert (image.width, image.height) == (8, 6)
    (table,) = evaluated.Tensors("metric_table/text_summary")
    assert (
        b"| tokens | mine | predictor | mean_to_mix |  | 0.25 | 0.1 | 0.5 |"
        in table.tensor_proto.string_val[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("module, tracker_class", [("wandb", Wandb), ("mlflow", Mlflow)])
def test_services_keep_runs_in_a_folder(module, tracker_class, labels, results, tmp_path):
    pytest.importorskip(module)
    tracker = tracker_class(folder=tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        train(labels, tmp_path / "predictors", tracker, make_interrupted)
    train(labels, tmp_path / "predictors", tracker)
    show_evaluation(tracker, results, name="mine", configuration={"seed": 3})
    if module == "wandb":
        runs = [path.name.split("-", 3)[3] for path in (tmp_path / "runs" / "wandb").glob("offline-run-*")]
        assert len(runs) == 3 and len(set(runs)) == 2  # both halves of the training have one id
        assert len(list((tmp_path / "runs").rglob("front_*.png"))) == 1
        assert len(list((tmp_path / "runs").rglob("metric_table_*.json"))) == 1
        return
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tokenscale")
    evaluated, trained = client.search_runs([experiment.experiment_id])
    assert len(client.get_metric_history(trained.info.run_id, "validation_value")) == 4
    assert evaluated.data.metrics == {"test/mine/mean_to_mix": 0.25}
    artifacts = {file.path for file in client.list_artifacts(evaluated.info.run_id)}
    assert artifacts == {"front.png", "metric_table.csv"}
    assert [run.info.status for run in (evaluated, trained)] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize(
    "choice, way_out",
    [
        ("tensorboard", "tensorboard is not installed: pip install 'tokenscale[tensorboard]'"),
        ("wandb", "wandb is not installed: pip install 'tokenscale[wandb]'"),
        ("mlflow", "mlflow is not installed: pip install 'tokenscale[mlflow]'"),
        ("trackio", "trackio is not installed: pip install trackio (it needs pillow<13, so it is no extra)"),
    ],
)
def test_missing_package_is_named(choice, way_out, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with initialize_config_dir(version_base="1.3", config_dir=str(find_config_dir())):
        config = compose("train", [f"logger={choice}", "paths.outputs=outputs"])
    with pytest.raises(InstantiationException) as refused:
        make_tracker(config)
    assert describe_mistake(refused.value) == way_out


def test_no_tracker_by_default():
    with initialize_config_dir(version_base="1.3", config_dir=str(find_config_dir())):
        assert all(make_tracker(compose(name)) is None for name in ("train", "tune", "run", "evaluate"))
