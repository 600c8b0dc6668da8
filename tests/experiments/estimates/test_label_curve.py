"""The quotation of the label curve, from a file of known numbers."""

import json

import pytest

from experiments.estimates.label_curve import describe_label_curve, quote_label_curve


@pytest.fixture
def measured(tmp_path):
    common = {"soft": False, "questions_per_image": None, "num_images": [100, 400], "value": [0.2, 0.4]}
    fit = {"limit": 0.6, "loss": 4.0, "exponent": 0.5}
    curves = [
        {**common, "predictor": "fitted", "fit": fit},
        {**common, "predictor": "measured", "fit": None},
        {**common, "predictor": "soft", "soft": True, "fit": None},
        {**common, "predictor": "few", "questions_per_image": 2, "fit": None},
    ]
    path = tmp_path / "label_curve.json"
    path.write_text(json.dumps({"backbone": "b", "task": "t", "curves": curves}))
    return path


def test_shares_are_on_the_curve_and_never_beyond_what_was_measured(measured):
    # 0.6 - 4 / sqrt(200); half way between 100 and 400 on a logarithmic scale.
    quoted, above, below = (quote_label_curve(number, measured) for number in (200, 100_000, 3))
    assert quoted is not None and above is not None and below is not None
    assert quoted["shares"] == pytest.approx({"fitted": 0.6 - 4 / 200**0.5, "measured": 0.3})
    assert (above["at"], below["at"]) == (400, 100)
    assert quote_label_curve(0, measured) is None


def test_the_sentence_says_where_it_was_measured(measured, tmp_path):
    text = str(describe_label_curve(1000, measured))
    assert "with 400 labelled training images, the most that were measured, not 1,000" in text
    assert "fitted 40%, measured 40% (measured with b on t; other backbones and tasks differ)" in text
    assert describe_label_curve(100, tmp_path / "missing.json") is None
