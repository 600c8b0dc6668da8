"""The exercise of docs/new_predictor.md, as it stands there: one Python file, one YAML, no other file."""

import functools
import re
import sys
from importlib import import_module

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import predictor
from experiments import train
from experiments.command_line.script import find_config_dir
from experiments.training.configured import open_configured
from experiments.training.trained import TrainingSettings, find_trained, load_trained, read_record
from experiments.training.trainer import train_predictors
from predictor.base import ScalePredictor
from predictor.files import FolderError
from predictor.policy.front import policy_value
from predictor.policy.pricing import PriceList
from tests.pages import write_blocks
from tests.paths import ROOT
from tests.predictor.synthetic import blind_estimates, make_labels, write_labels

PAGE = ROOT / "docs" / "new_predictor.md"


@pytest.fixture
def exercise(tmp_path, monkeypatch):
    """Both files in a folder of their own, found there as if they were in their places."""
    write_blocks(PAGE, tmp_path)
    monkeypatch.setattr(predictor, "__path__", [*predictor.__path__, str(tmp_path / "predictor")])
    yield tmp_path
    sys.modules.pop("predictor.informative_word", None)


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / "labels"
    sizes = {"train": 200, "calibration": 80}
    parts = {split: make_labels(size, seed, split=split) for seed, (split, size) in enumerate(sizes.items())}
    write_labels(folder, parts)
    return folder


def test_the_exercise_trains_and_tells_what_the_question_tells(exercise, labels, tmp_path, capsys):
    """Its estimates are worth as much as the best that can be said without looking at the picture."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose(
            "train",
            [
                *(
                    "predictor=informative_word",
                    "~backbone",
                    f"hydra.searchpath=[file://{exercise / 'conf'}]",
                ),
                *(f"paths.labels={labels}", f"paths.predictors={tmp_path / 'predictors'}"),
            ],
        )
    train.main(config)
    assert re.search(r"^informative_word ", capsys.readouterr().out, re.M)

    (path,) = (tmp_path / "predictors" / "informative_word").glob("*/manifest.json")
    home = path.parent
    record = read_record(home)
    fresh = make_labels(300, seed=9, split="test")
    with pytest.raises(FolderError, match=r"built from predictor\.informative_word\.InformativeWord"):
        ScalePredictor.load(home)
    loaded = ScalePredictor.load(home, trust=["predictor.informative_word"])
    worth = functools.partial(policy_value, cost=fresh.inputs.visual_tokens, score=fresh.outcomes.score)
    mix = np.tile(fresh.outcomes.score.mean(axis=0), (len(fresh), 1))
    found, best, nothing = worth(loaded.predict(fresh.inputs)), worth(blind_estimates(fresh)), worth(mix)
    assert found == pytest.approx(best, abs=0.01)
    assert found > nothing + 0.02
    assert record is not None and record.recovered > 0.1
    assert PriceList.load(home).points

    # A command trusts what it was configured with, and loads it.
    (opened, *_) = open_configured(config)
    assert opened.folder == home
    by_arguments = find_trained(
        home.parent.parent, instantiate(config.predictor, _convert_="all"), labels, seed=0
    )
    named = find_trained(
        *(home.parent.parent, instantiate(config.predictor, _convert_="all"), labels),
        seed=0,
        folder=str(home),
    )
    assert type(by_arguments.predictor) is type(named.predictor) is type(loaded)
    with pytest.raises(FolderError, match=r"built from predictor\.informative_word\.InformativeWord"):
        load_trained(home)


def test_it_is_left_alone_when_it_is_up_to_date_and_trained_anew_with_other_arguments(
    exercise, labels, tmp_path
):

    made = import_module("predictor.informative_word").InformativeWord
    settings = TrainingSettings(seed=0, validation_fraction=0.2)
    stamps = []
    for priors in ((1.0,), (1.0,), (5.0,)):
        predictor = made(priors=priors)
        train_predictors([predictor], labels=labels, folder=tmp_path / "p", settings=settings)
        paths = (tmp_path / "p" / "informative_word").glob("*/manifest.json")
        stamps.append(max(path.stat().st_mtime_ns for path in paths))
    assert stamps[0] == stamps[1] < stamps[2]
