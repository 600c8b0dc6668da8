"""Conversations are read by role, in the formats of LLaVA and of chat models."""

import pytest

from m3_backbone.turns import read_turns


def llava(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.mark.parametrize(
    "messages",
    [
        llava(("human", "Q"), ("gpt", "A")),
        llava(("system", "Be careful."), ("human", "Q"), ("gpt", "A")),
        llava(("gpt", "Hello!"), ("human", "Q"), ("gpt", "A")),
        llava(("Human", "Q"), ("system", "Now answer."), ("GPT", "A")),
        chat(("user", "Q"), ("assistant", "A")),
        chat(
            ("developer", "Be careful."), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")
        ),
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
            *chat(("assistant", "A")),
        ],
    ],
)
def test_the_first_human_turn_asks_and_the_assistants_turn_after_it_answers(messages):
    assert read_turns(messages).pairs[0] == ("Q", "A")


def test_what_is_no_question_with_its_answer_is_counted():
    turns = read_turns(
        llava(("system", "S"), ("gpt", "0"), ("human", "Q"), ("gpt", "A"), ("gpt", "B"), ("human", "R"))
    )
    assert turns.pairs == (("Q", "A"), ("R", None))
    assert (turns.num_system, turns.num_stray) == (1, 2)
    # The answer goes to the last question before it.
    assert read_turns(llava(("human", "Q"), ("human", "R"), ("gpt", "B"))).pairs == (("Q", None), ("R", "B"))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "not a list but str"),
        ([1], "message 1 of the conversation is not an object"),
        (llava(("human", "Q"), ("narrator", "A")), "message 2 of the conversation has the role 'narrator'"),
        ([{"value": "Q"}], "has the role 'None': give one of human, user"),
        ([{"from": "human"}], "message 1 of the conversation lacks a text"),
        ([{"from": "human", "value": 5}], "lacks a text"),
    ],
)
def test_what_is_no_conversation_is_named(messages, reason):
    with pytest.raises(ValueError, match=reason):
        read_turns(messages)
