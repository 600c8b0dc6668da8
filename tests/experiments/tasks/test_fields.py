"""Text stays text: numbers, blank fields and fields that only analysis reads."""

from typing import Any

import pytest

from experiments.tasks.rows import describe_value, is_blank
from tests.experiments.tasks.question_files import GOOD, make_task, read_all


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (5, "5"),
        (5.0, "5"),
        ([5.0], "5"),
        ([{"answer": 5.0}], "5"),
        (-3.0, "-3"),
        (2.5, "2.5"),
        (1e3, "1000"),
        (1e300, "1e+300"),
        ("5.0", "5.0"),
        (" a cat\n", "a cat"),
        ("\u00a0a cat", "a cat"),
    ],
)
def test_references_are_what_an_answer_can_be(tmp_path, answer, reference):
    assert read_all(make_task(tmp_path, [{**GOOD, "answer": answer}]))[0].references == (reference,)


@pytest.mark.parametrize(
    ("category", "kind"),
    [
        ("color", "color"),
        ("", "default"),
        (None, "default"),
        (float("nan"), "default"),
        ([], "default"),
        ({}, "default"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (True, "true"),
        (["color", 1.0], "color, 1"),
        ({"a": [1]}, '{"a": [1]}'),
        ("x" * 2000, "x" * 1000),
    ],
)
def test_a_category_costs_no_row(tmp_path, category, kind):
    task = make_task(tmp_path, [{**GOOD, "category": category}])
    assert [sample.attributes["kind"] for sample in read_all(task)] == [kind]
    assert task.skipped == []


def test_half_a_character_in_a_category_costs_no_row(tmp_path):
    row = b'{"question_id": 1, "image": "a.png", "text": "b", "answer": "c", "category": "d\\ud800"}'
    assert read_all(make_task(tmp_path, [row]))[0].attributes["kind"] == "d?"


@pytest.mark.parametrize("value", [10**5000, float("inf"), [[[["a"]]]], {"a": "\ud800"}], ids=range(4))
def test_any_value_is_described(value):
    text = describe_value(value)
    assert text and text.encode() and len(text) <= 1000


@pytest.mark.parametrize("blank", [None, "", " \n", [], {}, float("nan"), ["", None], [{"answer": ""}]])
def test_a_blank_field_gives_way_to_the_next(tmp_path, blank):
    assert is_blank(blank)
    (sample,) = read_all(make_task(tmp_path, [{**GOOD, "answers": blank, "text": "", "question": "What?"}]))
    assert (sample.references, sample.question) == (("a cat",), "What?")


def test_zero_and_false_are_not_blank():
    assert not any(map(is_blank, [0, 0.0, False, [0], {"a": False}]))


@pytest.mark.parametrize(
    ("question_id", "sample_id"), [(3, "mine/3"), (3.0, "mine/3"), ("a b", "mine/a b"), (None, "mine/line-2")]
)
def test_ids_are_text_and_made_from_the_line_where_there_is_none(tmp_path, question_id, sample_id):
    task = make_task(tmp_path, ["", {**GOOD, "question_id": question_id}])
    assert read_all(task)[0].sample_id == sample_id


def test_a_made_id_takes_no_id_of_another_row(tmp_path):
    task = make_task(tmp_path, [{**GOOD, "question_id": 2}, {**GOOD, "question_id": None}])
    assert {sample.sample_id for sample in read_all(task)} == {"mine/2", "mine/line-2"}
    assert task.notes == ["1 row has no question_id (its number in the file is used instead)"]


def test_an_image_number_that_pandas_made_a_float_is_a_number(tmp_path):
    task = make_task(tmp_path, [{**GOOD, "image": 12.0}], image_name="COCO_{image:06d}.jpg")
    assert read_all(task)[0].image_id == "COCO_000012.jpg"


@pytest.mark.parametrize(
    ("split", "own"), [("Train", "train"), (" TEST ", "test"), ("Validation", "calibration")]
)
def test_splits_are_known_in_any_case(tmp_path, split, own):
    sample = read_all(make_task(tmp_path, [{**GOOD, "split": split}], fractions={"train": 1.0}))[0]
    assert sample.split == own


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "D", "choices": ["x", "y", "z"]}, "the answer is 'D' and there are 3 choices, A to C"),
        ({"answer": "d", "options": ["x", "y"]}, "the answer is 'd' and there are 2 choices, A to B"),
        ({"answer": 3.0, "choices": ["x", "y", "z"]}, "the answer is choice 3.0 of 3, counted from 0"),
    ],
)
@pytest.mark.parametrize("metric", ["multiple_choice_letter", "multiple_choice_letter_llava"])
def test_letters_beyond_the_choices_are_skipped(tmp_path, row, reason, metric):
    task = make_task(tmp_path, [{**GOOD, **row}, {**GOOD, "question_id": 8, "answer": "a"}], metric=metric)
    assert [sample.references for sample in read_all(task)] == [("a",)]
    assert task.skipped[0]["reason"] == reason


def test_a_letter_among_the_choices_is_kept(tmp_path):
    rows: list[dict[str, Any]] = [{"answer": "c"}, {"answer": 2}, {"answer": 2.0}]
    lines = [{**GOOD, "question_id": i, "choices": ["x", "y", "z"], **row} for i, row in enumerate(rows)]
    task = make_task(tmp_path, lines, metric="multiple_choice_letter")
    assert sorted(sample.references[0] for sample in read_all(task)) == ["C", "C", "c"]
