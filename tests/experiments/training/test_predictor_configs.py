"""Every predictor of conf/predictor trains, is saved and read back, and says the same of the same samples."""

from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from m3_backbone.outcomes.labels import Labels, VisualTokens
from predictor.base import ScalePredictor
from predictor.calibration import Isotonic, Temperature
from predictor.features import Features
from tests.paths import ROOT
from tests.predictor.synthetic import make_labels, with_asking, with_states, with_thumbnails

CONF = ROOT / "conf"
NAMES = sorted(path.stem for path in (CONF / "predictor").glob("*.yaml"))
TRAIN, VALIDATION, CALIBRATION = (
    with_asking(with_thumbnails(with_states(make_labels(40, seed)))) for seed in range(3)
)


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


@pytest.mark.long
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


def make_ragged(labels, family, counts, *, ladder=(70, 140, 280)):
    """Labels of a backbone that stores its coarsest scale only, with `counts` tokens in turn per image."""
    tokens = labels.inputs.visual[9].tokens
    ragged = [
        np.resize(image, (counts[row % len(counts)], image.shape[1])) for row, image in enumerate(tokens)
    ]
    visual = {ladder[0]: VisualTokens.pad(ragged)}
    cost = np.array([counts[row % len(counts)] for row in labels.inputs.image_row], dtype=np.int32)
    costs = {"visual_tokens": np.stack([cost, 2 * cost, 4 * cost], axis=1)}
    inputs = replace(labels.inputs, scales=ladder, visual=visual, family=family, **costs)
    return Labels(inputs, replace(labels.outcomes, scales=ladder, family=family, **costs))


@pytest.mark.parametrize("family", ["native", "pooled"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.long
def test_it_takes_any_number_of_visual_tokens(name, family, tmp_path):
    """From 3 x 5 to 9 x 7 tokens in training, and more or less later; defaults name no scale of M3."""
    train, validation = (make_ragged(part, family, (15, 63, 24)) for part in (TRAIN, VALIDATION))
    overrides = ["predictor.scale=140"] if name == "fixed" else []
    predictor = make_predictor(name, *overrides).fit(train, validation)
    assert predictor.features.scales in ((), (70,))
    for counts in ((80, 15, 4), (63,), (5,)):
        others = make_ragged(CALIBRATION, family, counts)
        together = predictor.predict(others.inputs)
        assert np.isfinite(together).all() and together.shape == (len(others), 3)
        assert predictor.count_flops(others.inputs) >= 0
        predictor.save(tmp_path)
        loaded = ScalePredictor.load(tmp_path)
        assert loaded.features == predictor.features
        np.testing.assert_allclose(loaded.predict(others.inputs), together, atol=1e-6)
    if name in ("random_choice", "random_features"):
        return
    alone = [predictor.predict(others.inputs.select([row])) for row in range(4)]
    # Neighbours are the same in every batch, also where several are equally far away.
    tolerance = 0 if name == "nearest_neighbours" else 1e-5
    np.testing.assert_allclose(np.concatenate(alone), together[:4], rtol=0, atol=tolerance)


@pytest.mark.long
def test_positions_are_those_among_the_stored_scales():
    predictor = make_predictor("blend", "predictor.first.features.position=0")
    predictor.fit(TRAIN, VALIDATION)
    parts = [Features(visual=scale, question=True) for scale in (1, 9)]
    assert predictor.first.keywords["features"] == parts[0]
    assert predictor.second.keywords["features"].scales == (9,)
    assert make_predictor("avg_router").fit(TRAIN, VALIDATION).features.scales == (1, 9, 36)
    native = make_ragged(TRAIN, "native", (15, 24)), make_ragged(VALIDATION, "native", (15, 24))
    assert make_predictor("avg_router").fit(*native).features.scales == (70,)


def test_an_ablation_is_one_override():
    predictor = make_predictor("cross_attention", "predictor.features.visual=36")
    assert predictor.features.scales == (36,)
    predictor = make_predictor("gradient_boosting", "predictor.features.visual=[]")
    assert predictor.features.scales == ()
    predictor = make_predictor("gradient_boosting", "predictor.features.statistics=[image]")
    assert predictor.features.groups == ("image",)
