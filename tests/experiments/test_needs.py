"""What questions need, on outcomes that can be counted by hand, and who can tell it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.evaluation.needs import find_needed_column, map_attributes, map_needs, tabulate_needs
from experiments.evaluation.scale_classifier import classify_smallest_scale, recover_gap
from experiments.granularity import find_shares, tabulate, tabulate_classifiers
from experiments.reporting.needs_display import draw_needs
from m3_backbone.labels import Inputs, Labels, VisualTokens
from tests.experiments.synthetic import SCALES, make_outcomes


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
    text = str(tabulate(needs, SCALES, 0.01, "toy"))
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
        token_embeddings=torch.zeros(1, 1),
        visual_tokens=outcomes.visual_tokens,
    )
    score = (np.arange(4) >= first[:, None]).astype(np.float32)
    return Labels(inputs, replace(outcomes, score=score))


def with_outcomes(labels, **columns):
    """The same inputs with other outcomes."""
    return Labels(labels.inputs, replace(labels.outcomes, **columns))


def test_who_can_tell_the_smallest_scale():
    train, test = (
        with_outcomes(each, kind=np.full(len(each), "toy", dtype=object), attributes=[{}] * len(each))
        for each in (labels_of("train", 150, 1), labels_of("test", 100, 2))
    )
    accuracy = classify_smallest_scale(train, test)
    assert accuracy["question and image"] > 0.95
    # Each alone knows one of two bits, and always guessing neither.
    assert 0.4 < accuracy["question"] < 0.62 and 0.4 < accuracy["image"] < 0.62
    assert accuracy["the commonest"] < 0.4
    assert "question and image" in str(tabulate_classifiers(accuracy, {}))
    assert list(accuracy) == ["the commonest", "question", "image", "question and image"], (
        "no facts are stated"
    )


def test_what_a_policy_recovers_that_is_told_the_facts():
    """The image's bit stands in the attributes; one of a list is no fact, as no column can hold it."""
    train, test = (
        with_outcomes(
            each,
            attributes=[
                {"shown": bool(each.inputs.visual[9].tokens[image, 0, 0] > 4), "other": [1, 2]}
                for image in each.inputs.image_row
            ],
        )
        for each in (labels_of("train", 150, 1), labels_of("test", 100, 2))
    )
    shares, accuracy = recover_gap(train, test), classify_smallest_scale(train, test)
    assert shares["question and image"] > 0.95 and shares["all of it"] > 0.95
    assert abs(shares["kind and attributes"] - shares["image"]) < 0.05 < shares["image"] < 0.9
    assert abs(accuracy["kind and attributes"] - accuracy["image"]) < 0.05
    rows = str(tabulate_classifiers(accuracy, shares)).splitlines()
    assert any(row.startswith("the commonest") and row.split()[-1] == "-" for row in rows)


def test_without_a_gap_there_is_nothing_to_recover():
    train, test = labels_of("train", 20, 1), labels_of("test", 20, 2)
    flat = with_outcomes(test, score=np.ones_like(test.outcomes.score))
    with pytest.raises(ValueError, match="nothing to recover"):
        recover_gap(train, flat)
    assert find_shares(train, flat, 0) == {}


def test_names_of_single_samples_and_numbers_beyond_bounds_are_no_facts():
    train, test = (
        with_outcomes(
            each,
            attributes=[{"name": f"sample {row}", "huge": 10**400, "none": None} for row in range(len(each))],
        )
        for each in (labels_of("train", 40, 1), labels_of("test", 20, 2))
    )
    first, second = (with_outcomes(part, attributes=[{}] * len(part)) for part in (train, test))
    assert classify_smallest_scale(train, test) == classify_smallest_scale(first, second)


def test_where_one_scale_always_suffices_everyone_knows():
    train, test = labels_of("train", 20, 1), labels_of("test", 20, 2)
    train, test = (with_outcomes(each, score=np.ones_like(each.outcomes.score)) for each in (train, test))
    assert set(classify_smallest_scale(train, test).values()) == {1.0}
