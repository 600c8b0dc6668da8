"""docs/serving.md says of every predictor whether it can choose scales in front of an engine."""

import re

import pytest

from tests.experiments.training.test_predictor_configs import NAMES, make_predictor
from tests.paths import ROOT


def read_table():
    text = (ROOT / "docs" / "serving.md").read_text()
    return dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", text, re.M))


def test_the_table_has_every_predictor():
    assert sorted(read_table()) == NAMES


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_class_says(name):
    overrides = ["predictor.scale=9"] if name == "fixed" else []
    predictor = make_predictor(name, *overrides)
    try:
        reads_backbone = predictor.reads_backbone
    except ValueError as error:  # visual tokens at a position of the ladder, which a fit replaces by scales
        assert "name positions of scales" in str(error)
        reads_backbone = True
    assert read_table()[name] == ("no" if reads_backbone else "yes")
