"""Ours beside the published values, on labels that are named like theirs."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from experiments.evaluation.published import _PUBLISHED, find_published, relate
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.findings import Findings
from experiments.reporting.published_table import tabulate_published
from experiments.results.metrics_json import collect_extras
from experiments.tasks.base import OfficialSplit, find_official_split
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.experiments.evaluation.test_evaluate import compare
from tests.experiments.test_cli import CONF, compose_run


def test_values_are_those_of_the_paper():
    plain, tiled = find_published("m3_llava_7b", "gqa"), find_published("m3_llava_next_7b", "textvqa")
    assert plain is not None and tiled is not None
    assert plain.scores == {576: 0.619, 144: 0.613, 36: 0.603, 9: 0.58, 1: 0.526}
    assert plain.oracle_score is None
    assert tiled.scores[576] == 0.6313 and tiled.scores[1] == 0.3892
    assert (tiled.oracle_scale, tiled.oracle_score) == (31.39, 0.7051)
    assert "2405.17430" in plain.source
    assert find_published("m3_llava_7b", "textvqa") is None and find_published("tiny_m3", "gqa") is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "tasks"),
    [
        ("m3_llava_7b", {"gqa", "pope", "vizwiz"}),
        ("m3_llava_next_7b", {"ai2d", "chartqa", "docvqa", "pope", "scienceqa", "textvqa"}),
    ],
)
def test_names_are_those_of_the_configurations(backbone, tasks):
    """Of the tasks that have a configuration, these and their variants of lmms-eval have published values."""
    config = compose_run(f"backbone={backbone}")
    known = {path.stem for path in CONF.glob("task/*.yaml")}
    variants = {f"{task}_lmms" for task in tasks - {"ai2d"}}
    assert {task for task in known if find_published(config.backbone.name, task)} == tasks | variants
    # No row for a task that could never be shown.
    assert {task for name, task in _PUBLISHED if name == backbone} == tasks
    for task in tasks | variants:
        own = compose_run(f"task={task}").task
        assert own.name == task
        published = find_published(config.backbone.name, task)
        assert published is not None
        # VizWiz's test answers are not public.
        assert (own.official_split == published.split) == (not task.startswith("vizwiz"))


@dataclass
class SplitOnly:
    """As much of a task as says what its test split is."""

    official_split: OfficialSplit


@pytest.mark.parametrize(
    ("official_split", "limit", "relation"),
    [
        (OfficialSplit("validation", is_whole=True), None, "same"),
        (OfficialSplit("validation", is_whole=True), 100, "part"),
        (OfficialSplit("validation", is_whole=False), None, "part"),
        (OfficialSplit("test", is_whole=True), None, "other"),
        (OfficialSplit(), None, "unknown"),
    ],
)
def test_agreement_is_judged_on_the_split_of_the_published_values_only(official_split, limit, relation):
    published = relate(find_published("m3_llava_next_7b", "textvqa"), SplitOnly(official_split), limit)  # type: ignore[arg-type]
    assert published is not None and published.relation == relation
    calibration, test = make_outcomes("calibration", 10), make_outcomes("test", 20)
    comparison = compare(calibration, test)
    table = tabulate_published(comparison, published)
    assert ("agrees" in table.header) == (relation == "same")
    assert all(len(row) == len(table.header) for row in table.rows)
    told = {
        "same": "our test split is 80 questions, the official split (validation); ",
        "part": "80 questions, a part of the official split (validation), so agreement is not judged",
        "other": "80 questions of another official split (test, theirs: validation), so",
        "unknown": "80 questions of an official split unnamed by the task (theirs: validation), so",
    }
    assert told[relation] in table.caption
    extras = collect_extras((), {}, published)
    assert extras["published"]["relation"] == relation


def test_a_task_that_says_nothing_of_its_official_split_is_unknown():
    assert find_official_split(object(), None) == OfficialSplit()  # type: ignore[arg-type]
    assert relate(None, object(), None) is None  # type: ignore[arg-type]


def test_ours_stand_beside_theirs():
    """Scores of 0.6 at 144, 0.3 at 1 on every image: the differences can be worked out by hand."""
    calibration, test = make_outcomes("calibration", 10), make_outcomes("test", 20, questions_per_image=10)
    score = np.zeros(test.score.shape, dtype=np.float32)
    for column, tenths in enumerate((3, 4, 5, 6)):
        score[np.arange(len(test)) % 10 < tenths, column] = 1
    comparison = compare(calibration, replace(test, score=score))
    published = find_published("m3_llava_next_7b", "textvqa")
    assert published is not None
    published = replace(published, relation="same")
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
    assert collect_extras((), {}, published)["published"]["scores"]["576"] == 0.6313
    assert not collect_extras((), {}, None)
