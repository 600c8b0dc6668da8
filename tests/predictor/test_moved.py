"""A folder that names classes by the modules of an earlier version opens, and classes of strangers do not."""

import functools
import importlib

import numpy as np
import pytest

from predictor.base import ScalePredictor
from predictor.classical.blend import Blend
from predictor.classical.boosting import GradientBoosting
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.files import FolderError
from predictor.moved import CLASSES, MODULES, find_name
from tests.predictor.synthetic import make_labels

FORMER = {module: former for former, module in MODULES.items()}


def test_a_predictor_of_an_earlier_version_opens(tmp_path):
    train, validation, test = make_labels(60, seed=0), make_labels(30, seed=1), make_labels(30, seed=2)
    trees = functools.partial(GradientBoosting, features=Features(visual=1), max_trees=3, name="trees")
    blend = Blend(first=QuestionOnly, second=trees, shares=(0.5,)).fit(train, validation)
    blend.save(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    for module in ("predictor.classical.blend", "predictor.classical.boosting"):
        assert f'"{module}.' in text
        text = text.replace(f'"{module}.', f'"{FORMER[module]}.')
    config.write_text(text.replace('"predictor.classical.', '"predictor.'))
    loaded = ScalePredictor.load(tmp_path)
    assert np.array_equal(loaded.predict(test.inputs), blend.predict(test.inputs))
    config.write_text(text.replace('"predictor.blend.Blend"', '"subprocess.Popen"'))
    with pytest.raises(FolderError, match=r"subprocess\.Popen, which is not one of tokenscale's own classes"):
        ScalePredictor.load(tmp_path)


@pytest.mark.parametrize("module", MODULES.values())
def test_every_module_is_where_the_table_says(module):
    importlib.import_module(module)


def test_names_of_methods_and_of_other_modules():
    assert find_name("predictor.hybrid.Hybrid.fit") == "predictor.cascades.hybrid.Hybrid.fit"
    for today in ("predictor.networks.pooled.MLP", "m3_backbone.llava.backbone.LlavaBackbone"):
        assert find_name(today) == today
    assert find_name("m3_backbone.llava.LlavaBackbone") == "m3_backbone.llava.backbone.LlavaBackbone"


@pytest.mark.parametrize(("former", "name"), CLASSES.items())
def test_every_class_is_where_the_table_says(former, name):
    assert find_name(former) == name
    module, _, class_name = name.rpartition(".")
    assert hasattr(importlib.import_module(module), class_name)
