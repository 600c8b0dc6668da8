"""Every predictor of conf/predictor trains, is saved and read back, and says the same of the same samples."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from predictor.base import ScalePredictor
from predictor.calibration import Isotonic, Temperature
from tests.paths import ROOT
from tests.predictor.synthetic import make_labels

CONF = ROOT / "conf"
NAMES = sorted(path.stem for path in (CONF / "predictor").glob("*.yaml"))
TRAIN, VALIDATION, CALIBRATION = (make_labels(40, seed) for seed in range(3))


def make_predictor(name, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("train", overrides=[f"predictor={name}", *overrides])
    if "max_epochs" in config.predictor:
        config.predictor.max_epochs = 1
    if "max_trees" in config.predictor:
        config.predictor.max_trees = 10
    if "predictor" in config.predictor:
        config.predictor.predictor.max_trees = 10
    return instantiate(config.predictor, _convert_="all")


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_comes_back_as_it_was(name, tmp_path):
    overrides = ["predictor.scale=9"] if name == "fixed" else []
    predictor = make_predictor(name, *overrides).fit(TRAIN, VALIDATION)
    estimates = predictor.predict(CALIBRATION.inputs)
    assert estimates.min() >= 0 and estimates.max() <= 1
    for calibrator in (None, Temperature(), Isotonic()):
        if calibrator is not None:
            predictor.calibrate(CALIBRATION, calibrator)
        predictor.save(tmp_path)
        loaded = ScalePredictor.load(tmp_path)
        assert type(loaded) is type(predictor) and loaded.features == predictor.features
        np.testing.assert_allclose(
            loaded.predict(CALIBRATION.inputs), predictor.predict(CALIBRATION.inputs), atol=1e-6
        )
        assert loaded.count_flops(TRAIN.inputs) == predictor.count_flops(TRAIN.inputs)
    assert predictor.num_parameters < 3_000_000


def test_an_ablation_is_one_override():
    predictor = make_predictor("cross_attention", "predictor.features.visual=36")
    assert predictor.features.scales == (36,)
    predictor = make_predictor("gradient_boosting", "predictor.features.statistics=[image]")
    assert predictor.features.groups == ("image",)
