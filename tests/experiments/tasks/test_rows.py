"""llava_jsonl on bad rows and odd files: what is skipped and why, where references are found."""

import json
from typing import Any

import pytest

from experiments.tasks import rows
from tests.experiments.tasks.question_files import GOOD, make_task, read_all, write_lines

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": (b'{"question_id": 1, ', "not JSON"),
    "not UTF-8": (
        b'{"question_id": 1, "text": "\xff"}',
        "not UTF-8 (byte 0xff at 28): save the file as UTF-8",
    ),
    "deep": (b"[" * 100_000, "not JSON"),
    "a list": ([1, 2], "not a JSON object but list"),
    "null": (b"null", "not a JSON object but NoneType"),
    "wrong id": ({**GOOD, "question_id": [1]}, "question_id is not a text but list"),
    "no image": ({**GOOD, "image": None}, "no image"),
    "blank image": ({**GOOD, "image": ""}, "image is empty"),
    "wrong image": ({**GOOD, "image": {"a": "b"}}, "neither a name nor a number but dict"),
    "two images": ({**GOOD, "image": ["a.png", "b.png"]}, "2 images, and a question has one"),
    "no question": ({key: value for key, value in GOOD.items() if key != "text"}, "no question"),
    "blank question": ({**GOOD, "text": " \n"}, "the question is empty"),
    "only a placeholder": ({**GOOD, "text": "<image>\n"}, "the question is empty"),
    "wrong question": ({**GOOD, "text": {"a": 1}}, "question is not a text but dict"),
    "long question": ({**GOOD, "text": "x" * 20_001}, "question has 20,001 characters"),
    "half a character": (
        b'{"question_id": 1, "image": "a.png", "text": "\\ud800", "answer": "b"}',
        "not valid Unicode",
    ),
    "no references": ({**GOOD, "answer": None}, "no reference answer"),
    "empty references": ({**GOOD, "answer": []}, "no reference answer"),
    "blank references": ({**GOOD, "answer": ["", " "]}, "no reference answer"),
    "wrong references": (
        {**GOOD, "answer": [True]},
        'reference answer is true and not a text: write it in quotes, "true" or "yes"/"no"',
    ),
    "nan": ({**GOOD, "answer": float("nan")}, "no reference answer"),
    "infinity": ({**GOOD, "answer": float("inf")}, "reference answer is not a text but float"),
    "long reference": ({**GOOD, "answer": "x" * 20_001}, "reference answer has 20,001 characters"),
    "wrong split": ({**GOOD, "split": "dev"}, "split is 'dev' and none of"),
    "long line": ({**GOOD, "text": "x" * (rows.MAX_LINE_BYTES + 10)}, "a line of more than 1,048,576 bytes"),
}


def test_bad_rows_are_skipped_by_line_and_reason(tmp_path):
    lines: list[Any] = [{**GOOD, "question_id": "first"}, ""]
    lines += [row for row, _ in BAD_ROWS.values()]
    lines += [{**GOOD, "question_id": "last"}, {**GOOD, "question_id": "first"}]
    task = make_task(tmp_path, lines)
    assert [sample.sample_id for sample in read_all(task)] == ["mine/first", "mine/last"]
    for number, (row, (label, (_, reason))) in enumerate(
        zip(task.skipped, BAD_ROWS.items(), strict=False), start=3
    ):
        assert reason in row["reason"], label
        assert (row["file"], row["line"]) == ("questions.jsonl", number), label
    assert task.skipped[-1] == {
        "file": "questions.jsonl",
        "line": len(lines),
        "sample_id": "mine/first",
        "reason": "this question_id came before: +task.fields.question_id=null numbers the rows",
    }
    assert len(task.skipped) == len(BAD_ROWS) + 1
    json.dumps(task.skipped).encode()


def test_reading_again_sets_nothing_aside_twice(tmp_path):
    task = make_task(tmp_path, [GOOD, b"{"])
    assert read_all(task) == read_all(task)
    assert len(task.skipped) == 1


def test_a_file_without_one_usable_row_is_an_error_that_says_why(tmp_path):
    task = make_task(tmp_path, [b"{", {**GOOD, "answer": None}, {**GOOD, "answer": None}])
    with pytest.raises(
        ValueError, match=r"no row of questions can be used: 2 x no reference answer; 1 x not JSON"
    ):
        read_all(task)
    with pytest.raises(ValueError, match="they are empty"):
        read_all(make_task(tmp_path, []))


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        ({"answer": "a"}, ("a",)),
        ({"answers": ["a", "b"]}, ("a", "b")),
        ({"references": ["a"], "answer": "b"}, ("a",)),
        ({"label": 3}, ("3",)),
        ({"label": 2.5}, ("2.5",)),
        ({"answers": [{"answer": "a", "answer_confidence": "yes"}, {"answer": ""}]}, ("a", "")),
    ],
)
def test_references_in_the_row(tmp_path, answer, references):
    row = {key: value for key, value in GOOD.items() if key != "answer"}
    assert read_all(make_task(tmp_path, [row | answer]))[0].references == references


REFERENCE_FILES: dict[str, Any] = {
    "lines.jsonl": None,
    "list.json": [{"question_id": "7", "answer": "dog"}],
    "data.json": {"data": [{"question_id": 7, "answers": ["dog"]}]},
    "annotations.json": {"info": {}, "annotations": [{"question_id": 7, "answers": [{"answer": "dog"}]}]},
    "keyed.json": {"7": {"answer": "dog"}, "8": {"answer": "cat"}},
}


@pytest.mark.parametrize("name", list(REFERENCE_FILES))
def test_references_in_a_second_file(tmp_path, name):
    path = tmp_path / name
    if name == "lines.jsonl":
        write_lines(path, [{"question_id": 8, "answer": "cat"}, {"question_id": 7, "answer": "dog"}])
    else:
        path.write_text(json.dumps(REFERENCE_FILES[name], indent=1))
    task = make_task(tmp_path, [GOOD, {**GOOD, "question_id": 9}], references=path)
    samples = read_all(task)
    assert [(sample.sample_id, sample.references) for sample in samples] == [("mine/7", ("dog",))]
    assert task.skipped == [
        {"file": "questions.jsonl", "line": 2, "reason": "no references for this question"}
    ]


def test_bad_rows_of_the_reference_file_are_named(tmp_path):
    references = write_lines(
        tmp_path / "r.jsonl", [{"question_id": 7, "answer": "dog"}, b"{", {"answer": 1}, {"question_id": 7}]
    )
    task = make_task(tmp_path, [GOOD], references=references)
    assert read_all(task)[0].references == ("dog",)
    assert [(row["file"], row["line"]) for row in task.skipped] == [("r.jsonl", line) for line in (2, 3, 4)]
    assert "came before" in task.skipped[-1]["reason"]


@pytest.mark.parametrize(
    ("metric", "row", "reason"),
    [
        ("vqa_soft_accuracy", {"answer": "one"}, "4 annotators"),
        ("yes_no", {"answer": "perhaps"}, "yes or no"),
        ("multiple_choice_letter", {"answer": "cat"}, "option letters"),
        ("multiple_choice_letter", {"answer": 2, "choices": ["cat", "dog"]}, "choice 2 of 2"),
        ("multiple_choice_letter", {"answer": -1}, "choice -1 of 26"),
    ],
)
def test_references_that_the_metric_cannot_use_are_skipped(tmp_path, metric, row, reason):
    fine = (
        {"answer": "a", "answers": ["a"] * 4}
        if metric == "vqa_soft_accuracy"
        else {"answer": {"yes_no": "yes"}.get(metric, 0)}
    )
    task = make_task(tmp_path, [{**GOOD, **row}, {**GOOD, "question_id": 8, **fine}], metric=metric)
    assert [sample.sample_id for sample in read_all(task)] == ["mine/8"]
    assert reason in task.skipped[0]["reason"]


def test_the_position_of_a_choice_becomes_its_letter(tmp_path):
    row = {**GOOD, "answer": 1, "options": ["cat", "dog"]}
    assert read_all(make_task(tmp_path, [row], metric="multiple_choice_letter"))[0].references == ("B",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "neither JSON nor JSONL"),
        ("3", "holds no rows"),
        ('{"a": 1}', "holds no rows"),
        ("[" * 100_000, "neither JSON"),
    ],
)
def test_a_document_without_rows_is_refused(tmp_path, content, complaint):
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_all(make_task(tmp_path, [], questions=tmp_path / "q.json"))


def test_a_document_too_large_to_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "q.json").write_text(json.dumps([GOOD], indent=1))
    with pytest.raises(ValueError, match="write it as JSONL"):
        read_all(make_task(tmp_path, [], questions=tmp_path / "q.json"))


def test_jsonl_under_the_name_of_json_and_a_byte_order_mark(tmp_path):
    path = write_lines(tmp_path / "labels.json", [GOOD, {**GOOD, "question_id": 8}, [1]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    task = make_task(tmp_path, [], questions=path)
    assert [sample.sample_id for sample in read_all(task)] == ["mine/7", "mine/8"]
    assert task.skipped[0]["line"] == 3


def test_windows_line_ends_and_a_last_line_without_one(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(
        json.dumps(GOOD).encode() + b"\r\n" + json.dumps({**GOOD, "question_id": 8}).encode()
    )
    assert len(read_all(make_task(tmp_path, [], questions=tmp_path / "q.jsonl"))) == 2


def test_the_line_limit_is_exact(tmp_path, monkeypatch):
    lines = [json.dumps({**GOOD, "question_id": i, "text": "x" * i}) for i in range(1, 60)]
    limit = len(lines[29]) + 1  # with its line end
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", limit)
    task = make_task(tmp_path, lines)
    assert len(read_all(task)) == 30
    assert [row["line"] for row in task.skipped] == list(range(31, 60))
