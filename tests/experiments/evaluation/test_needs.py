"""What questions need, on outcomes that can be counted by hand, and who can tell it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from experiments.backbone.model_card import judge as judge_card
from experiments.evaluation.known_facts import (
    CLASSIFIER,
    PARTS,
    REGRESSOR,
    Equivalence,
    ScaleClassifiers,
    ScoreRegressions,
    check_margin,
    compare_known,
    find_equivalences,
)
from experiments.evaluation.metric_table import Key, Predictor
from experiments.evaluation.metrics import mean_gap_share, mean_to_mix
from experiments.evaluation.needs import find_needed_column, map_attributes, map_needs, tabulate_needs
from experiments.evaluation.statistics import Bootstrap, Estimate
from experiments.labels.held_out import EvaluationLog, EvaluationRecorder
from experiments.reporting import granularity
from experiments.reporting import needs as needs_tables
from experiments.reporting.needs import (
    draw_needs,
    fit_models,
    judge_models,
    tabulate_equivalences,
    tabulate_policies,
)
from m3_backbone.outcomes.labels import Inputs, Labels, TokenEmbeddings, VisualTokens
from tests.experiments.evaluation.synthetic import SCALES, make_outcomes
from tests.predictor.synthetic import write_labels


@pytest.mark.parametrize(
    ("scores", "column"),
    [
        ((0.5, 0.6, 0.7, 0.8), 3),
        ((0.79, 0.6, 0.7, 0.8), 0),  # exactly a point below the best is within it
        ((0.789, 0.6, 0.7, 0.8), 3),
        ((0.2, 0.9, 0.7, 0.8), 1),  # the finest scale need not be the best
        ((0.0, 0.0, 0.0, 0.0), 0),
    ],
)
def test_the_needed_scale_is_the_smallest_within_a_point_of_the_best(scores, column):
    assert find_needed_column(scores) == column


def stepped(num_images=50):
    """Questions of two kinds: `easy` is right from 1 token on, `hard` from 36, or 144 in a crowd."""
    table = make_outcomes("test", num_images, 4)
    kind = np.array(["easy", "easy", "hard", "hard"] * num_images, dtype=object)
    crowded = np.repeat(np.arange(num_images) >= num_images // 2, 4)
    first = np.where(kind == "easy", 0, np.where(crowded, 3, 2))
    score = (np.arange(len(SCALES)) >= first[:, None]).astype(np.float32)
    attributes = [
        {"num_items": 40 + row % 2 if full else 2 + row % 2, "layout": "x", "constant": 7, "flag": bool(full)}
        for row, full in enumerate(crowded)
    ]
    return replace(table, kind=kind, score=score, attributes=attributes)


def test_needs_per_kind_and_attribute():
    table = stepped()
    needs = {need.name: (need.num_samples, SCALES[need.column]) for need in tabulate_needs(table)}
    assert needs == {"all questions": (200, 144), "easy": (100, 1), "hard": (100, 144)}
    # Only what is numeric and varies is mapped.
    (found,) = map_attributes(table)
    assert found.attribute == "num_items"
    halves = map_needs(table, "num_items", num_bins=2)
    assert halves.bins == ("2 to 3", "to 41")
    scales = {kind: [SCALES[cell.column] for cell in cells if cell] for kind, cells in halves.needs.items()}
    assert scales == {"all questions": [36, 144], "easy": [1, 1], "hard": [36, 144]}
    assert [cell.num_samples for cell in halves.needs["hard"] if cell] == [50, 50]
    # 50 questions are too few for those who want 51.
    assert set(map_needs(table, "num_items", num_bins=2, least=51).needs) == {"all questions"}
    with pytest.raises(ValueError, match="'constant' does not vary"):
        map_needs(table, "constant")
    assert map_attributes(make_outcomes("test", 30, 4))[0].attribute == "crowding"
    assert map_attributes(replace(table, attributes=[{}] * len(table))) == []


def test_attributes_come_as_they_may():
    table = stepped()

    def bins_of(*values):
        rows = [{"some": values[row % len(values)]} for row in range(len(table))]
        return [found.bins for found in map_attributes(replace(table, attributes=rows))]

    # All quantiles are the largest value; what is below it is a bin all the same.
    assert bins_of(1, *[2] * 9) == [("1", "to 2")]
    assert bins_of(2015, 2016) == [("2,015", "to 2,016")]
    for nothing in [(-1, 2), (float("nan"),), (float("inf"), 1), ("many", "few"), (True, False), (None, 3)]:
        assert bins_of(*nothing) == []
    assert bins_of(1, "many", 2) == [("1", "to 2")]
    # Too few questions for any cell: no empty map.
    assert map_attributes(table.select(slice(0, 20))) == []


def test_tables_and_figure_show_them():
    table = stepped()
    needs = tabulate_needs(table)
    text = str(needs_tables.tabulate_needs(needs, SCALES, 0.01, "toy"))
    assert text.splitlines()[-1].split() == ["hard", "100", "0.0", "0.0", "50.0", "100.0", "144"]
    figure = draw_needs(needs, [map_needs(table, "num_items", num_bins=2)], SCALES, "toy")
    scores, needed = figure.axes
    assert [label.get_text() for label in scores.get_yticklabels()][2] == "hard (100)"
    assert [text.get_text() for text in needed.texts] == ["36", "144", "1", "1", "36", "144"]


def labels_of(split, num_images, seed):
    """The smallest right scale is the sum of a bit that the question tells and one that the image tells."""
    rng = np.random.default_rng(seed)
    outcomes = make_outcomes(split, num_images, 4, seed=seed)
    image = np.repeat(np.arange(num_images), 4)
    bit, shown = rng.integers(0, 2, len(image)), rng.integers(0, 2, num_images)
    first = bit + 2 * shown[image]
    visual = rng.normal(size=(num_images, 3, 4)).astype(np.float16)
    visual[:, 0, 0] += 8 * shown
    inputs = Inputs(
        scales=SCALES,
        question=[("how many stars" if each else "what color") for each in bit],
        task=outcomes.task,
        question_ids=outcomes.question_ids,
        image_row=image,
        visual={9: VisualTokens(visual, np.ones((num_images, 3), bool))},
        statistics=np.zeros((num_images, 0), np.float32),
        statistic_names=(),
        token_embeddings=TokenEmbeddings.hold(torch.zeros(1, 1)),
        visual_tokens=outcomes.visual_tokens,
    )
    score = (np.arange(4) >= first[:, None]).astype(np.float32)
    question = np.array(inputs.question, dtype=object)
    return Labels(inputs, replace(outcomes, score=score, question=question))


def with_outcomes(labels, **columns):
    """The same inputs with other outcomes."""
    return Labels(labels.inputs, replace(labels.outcomes, **columns))


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """These patterns are plain: a few trees learn them."""
    with pytest.MonkeyPatch.context() as patch:
        for settings in (CLASSIFIER, REGRESSOR):
            patch.setitem(settings, "max_iter", 12)
            patch.setitem(settings, "learning_rate", 0.4)
        yield


def classify(train, test):
    return ScaleClassifiers.fit(train).measure(test)


def state_facts(labels):
    """The image's bit stands in the attributes; one of a list is no fact, as no column can hold it."""
    attributes = [
        {"shown": bool(labels.inputs.visual[9].tokens[image, 0, 0] > 4), "other": [1, 2]}
        for image in labels.inputs.image_row
    ]
    return with_outcomes(labels, attributes=attributes)


@pytest.fixture(scope="module")
def stated():
    """Train, calibration and test labels whose attributes state what the image shows."""
    sizes = {"train": 150, "calibration": 60, "test": 100}
    return [state_facts(labels_of(split, size, seed)) for seed, (split, size) in enumerate(sizes.items())]


@pytest.fixture(scope="module")
def regressions(stated):
    return ScoreRegressions.fit(stated[0])


@pytest.fixture(scope="module")
def compared(stated, regressions):
    _, calibration, test = stated
    return compare_known(regressions, calibration, test, bootstrap=Bootstrap(400))


def test_who_can_tell_the_smallest_scale():
    train, test = (
        with_outcomes(each, kind=np.full(len(each), "toy", dtype=object), attributes=[{}] * len(each))
        for each in (labels_of("train", 150, 1), labels_of("test", 100, 2))
    )
    accuracy = classify(train, test)
    assert accuracy["question and image"] > 0.95
    # Each alone knows one of two bits, and always guessing neither.
    assert 0.4 < accuracy["question"] < 0.62 and 0.4 < accuracy["image"] < 0.62
    assert accuracy["the commonest"] < 0.4
    assert "question and image" in str(needs_tables.tabulate_classifiers(accuracy))
    assert list(accuracy) == ["the commonest", "question", "image", "question and image"], (
        "no facts are stated"
    )


def test_what_a_policy_gains_that_is_told_the_facts(stated, compared):
    """Question and image know both bits, and so the facts add nothing; the facts alone know one."""
    train, _, test = stated
    shares = {figures.name: float(figures[mean_gap_share].value) for figures in compared.policies}
    assert compared.policies[0].name == "question and image"
    assert shares["question and image"] > 0.95 and shares["all of it"] > 0.95
    assert abs(shares["kind and attributes"] - shares["image"]) < 0.05 < shares["image"] < 0.9
    accuracy = classify(train, test)
    assert abs(accuracy["kind and attributes"] - accuracy["image"]) < 0.05
    assert "question and image" in str(tabulate_policies(compared))


def test_equivalence_follows_the_paired_interval(compared):
    """What adds nothing is equivalent within half a point; what knows one bit of two differs."""
    both, facts = find_equivalences(compared, 0.005)
    assert (both.first, both.second, both.verdict) == ("all of it", "question and image", "equivalent")
    assert (facts.first, facts.verdict) == ("kind and attributes", "differs")
    # By the slow way: resamples are paired, and 90% of them lie inside the interval.
    names = ("kind and attributes", "question and image")
    drawn = [compared.metrics.resamples[Key(Predictor(name), mean_to_mix)] for name in names]
    assert [facts.difference.low, facts.difference.high] == pytest.approx(
        np.quantile(drawn[0] - drawn[1], [0.05, 0.95]).tolist()
    )
    values = [compared.find(name)[mean_to_mix].value for name in names]
    assert float(facts.difference.value) == pytest.approx(values[0] - values[1])
    # 400 resamples and two tests: no p-value below 4/401.
    rows = tabulate_equivalences([both, facts], 400).rows
    assert rows[1][3:] == ("< 0.01", "differs") and rows[0][3] == "1.000"


def judge(low, high, *, p_value=1.0, num_images=100, margin=0.005):
    difference = Estimate(*map(np.array, ((low + high) / 2, low, high)))
    return Equivalence("a", "b", difference, difference, p_value, margin, num_images).verdict


def test_verdicts():
    assert judge(-0.004, 0.005) == "equivalent"
    # A difference may be significant and too small to matter.
    assert judge(0.001, 0.004, p_value=0.001) == "equivalent"
    assert judge(-0.006, 0.004) == judge(-0.1, 0.1) == "not shown to be equivalent"
    assert judge(0.001, 0.006, p_value=0.01) == "differs"
    # The interval of a few images means nothing, however narrow.
    assert judge(0.0, 0.0, num_images=29) == "too few images to tell"
    with pytest.raises(ValueError, match="equivalence_margin=0 is not a share"):
        check_margin(0)


def test_models_have_digests_of_what_they_follow_from(stated, regressions):
    train, calibration, _ = stated
    first, again = ScaleClassifiers.fit(train).digests, ScaleClassifiers.fit(train).digests
    assert first == again and len(set(first.values())) == len(first) == 6
    assert set(first) == {f"classifier, {name}" for name in ("the commonest", *PARTS)}
    fewer, other_seed = ScaleClassifiers.fit(calibration).digests, ScaleClassifiers.fit(train, 1).digests
    everything = [*first.values(), *fewer.values(), *other_seed.values(), *regressions.digests.values()]
    assert len(set(everything)) == len(everything)


def test_the_comparison_of_models_is_recorded(tmp_path, stated):
    """One line of the record names every model that is judged on test, with its digest."""
    splits = dict(zip(("train", "calibration", "test"), stated, strict=True))
    folder = tmp_path / "labels"
    write_labels(folder, splits)
    models = fit_models(folder, 0)
    assert models is not None
    digests = {**models[0].digests, **models[1].digests}
    records = tmp_path / "evaluations"
    test, record = EvaluationRecorder(records, "granularity").open_test(folder, digests)
    assert record.evaluation == 1 and len(record.predictors) == 11
    assert EvaluationLog(record.path).read()[0]["predictors"] == digests
    tables = judge_models(
        *models, splits["calibration"], test, equivalence_margin=0.005, bootstrap=Bootstrap(100)
    )
    assert [table.name for table in tables] == ["classifiers", "policies", "equivalence"]


@pytest.mark.long
def test_needs_are_printed_and_saved_before_models_are_fitted(tmp_path, stated, capsys, monkeypatch):
    """The description of the test split and the evaluation of the models are recorded separately."""
    folder, output = tmp_path / "labels", tmp_path / "output"
    write_labels(folder, dict(zip(("train", "calibration", "test"), stated, strict=True)))
    manifest = folder / "manifest.json"
    names = {"backbone": "toy", "task": "toy"}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | names), encoding="utf-8")
    fit, seen = granularity.fit_models, []

    def look_and_fit(labels, seed, progress):
        seen.append((capsys.readouterr().out, sorted(path.name for path in output.iterdir())))
        return fit(labels, seed, progress)

    monkeypatch.setattr(granularity, "fit_models", look_and_fit)
    granularity.report_granularity(
        folder,
        output,
        margin=0.01,
        equivalence_margin=0.005,
        bootstrap=Bootstrap(50),
        seed=0,
        recorder=EvaluationRecorder(tmp_path / "records", "granularity"),
    )
    ((printed, files),) = seen
    assert "smallest scale within 1 of the best" in printed and "Policies by their features" not in printed
    assert files == [*(f"granularity.{kind}" for kind in ("md", "pdf", "png", "svg")), "tables"]
    captured = capsys.readouterr()
    assert "Policies by their features" in captured.out and "models of the needed scale: " in captured.err
    text = (output / "granularity.md").read_text()
    assert "smallest scale within 1 of the best" in text and "Policies by their features" in text
    (path,) = (tmp_path / "records").glob("*/*.jsonl")
    described, evaluated = EvaluationLog(path).read()
    assert described["predictors"] == {} and len(evaluated["predictors"]) == 11


def test_the_models_of_a_model_card_are_recorded(tmp_path, stated):
    write_labels(tmp_path / "labels", dict(zip(("train", "calibration", "test"), stated, strict=True)))
    card: Any = judge_card("toy", tmp_path / "labels", EvaluationRecorder(tmp_path / "records", "test"))
    assert card["accuracy"]["question and image"] > 95
    (path,) = (tmp_path / "records").glob("*/*.jsonl")
    (read,) = EvaluationLog(path).read()
    names = [f"classifier, {name}" for name in ("the commonest", *PARTS)]
    assert list(read["predictors"]) == [*names, "blind answerer"]
    assert len(set(read["predictors"].values())) == 7


def test_labels_of_a_test_split_alone_train_no_models(tmp_path, stated, caplog):
    write_labels(tmp_path / "labels", {"test": stated[2]})
    assert fit_models(tmp_path / "labels", 0) is None
    assert "models of the needed scale are left out" in caplog.text


def test_without_a_gap_there_is_nothing_to_recover(stated, regressions, caplog):
    train, calibration, test = stated
    flat = with_outcomes(test, score=np.ones_like(test.outcomes.score))
    with pytest.raises(ValueError, match="nothing can be recovered"):
        compare_known(regressions, calibration, flat, bootstrap=Bootstrap(10))
    classifiers = ScaleClassifiers.fit(train)
    tables = judge_models(classifiers, regressions, calibration, flat, Bootstrap(10), 0.005)
    assert [table.name for table in tables] == ["classifiers"] and "nothing can be recovered" in caplog.text


def test_names_of_single_samples_and_numbers_beyond_bounds_are_no_facts():
    train, test = (
        with_outcomes(
            each,
            attributes=[{"name": f"sample {row}", "huge": 10**400, "none": None} for row in range(len(each))],
        )
        for each in (labels_of("train", 40, 1), labels_of("test", 20, 2))
    )
    first, second = (with_outcomes(part, attributes=[{}] * len(part)) for part in (train, test))
    assert classify(train, test) == classify(first, second)


def test_where_one_scale_always_suffices_everyone_knows():
    train, test = labels_of("train", 20, 1), labels_of("test", 20, 2)
    train, test = (with_outcomes(each, score=np.ones_like(each.outcomes.score)) for each in (train, test))
    assert set(classify(train, test).values()) == {1.0}


def test_a_question_type_may_be_called_like_the_row_of_all():
    table = make_outcomes("test", 30)
    table.kind[:] = np.where(np.arange(len(table)) % 2 == 0, "all questions", "other")
    needs = tabulate_needs(table)
    assert [need.name for need in needs] == ["all questions (total)", "all questions", "other"]
    assert [need.num_samples for need in needs] == [120, 60, 60]


def test_questions_without_words_tell_classifiers_nothing(stated):
    train, test = (
        replace(labels, inputs=replace(labels.inputs, question=["?!"] * len(labels)))
        for labels in (stated[0], stated[2])
    )
    accuracy = ScaleClassifiers.fit(train).measure(test)
    assert accuracy["question"] == accuracy["the commonest"]
