"""Training conversations as token ids with labels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from m3_backbone.llava.processing import M3Processor

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
