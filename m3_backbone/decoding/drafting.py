"""Answers that are verified rather than generated: drafts, and how much of them decoding takes."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from m3_backbone.decoding.sampling import Draw, draw_tokens


@dataclass
class Work:
    """Tokens that went through the decoder, and what became of the answers, since this was made."""

    num_answers: int = 0
    num_drafted: int = 0  # answers of which a draft was accepted whole
    prefix_tokens: int = 0
    question_tokens: int = 0
    draft_tokens: int = 0
    decoded_tokens: int = 0
    padding_tokens: int = 0  # of rows that go on although they are finished

    @property
    def num_tokens(self) -> int:
        prompts = self.prefix_tokens + self.question_tokens
        return prompts + self.draft_tokens + self.decoded_tokens + self.padding_tokens

    def since(self, earlier: "Work") -> "Work":
        """What came on top of an earlier count."""
        return Work(*(now - before for now, before in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Stop:
    """Where answers end: after one of the tokens `end_ids`, or `max_new_tokens`."""

    end_ids: frozenset[int]
    max_new_tokens: int


class Chosen:
    """Tokens that answers go on with, their log-probabilities, and their leads over the best other token."""

    def __init__(self, log_probs: Tensor, places: Sequence[tuple[Draw | None, int]]) -> None:
        """Place i, of `log_probs` `[num_places, vocabulary]`, asks for token number `places[i][1]` of an
        answer: that of a draw, or the greedy one."""
        values, best = log_probs.topk(2)
        tokens = best[:, 0].clone()
        if drawn := [(i, draw, step) for i, (draw, step) in enumerate(places) if draw]:
            rows = torch.tensor([i for i, _, _ in drawn], device=log_probs.device)
            chances = torch.tensor(
                [(draw.temperature, draw.luck(step)) for _, draw, step in drawn], dtype=torch.float64
            ).to(log_probs.device)
            tokens[rows] = draw_tokens(log_probs[rows], chances[:, 0], chances[:, 1])
        of_token = log_probs.gather(1, tokens[:, None])[:, 0]
        other = torch.where(tokens == best[:, 0], values[:, 1], values[:, 0])
        self.tokens: list[int] = tokens.tolist()
        self.log_probs: list[float] = of_token.tolist()
        self.margins: list[float] = (of_token - other).tolist()


@dataclass(eq=False)
class Prompt:
    """A question on an image, drafts of its answer, and where its tokens lie in the pack."""

    owner: int  # number of the image
    question: Sequence[int]
    drafts: Sequence[tuple[int, ...]]
    prefix: range = range(0)
    start: int = 0
    # Per draft, where its tokens but the last one lie: nothing is asked of what follows that.
    draft_starts: list[int] = field(default_factory=list)

    @property
    def places(self) -> list[int]:
        """Where in the pack the image and the question lie."""
        return [*self.prefix, *range(self.start, self.start + len(self.question))]

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Where in the pack a token is asked for, and its number in the answer: after the question, and
        inside every draft."""
        after_question = self.start + len(self.question) - 1
        return [
            (after_question, 0),
            *(
                (start + step - 1, step)
                for start, draft in zip(self.draft_starts, self.drafts, strict=True)
                for step in range(1, len(draft))
            ),
        ]

    @cached_property
    def paths(self) -> list[list[int]]:
        """Per draft, which of `asked` ask for its tokens."""
        paths, end = [], 1
        for draft in self.drafts:
            paths.append([0, *range(end, end + len(draft) - 1)])
            end += len(draft) - 1
        return paths


@dataclass(eq=False)
class Row:
    """The answer to a prompt in the making; a greedy one without a `draw`."""

    prompt: Prompt
    stop: Stop
    draw: Draw | None = None
    # The answer so far, the part of it that a draft gave, and where that part's tokens lie, if they ran.
    token_ids: list[int] = field(default_factory=list)
    num_accepted: int = 0
    cached: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    margin: float = math.inf

    @property
    def is_finished(self) -> bool:
        ids = self.token_ids
        return len(ids) >= self.stop.max_new_tokens or (bool(ids) and ids[-1] in self.stop.end_ids)

    def accept(self, chosen: Chosen, start: int) -> None:
        """Take over of the drafts what decoding gives, and the token that it gives next.

        From place `start` on, `chosen` has what decoding takes where the prompt asks.
        """
        prompt = self.prompt
        paths = [[start + place for place in path] for path in prompt.paths]
        taken = [
            self._count_right(draft, path, chosen) for draft, path in zip(prompt.drafts, paths, strict=True)
        ]
        self.num_accepted = max(taken, default=0)
        its = [start]
        if self.num_accepted:
            number = taken.index(self.num_accepted)
            its, draft, first = paths[number], prompt.drafts[number], prompt.draft_starts[number]
            self.token_ids = list(draft[: self.num_accepted])
            # The last token of a draft never ran.
            self.cached = list(range(first, first + min(self.num_accepted, len(draft) - 1)))
        if not self.is_finished and self.num_accepted < len(its):
            self.token_ids.append(chosen.tokens[its[self.num_accepted]])
        for place in its[: len(self.token_ids)]:
            self._count_in(chosen, place)

    def _count_right(self, draft: Sequence[int], path: Sequence[int], chosen: Chosen) -> int:
        """How many of a draft's first tokens decoding would have given."""
        count = 0
        for token, place in zip(draft[: self.stop.max_new_tokens], path, strict=False):
            if chosen.tokens[place] != token:
                break
            count += 1
            if token in self.stop.end_ids:
                break
        return count

    def append(self, chosen: Chosen, place: int) -> None:
        """Go on with the token that was asked for at `place`."""
        self.token_ids.append(chosen.tokens[place])
        self._count_in(chosen, place)

    def _count_in(self, chosen: Chosen, place: int) -> None:
        self.log_prob += chosen.log_probs[place]
        self.margin = min(self.margin, chosen.margins[place])
