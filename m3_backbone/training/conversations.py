"""Conversations as token ids with labels: what M3 training learns from, and LLaVA's JSON files of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from m3_backbone.llava.processing import M3Processor
from m3_backbone.llava.prompts import IMAGE
from m3_backbone.turns import read_turns

IGNORED = -100


class Conversation(NamedTuple):
    """One picture's turns as tokens, with one placeholder for all of its visual tokens.

    input_ids, labels, turns: `[length]`. `labels` is -100 except on answers and their end token. `turns` is 0
    on what precedes the first question and k on turn k; it is all 0 where later turns see earlier ones.
    """

    input_ids: Tensor
    labels: Tensor
    turns: Tensor


def tokenize_conversation(
    processor: M3Processor, turns: Sequence[tuple[str, str]], *, isolate_turns: bool = False
) -> Conversation:
    """Tokens of the (question, answer) turns on one image under the processor's prompt.

    Args:
        isolate_turns: every turn continues the picture as if it were the first. Earlier answers give later
            ones away ("the star is red" answers "what shape is red"), so turns of unrelated questions must
            not see each other. Otherwise turns follow one another as in LLaVA.
    """
    ids: list[int] = []
    labels: list[int] = []
    numbers: list[int] = []

    def append(tokens: Sequence[int], learned: bool, turn: int) -> None:
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORED] * len(tokens))
        numbers.extend([turn] * len(tokens))

    for number, (question, answer) in enumerate(turns, start=1):
        prompt = processor.prompt_ids(question)
        end_of_image = prompt.index(processor.image_token_id) + 1
        if number == 1:
            append(prompt[:end_of_image], False, 0)
        goes_on = number > 1 and not isolate_turns
        turn = number if isolate_turns else 0
        append(processor.next_turn_ids(question) if goes_on else prompt[end_of_image:], False, turn)
        append(processor.answer_ids(answer), True, turn)
    return Conversation(torch.tensor(ids), torch.tensor(labels), torch.tensor(numbers))


def expand_images(
    conversations: Sequence[Conversation],
    num_visual_tokens: Sequence[int],
    image_token_id: int,
    pad_id: int,
    multiple: int = 1,
) -> dict[str, Tensor]:
    """A right-padded batch in which each row's placeholder stands as often as its image has visual tokens.

    Rows are padded to a multiple of `multiple` tokens: oneDNN makes its matrix kernels anew for every length,
    which costs a training on a processor a third of its time.

    Returns input_ids, labels `[batch, length]`, position_ids `[batch, length]`, and attention_mask:
    `[batch, length]`
    where all of a row is one turn, else the additive `[batch, 1, length, length]` that keeps turns apart.
    Positions of every turn go on from the picture.
    """
    rows = []
    for conversation, count in zip(conversations, num_visual_tokens, strict=True):
        repeats = torch.where(conversation.input_ids == image_token_id, count, 1)
        rows.append(
            [
                torch.repeat_interleave(field, repeats)
                for field in (conversation.input_ids, conversation.labels, conversation.turns)
            ]
        )
    longest = max(len(row[0]) for row in rows)
    length = -(-longest // multiple) * multiple

    def pad(column: int, value: int) -> Tensor:
        padded = pad_sequence([row[column] for row in rows], batch_first=True, padding_value=value)
        return functional.pad(padded, (0, length - longest), value=value)

    input_ids, labels, turns = pad(0, pad_id), pad(1, IGNORED), pad(2, -1)
    index = torch.arange(turns.shape[1]).expand_as(turns)
    real = turns >= 0
    if not (turns > 0).any():
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": index.clone(),
            "attention_mask": real.long(),
        }
    starts = torch.ones_like(real)
    starts[:, 1:] = turns[:, 1:] != turns[:, :-1]
    start_of_turn = torch.where(starts, index, 0).cummax(1).values
    prefix = (turns == 0).sum(1, keepdim=True)
    position_ids = index - start_of_turn + torch.where(turns > 0, prefix, 0)
    seen = (turns[:, None, :] == 0) | (turns[:, None, :] == turns[:, :, None])
    seen &= index[:, None, :] <= index[:, :, None]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "attention_mask": mask[:, None],
    }


class LlavaConversations(Dataset[dict[str, Any]]):
    """LLaVA's instruction-tuning JSON, `[{"id", "image", "conversations": [{"from", "value"}, ...]}, ...]`.

    Turns are read by role (`m3_backbone.turns`), and those of the system are left out: the prompt template
    has its own.

    Args:
        path: the JSON file.
        open_image: image name -> RGB image. Names come from the file, so it has to keep them inside its
            folder and to refuse what cannot be read.
        processor: prompts, tokenizer and image preprocessing of the model to be trained.

    Rows without an image are left out, as M3 trains on pictures; `num_left_out` counts them.
    """

    def __init__(
        self,
        path: str | Path,
        open_image: Callable[[str], Image.Image],
        processor: M3Processor,
        isolate_turns: bool = False,
    ) -> None:
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(rows, list):
            raise ValueError(f"{path} must hold a list of conversations, as LLaVA's training files do")
        self.rows = [
            (row["image"], _turns_of(row, path)) for row in rows if isinstance(row, dict) and "image" in row
        ]
        self.num_left_out = len(rows) - len(self.rows)
        self.open_image, self.processor, self.isolate_turns = open_image, processor, isolate_turns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, turns = self.rows[index]
        conversation = tokenize_conversation(self.processor, turns, isolate_turns=self.isolate_turns)
        return {"image": self.open_image(name), "conversation": conversation}

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Rows as a batch of `M3Training`."""
        images = self.processor.preprocess([row["image"] for row in rows])
        return {**images, "conversation": [row["conversation"] for row in rows]}


def _turns_of(row: dict[str, Any], path: str | Path) -> list[tuple[str, str]]:
    """The (question, answer) turns of a row, system turns left out. Raises ValueError that names the row."""
    name = f"{path}: conversation {row.get('id')!r}"
    try:
        turns = read_turns(row.get("conversations", row.get("messages")))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    pairs = [
        (question.replace(IMAGE, "").strip(), answer.replace(IMAGE, "").strip())
        for question, answer in turns.pairs
        if answer is not None
    ]
    if not pairs or turns.num_stray or len(pairs) < len(turns.pairs):
        raise ValueError(f"{name} does not alternate between 'human' and 'gpt'")
    return pairs
