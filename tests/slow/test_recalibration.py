"""Loss and visual tokens on scenes_shifted before and after recalibration on 50, 200 and 500 images of it.

It needs labels of `tiny_m3` on `scenes` and on `scenes_shifted` (500 calibration images) and a predictor that
was trained on `scenes`, in the store TOKENSCALE_STORE:

    tokenscale run
    tokenscale label task=scenes_shifted task.num_images='{train: 16, calibration: 500, test: 500}'

The table is printed (`-s`). The predictor is trained on `scenes` only; the test split of `scenes_shifted` is
read by a recorded evaluation, after everything is fitted.
"""

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.script import find_config_dir
from experiments.evaluation.guarantee import measure_loss
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.held_out import EvaluationRecorder
from experiments.publish import main as publish
from experiments.recalibrate import main as recalibrate
from experiments.reporting.numbers import format_difference, format_tokens
from experiments.reporting.tables import format_table
from predictor.adaptive.model import AdaptiveVLM
from predictor.policy.front import choose

STORE = os.environ.get("TOKENSCALE_STORE", "")
LABELS = Path(STORE) / "labels" / "tiny_m3" / "scenes_shifted"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (STORE and LABELS.is_dir()), reason="needs labels in TOKENSCALE_STORE"),
]


def run(command, name, *overrides):
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose(name, list(overrides))
    command(config)


def test_recalibration_mends_prices_on_another_task(tmp_path):
    trained = os.environ.get("RECALIBRATION_TRAINED")
    chosen = [f"trained={trained}"] if trained else []
    run(publish, "publish", f"folder={tmp_path / 'model'}", *chosen)
    folders = {"as published on scenes": tmp_path / "model"}
    for calibrator in (None, "isotonic"):
        for number in (50, 200, 500):
            name = f"{number} images" + ("" if calibrator is None else f", {calibrator}")
            folders[name] = tmp_path / f"{number}_{calibrator}"
            run(
                recalibrate,
                "recalibrate",
                f"folder={tmp_path / 'model'}",
                f"output={folders[name]}",
                "task=scenes_shifted",
                f"num_images={number}",
                *([] if calibrator is None else [f"calibrator={calibrator}"]),
            )
    models = {name: AdaptiveVLM.from_pretrained(folder) for name, folder in folders.items()}
    recorder = EvaluationRecorder(tmp_path / "evaluations", "tests/slow/test_recalibration.py")
    test, _ = recorder.open_test(LABELS, {name: str(number) for number, name in enumerate(models)})
    rows = [["prices", "point", "stated bound, points", "visual tokens", "loss to the finest scale, points"]]
    losses = {}
    for name, model in models.items():
        estimates = model.predictor.predict(test.inputs)
        for point_name, point in {"default": model.prices.default, **model.prices.named}.items():
            choice = choose(estimates, test.inputs.visual_tokens, point.price, unit=point.unit)
            loss = measure_loss(choice, test.outcomes, None, bootstrap=Bootstrap(1000))
            losses[name, point_name] = float(loss.drop.value)
            bound = "2.0" if point_name == "guarantee" else "-"
            tokens = format_tokens(loss.cost.value)
            rows.append([name, point_name, bound, tokens, format_difference(loss.drop)])
    print("\n" + format_table(rows))
    # A guarantee of 0.9 may fail; that of 500 images is far from it in our runs.
    assert losses.get(("500 images", "guarantee"), 0) <= 0.02
