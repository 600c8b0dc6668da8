"""Reader of conversations in the formats of LLaVA and of chat models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["question", "answer", "system"]
# Role names of LLaVA and ShareGPT (`from`, `value`) and of OpenAI and Hugging Face (`role`, `content`).
ROLES: dict[str, Role] = {
    "human": "question",
    "user": "question",
    "gpt": "answer",
    "assistant": "answer",
    "model": "answer",
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True)
class Turns:
    """Question-answer pairs of a conversation, and counts of the other turns.

    The answer of a pair is None if the question has none. `num_system` counts instructions to the model.
    `num_stray` counts answers that do not follow a question: at the start, or after another answer.
    """

    pairs: tuple[tuple[str, str | None], ...]
    num_system: int
    num_stray: int


def read_turns(messages: Any) -> Turns:
    """Read a conversation: a list of {"from", "value"} or {"role", "content"} objects.

    If `content` is a list of parts, its text parts are joined by line breaks and other parts are ignored.
    Raises ValueError that names the message for any other structure.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(f"the conversation is not a list but {type(messages).__name__}")
    pairs: list[tuple[str, str | None]] = []
    num_system = num_stray = 0
    for number, message in enumerate(messages, start=1):
        role, text = _read_message(message, number)
        if role == "system":
            num_system += 1
        elif role == "question":
            pairs.append((text, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], text)
        else:
            num_stray += 1
    return Turns(tuple(pairs), num_system, num_stray)


def _read_message(message: Any, number: int) -> tuple[Role, str]:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} of the conversation is not an object")
    speaker = message.get("from", message.get("role"))
    role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(
            f"message {number} of the conversation has the role {str(speaker)[:40]!r}: give one of "
            f"{', '.join(ROLES)} as 'from' or 'role'"
        )
    content = message.get("value", message.get("content"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        raise ValueError(f"message {number} of the conversation lacks a text under 'value' or 'content'")
    return role, content
