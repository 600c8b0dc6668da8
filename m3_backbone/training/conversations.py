"""Training conversations as token ids with labels, and a data set of LLaVA's JSON files."""

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
    """Tokens of a conversation about one image, with one placeholder for all of its visual tokens.

    `input_ids`, `labels` and `turns` are `[length]`. `labels` is -100 except at answers and their end tokens.
    `turns` is 0 before the first question and k in turn k; it is 0 everywhere if later turns may attend to
    earlier ones.
    """

    input_ids: Tensor
    labels: Tensor
    turns: Tensor


def tokenize_conversation(
    processor: M3Processor, turns: Sequence[tuple[str, str]], *, isolate_turns: bool = False
) -> Conversation:
    """Tokenize (question, answer) turns about one image with the processor's prompt.

    Args:
        processor: tokenizer and prompt template.
        turns: (question, answer) pairs in order.
        isolate_turns: whether every turn follows the image as if it were the first. Earlier answers may
            contain later ones ("the star is red" answers "what shape is red"), so turns of unrelated
            questions must not attend to each other. By default, turns follow one another as in LLaVA.
    """
    ids: list[int] = []
    labels: list[int] = []
    turn_of_token: list[int] = []

    def append(tokens: Sequence[int], is_target: bool, turn: int) -> None:
        ids.extend(tokens)
        labels.extend(tokens if is_target else [IGNORED] * len(tokens))
        turn_of_token.extend([turn] * len(tokens))

    for number, (question, answer) in enumerate(turns, start=1):
        prompt = processor.prompt_ids(question)
        end_of_image = prompt.index(processor.image_token_id) + 1
        if number == 1:
            append(prompt[:end_of_image], False, 0)
        is_continued = number > 1 and not isolate_turns
        turn = number if isolate_turns else 0
        append(processor.next_turn_ids(question) if is_continued else prompt[end_of_image:], False, turn)
        append(processor.answer_ids(answer), True, turn)
    return Conversation(torch.tensor(ids), torch.tensor(labels), torch.tensor(turn_of_token))


def expand_images(
    conversations: Sequence[Conversation],
    num_visual_tokens: Sequence[int],
    image_token_id: int,
    pad_id: int,
    multiple: int = 1,
) -> dict[str, Tensor]:
    """Return a right-padded batch in which placeholders are repeated once per visual token of their image.

    Rows are padded to a multiple of `multiple` tokens: oneDNN compiles matrix kernels for every new length,
    which takes a third of the time of training on a CPU.

    Returns `input_ids`, `labels` and `position_ids` `[batch, length]`, and `attention_mask`: `[batch,
    length]` if turns are not isolated, otherwise an additive mask `[batch, 1, length, length]` that prevents
    attention between turns. The positions of every turn then continue from the image.
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
    """Data set of LLaVA's instruction-tuning JSON.

    The file contains `[{"id", "image", "conversations": [{"from", "value"}, ...]}, ...]`. System turns are
    skipped, because the prompt template has its own. Rows without an image are skipped too; `num_left_out`
    is their number. Raises ValueError for a file that is not such JSON.

    Args:
        path: the JSON file.
        open_image: image name -> RGB image. Names come from the file, so this function must reject names
            outside of its folder and images that cannot be read.
        processor: prompts, tokenizer and image preprocessing of the model to be trained.
        isolate_turns: as in `tokenize_conversation`.
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
        """Return a batch for `M3Training`."""
        images = self.processor.preprocess([row["image"] for row in rows])
        return {**images, "conversation": [row["conversation"] for row in rows]}


def _turns_of(row: dict[str, Any], path: str | Path) -> list[tuple[str, str]]:
    """Return the (question, answer) turns of a row. Raises ValueError that names the row."""
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
