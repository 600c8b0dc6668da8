"""What a predictor has learned: `state_dict`, and the folders that earlier versions wrote."""

import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import predictor
from predictor import folder as folders
from predictor.base import FitContext, ScalePredictor
from predictor.calibration import Calibrator, Isotonic, Temperature
from predictor.classical.baselines import BestScalePerTask, Mix
from predictor.classical.blend import Blend
from predictor.classical.boosting import GradientBoosting
from predictor.classical.controls import ShuffledLabels
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.base import Network
from predictor.networks.pooled import MLP
from predictor.objectives import Objective
from tests.paths import ROOT
from tests.predictor.synthetic import make_labels

# Written by the version before `state_dict` was public: fitted on the labels of seeds 0 to 2.
SAVED = ROOT / "tests" / "fixtures" / "predictors_v1"
TRAIN, VALIDATION, CALIBRATION, TEST = (make_labels(size, seed) for seed, size in enumerate((40, 20, 30, 10)))
SMALL_NETWORK: Any = functools.partial(
    LearnedPredictor, network=functools.partial(MLP, width=8, num_layers=1), max_epochs=1
)
SMALL_TREES: Any = functools.partial(
    GradientBoosting, features=Features(visual=1, statistics=["tower"]), max_trees=5
)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # Networks compute in single precision, whose rounding differs between processors: by 2.8e-6 between the
    # one that wrote the estimates and an AMD EPYC.
    [("network", 1e-5), ("blend", 1e-5), ("control", 1e-9), ("neighbours", 1e-9)],
)
def test_a_folder_of_an_earlier_version_loads_and_is_written_alike(name, tolerance, tmp_path):
    loaded = ScalePredictor.load(SAVED / name)
    estimates = load_file(SAVED / "estimates.safetensors")[name]
    np.testing.assert_allclose(loaded.predict(TEST.inputs), estimates, rtol=0, atol=tolerance)
    loaded.save(tmp_path)
    assert (tmp_path / "config.json").read_text("utf-8") == (SAVED / name / "config.json").read_text("utf-8")
    saved, former = (load_file(folder / "weights.safetensors") for folder in (tmp_path, SAVED / name))
    assert saved.keys() == former.keys()
    for key, array in former.items():
        np.testing.assert_array_equal(saved[key], array, err_msg=key, strict=True)


@pytest.mark.parametrize(
    "make",
    [
        QuestionOnly,
        BestScalePerTask,
        SMALL_NETWORK,
        functools.partial(Blend, first=SMALL_NETWORK, second=SMALL_TREES, shares=(0.5,)),
        functools.partial(ShuffledLabels, predictor=SMALL_TREES, name="shuffled"),
    ],
)
@pytest.mark.parametrize("calibrator", [None, Temperature(), Isotonic()])
def test_a_state_makes_an_equal_predictor(make, calibrator):
    fitted = make().fit(TRAIN, VALIDATION)
    if calibrator is not None:
        fitted.calibrate(CALIBRATION, calibrator)
    state = fitted.state_dict()
    arrays = state["arrays"]
    json.dumps({key: value for key, value in state.items() if key != "arrays"})
    assert state["scales"] == [1, 9, 36] and state["fingerprints"] == TRAIN.outcomes.fingerprints
    assert all(isinstance(array, np.ndarray) for array in arrays.values())

    other = make().load_state_dict(state)
    np.testing.assert_array_equal(other.predict(TEST.inputs), fitted.predict(TEST.inputs))
    assert other.features == fitted.features and other.num_parameters == fitted.num_parameters


def test_a_state_without_a_calibrator_removes_one():
    plain = Mix().fit(TRAIN, VALIDATION)
    calibrated = Mix().fit(TRAIN, VALIDATION).calibrate(CALIBRATION, Temperature())
    expected = plain.predict(TEST.inputs)
    assert not np.array_equal(calibrated.predict(TEST.inputs), expected)
    calibrated.load_state_dict(plain.state_dict())
    np.testing.assert_array_equal(calibrated.predict(TEST.inputs), expected)


def test_there_is_no_state_before_a_fit():
    with pytest.raises(ValueError, match="question_only is not fitted"):
        QuestionOnly().state_dict()


class Named(Temperature):
    """A calibrator of another package."""


def test_a_calibrator_of_another_package_has_to_be_trusted():
    state = Mix().fit(TRAIN, VALIDATION).calibrate(CALIBRATION, Named()).state_dict()
    with pytest.raises(
        ValueError, match=r"this state is built from .*Named, which is not one of tokenscale's"
    ):
        Mix().load_state_dict(state)


class Average(ScalePredictor):
    """A meta-estimator that uses public methods alone: the mean of two predictors."""

    def __init__(self, *, first, second, name="average"):
        self.first, self.second, self.name = first, second, name
        self._parts = [first(), second()]

    def _fit(self, train, validation, context: FitContext):
        for part in self._parts:
            part.fit(train, validation).calibrate(validation, Temperature())

    def _predict(self, inputs):
        return np.mean([part.predict(inputs) for part in self._parts], axis=0)

    def _get_state(self):
        states = [part.state_dict() for part in self._parts]
        arrays = {
            f"{number}.{name}": array
            for number, state in enumerate(states)
            for name, array in state["arrays"].items()
        }
        return arrays, {"parts": [{**state, "arrays": None} for state in states]}

    def _set_state(self, arrays, state):
        for number, (part, content) in enumerate(zip(self._parts, state["parts"], strict=True)):
            own = {
                name.removeprefix(f"{number}."): array
                for name, array in arrays.items()
                if name.startswith(f"{number}.")
            }
            part.load_state_dict({**content, "arrays": own})


def test_a_meta_estimator_keeps_the_calibrators_of_its_parts():
    make = functools.partial(Average, first=QuestionOnly, second=SMALL_TREES)
    fitted = make().fit(TRAIN, VALIDATION)
    other = make().load_state_dict(fitted.state_dict())
    np.testing.assert_array_equal(other.predict(TEST.inputs), fitted.predict(TEST.inputs))


def list_classes():
    """All classes that modules of the package define, by their dotted names."""
    root = Path(inspect.getfile(predictor)).parent
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        if path.stem in ("__init__", "lmms_model"):  # the latter needs lmms-eval
            continue
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, type) and value.__module__ == name:
                yield f"{name}.{value.__name__}", value


def test_a_folder_may_name_concrete_predictors_networks_objectives_calibrators_and_features_alone():
    bases = (ScalePredictor, Network, Objective, Calibrator, Features)
    names = dict(list_classes())
    assert len(names) > 50
    for name, kind in names.items():
        assert folders.is_own(name) == (issubclass(kind, bases) and not inspect.isabstract(kind)), name


@pytest.mark.parametrize(
    "name",
    [
        "predictor.policy.pricing.PriceList",
        "predictor.adaptive.model.AdaptiveM3",
        "predictor.encoders.TransformerEncoder",
        "predictor.training.ScaleModule",
        "predictor.classical.controls.Control",  # abstract
        "predictor.classical.blend.ScalePredictor",  # imported there
        "predictor.objectives.Correctness",  # a package, which only imports it
        "predictor.objectives.__init__.Correctness",
        "predictor.learned.LearnedPredictor.load",
        "predictor.learned",
        "predictor",
        "LearnedPredictor",
        "m3_backbone.llava.backbone.LlavaBackbone",
        "tests.predictor.test_state.Average",
        f"predictor.{'x' * 10_000}.Mix",
    ],
)
def test_a_folder_may_not_name(name):
    assert not folders.is_own(name)
