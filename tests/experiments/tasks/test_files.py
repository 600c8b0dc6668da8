"""Question files of every kind are read alike, or refused in one sentence with the way out."""

import json
import re

import pytest

from experiments.tasks.rows import RowFile
from tests.experiments.tasks.question_files import GOOD, make_task, read_all

ROWS = [{**GOOD, "question_id": number} for number in (1, 2)]
LINES = "\n".join(map(json.dumps, ROWS))
LIST = json.dumps(ROWS)
PRETTY = json.dumps(ROWS, indent=1)

READABLE = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "lines.txt": LINES,
    "blank first.json": "\n \n" + LINES,
    "blank first.jsonl": "\n\n" + LINES,
    "mark.jsonl": "\ufeff" + LINES,
    "mark and blank.jsonl": "\ufeff\n" + LINES,
    "mark.json": "\ufeff" + PRETTY,
    "windows.jsonl": LINES.replace("\n", "\r\n") + "\r\n",
    "list.json": LIST,
    "list.jsonl": LIST,
    "pretty.json": PRETTY,
    "pretty.jsonl": PRETTY,
    "data.json": json.dumps({"info": "x", "data": ROWS}),
    "data.jsonl": json.dumps({"data": ROWS}, indent=1),
    "one line of data.jsonl": json.dumps({"data": ROWS}),
    "samples.json": json.dumps({"version": 1, "authors": ["a"], "samples": ROWS}),
    "keyed.json": json.dumps(
        {str(row["question_id"]): {**GOOD, "question_id": None} for row in ROWS}
    ).replace('"question_id": null, ', ""),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_file_is_what_it_holds(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(READABLE[name].encode())
    task = make_task(tmp_path, [], questions=path)
    assert [sample.sample_id for sample in read_all(task)] == ["mine/1", "mine/2"]
    assert (task.skipped, task.notes) == ([], [])


@pytest.mark.parametrize("name", ["one.json", "one.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_single_row_is_a_row(tmp_path, name, indent):
    path = tmp_path / name
    path.write_text(json.dumps({**GOOD, "answers": [{"answer": "a cat"}]}, indent=indent))
    assert [sample.sample_id for sample in read_all(make_task(tmp_path, [], questions=path))] == ["mine/7"]


def test_a_single_row_of_a_conversation_is_no_list_of_turns(tmp_path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "one.json").write_text(json.dumps({"image": "a.png", "conversations": turns}))
    (sample,) = read_all(make_task(tmp_path, [], questions=tmp_path / "one.json"))
    assert (sample.sample_id, sample.references) == ("mine/row-1", ("red",))


REFUSED = {
    "utf16.jsonl": (
        ("\ufeff" + LINES).encode("utf-16-le"),
        "is UTF-16, UTF-32 or binary: save it as UTF-8",
    ),
    "utf16.json": (LIST.encode("utf-16"), "save it as UTF-8"),
    "no mark.jsonl": (LINES.encode("utf-16-be"), "save it as UTF-8"),
    "cp1252.json": (PRETTY.replace("a cat", "caf\u00e9").encode("cp1252"), "save the file as UTF-8"),
    "table.csv": (b"question_id,image\n1,a.png\n", "neither JSON nor JSONL .* write one JSON object a line"),
    "comma.json": (b"[1,]", "neither JSON nor JSONL .* write one JSON object a line"),
    "empty.json": (b"", "empty.json is empty"),
    "two lists.json": (json.dumps({"a": ROWS, "b": ROWS}).encode(), "holds no rows"),
    "together.jsonl": (LINES.replace("\n", "").encode(), "write one object a line"),
    "values.jsonl": (b"1\n2\n", "2 x not a JSON object but int: write one object a line"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path, name):
    content, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_all(make_task(tmp_path, [], questions=tmp_path / name))
    assert len(str(refusal.value).splitlines()) == 1


def test_fields_of_another_name_are_listed_where_no_row_can_be_used(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape("the first row has the fields 'id', 'image', 'prompt'")
    ) as refusal:
        read_all(make_task(tmp_path, [{"id": 1, "image": "a.png", "prompt": "What?"}]))
    assert "+task.fields.question=NAME" in str(refusal.value)


def test_rows_are_found_again_by_place(tmp_path):
    for name, text in READABLE.items():
        (tmp_path / name).write_bytes(text.encode())
        file = RowFile(tmp_path / name, GOOD)
        assert all(file.read(row.place) == row.content for row in file), name
