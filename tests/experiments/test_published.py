"""Ours beside the published values, on labels that are named like theirs."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.published import find_published
from experiments.reporting.findings import Findings, collect_extras
from experiments.reporting.published_table import tabulate_published
from experiments.reporting.summary import list_tables
from tests.experiments.synthetic import make_outcomes
from tests.experiments.test_cli import CONF, compose_run
from tests.experiments.test_evaluate import compare


def test_values_are_those_of_the_paper():
    plain, tiled = find_published("m3_llava_7b", "gqa"), find_published("m3_llava_next_7b", "textvqa")
    assert plain is not None and tiled is not None
    assert plain.scores == {576: 0.619, 144: 0.613, 36: 0.603, 9: 0.58, 1: 0.526}
    assert plain.oracle_score is None
    assert tiled.scores[576] == 0.6313 and tiled.scores[1] == 0.3892
    assert (tiled.oracle_scale, tiled.oracle_score) == (31.39, 0.7051)
    assert "2405.17430" in plain.source
    assert find_published("m3_llava_7b", "textvqa") is None and find_published("tiny_m3", "gqa") is None


@pytest.mark.parametrize(
    ("backbone", "tasks"),
    [
        ("m3_llava_7b", {"gqa", "pope", "vizwiz"}),
        ("m3_llava_next_7b", {"chartqa", "docvqa", "pope", "scienceqa", "textvqa"}),
    ],
)
def test_names_are_those_of_the_configurations(backbone, tasks):
    """Of the tasks that have a configuration, exactly these have published values."""
    config = compose_run(f"backbone={backbone}")
    known = {path.stem for path in CONF.glob("task/*.yaml")}
    assert {task for task in known if find_published(config.backbone.name, task)} >= tasks
    for task in tasks:
        assert compose_run(f"task={task}").task.name == task


def test_ours_stand_beside_theirs():
    """Scores of 0.6 at 144, 0.3 at 1 on every image: the differences can be worked out by hand."""
    calibration, test = make_outcomes("calibration", 10), make_outcomes("test", 20, questions_per_image=10)
    score = np.zeros(test.score.shape, dtype=np.float32)
    for column, tenths in enumerate((3, 4, 5, 6)):
        score[np.arange(len(test)) % 10 < tenths, column] = 1
    comparison = compare(calibration, replace(test, score=score))
    published = find_published("m3_llava_next_7b", "textvqa")
    assert published is not None
    table = tabulate_published(comparison, published)
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["scale 1", "scale 9", "scale 36", "scale 144", "oracle, authors' convention"]
    assert rows["scale 144"][2:] == ("60.0 [60.0, 60.0]", "62.6", "-2.6 [-2.6, -2.6]", "no")
    assert rows["scale 1"][3:5] == ("38.9", "-8.9 [-8.9, -8.9]")
    # Of ten questions three need scale 1, one each 9, 36 and 144, four are charged 1: 19.6 tokens.
    assert rows["oracle, authors' convention"][:4] == ("19.6", "31.39", "60.0 [60.0, 60.0]", "70.5")
    assert "2405.17430" in table.caption

    findings = Findings(comparison, published=published)
    assert table in list_tables(findings)
    assert collect_extras(findings)["published"]["scores"]["576"] == 0.6313
    assert not collect_extras(Findings(comparison))
