"""llava_jsonl on conversations: who asks and who answers, and what is said of what is not used."""

import logging
from typing import Any

import pytest

from tests.experiments.tasks.question_files import GOOD, make_task, read_all


def make_row(*turns: tuple[str, str], number: int = 1, **more: Any) -> dict[str, Any]:
    turns_ = [{"from": role, "value": text} for role, text in turns]
    return {"id": number, "image": "a.png", "conversations": turns_, **more}


SYSTEM, ASKS, ANSWERS = ("system", "Be careful."), ("human", "<image>\nWhat color?"), ("gpt", "red")


@pytest.mark.parametrize("turns", [(ASKS, ANSWERS), (SYSTEM, ASKS, ANSWERS), (("gpt", "Hi"), ASKS, ANSWERS)])
def test_the_human_asks_and_the_assistant_answers(tmp_path, turns):
    (sample,) = read_all(make_task(tmp_path, [make_row(*turns)]))
    assert (sample.question, sample.references) == ("What color?", ("red",))


def test_chat_messages_and_a_list_of_one_image(tmp_path):
    messages = [{"role": "user", "content": "What color?"}, {"role": "assistant", "content": "red "}]
    (sample,) = read_all(make_task(tmp_path, [{"id": 1, "images": ["a.png"], "messages": messages}]))
    assert (sample.image_id, sample.question, sample.references) == ("a.png", "What color?", ("red",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (make_row(SYSTEM), "the conversation has no turn of a human"),
        (make_row(ASKS), "no turn of the assistant follows the first question"),
        (make_row(ASKS, ("human", "R"), ANSWERS), "no turn of the assistant follows the first question"),
        (make_row(ASKS, ("bot", "red")), "has the role 'bot': give one of human"),
        (make_row(ASKS, ("gpt", "<image>")), "a reference answer holds <image>"),
    ],
)
def test_conversations_that_cannot_be_used_are_skipped(tmp_path, row, reason):
    task = make_task(tmp_path, [GOOD, row])
    assert [sample.sample_id for sample in read_all(task)] == ["mine/7"]
    assert reason in task.skipped[0]["reason"]


def test_a_conversation_of_another_kind_costs_no_row_that_does_not_need_it(tmp_path):
    (sample,) = read_all(make_task(tmp_path, [{**GOOD, "messages": "see the log"}]))
    assert sample.references == ("a cat",)


def test_a_field_that_the_user_names_goes_before_the_conversation(tmp_path):
    row = make_row(SYSTEM, ASKS, ANSWERS)
    task = make_task(tmp_path, [row], fields={"question": "conversations.0.value"})
    assert read_all(task)[0].question == "Be careful."
    with pytest.raises(ValueError, match="no reference answer"):
        read_all(make_task(tmp_path, [row], fields={"references": "gold"}))


@pytest.mark.parametrize(
    ("row", "note"),
    [
        (make_row(ASKS, ANSWERS, ("human", "Sure?"), ("gpt", "yes")), "further turns, which are not asked"),
        (make_row(SYSTEM, ASKS, ANSWERS), "a system turn, which is not used"),
        (make_row(ASKS, ANSWERS, ("gpt", "indeed")), "turns of the assistant that answer no question"),
        (make_row(ASKS, ANSWERS, text="What?"), "a conversation beside the question"),
        (
            {**GOOD, "response": "dog"},
            "'response', which is not used (+task.fields.references=response would",
        ),
        ({**GOOD, "ground_truth": "dog"}, "'ground_truth', which is not used"),
        ({**GOOD, "answers": ["dog"]}, "other reference answers under 'answer' than under 'answers'"),
        ({**GOOD, "images": ["a.png", "b.png"]}, "further images"),
    ],
)
def test_what_a_row_holds_beside_its_sample_is_counted_and_said_once(tmp_path, caplog, row, note):
    rows = [{**row, "id": number, "question_id": number} for number in (1, 2, 3)]
    task = make_task(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        assert len(read_all(task)) == len(read_all(task)) == 3
    assert any(text.startswith("3 rows have " + note) for text in task.notes), task.notes
    assert len(caplog.messages) == len(task.notes)


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        make_row(ASKS, ANSWERS),
        {**GOOD, "answers": [], "references": None},
        {**GOOD, "answers": "a cat"},
        {**GOOD, "answerable": 1, "answer_type": "other", "source": "web", "label_color": ""},
    ],
)
def test_nothing_is_said_where_all_is_used(tmp_path, row):
    task = make_task(tmp_path, [row])
    read_all(task)
    assert task.notes == []


def test_answers_beside_a_file_of_references_are_said(tmp_path):
    references = tmp_path / "r.jsonl"
    references.write_text('{"question_id": 7, "answer": "dog"}')
    task = make_task(tmp_path, [GOOD], references=references)
    assert read_all(task)[0].references == ("dog",)
    assert task.notes == [
        "1 row has reference answers beside those of the file of references, which are used"
    ]
