"""Answers that are verified rather than generated: drafts, and how much of them greedy decoding takes."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from torch import Tensor


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


class Greedy:
    """Tokens that greedy decoding takes, their log-probabilities, and their leads over the next best."""

    def __init__(self, log_probs: Tensor) -> None:
        """`log_probs` `[num_places, vocabulary]`."""
        values, tokens = log_probs.topk(2)
        self.tokens: list[int] = tokens[:, 0].tolist()
        self.log_probs: list[float] = values[:, 0].tolist()
        self.margins: list[float] = (values[:, 0] - values[:, 1]).tolist()


@dataclass
class Row:
    """A question, its drafts, and where its tokens lie in the pack."""

    question: Sequence[int]
    drafts: list[tuple[int, ...]]
    stop: Stop
    prefix: range = range(0)
    start: int = 0
    # Per draft, where its tokens but the last one lie: nothing is asked of what follows that.
    draft_starts: list[int] = field(default_factory=list)
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

    def accept(self, greedy: Greedy, places: Sequence[Sequence[int]], after_question: int) -> None:
        """Take over of the drafts what greedy decoding gives, and the token that it gives next.

        Args:
            greedy: what greedy decoding takes at every place that was asked.
            places: per draft, the places that ask for its tokens.
            after_question: the place that asks for the first token.
        """
        taken = [
            self._count_greedy(draft, its, greedy) for draft, its in zip(self.drafts, places, strict=True)
        ]
        self.num_accepted = max(taken, default=0)
        its: Sequence[int] = [after_question]
        if self.num_accepted:
            number = taken.index(self.num_accepted)
            its, draft, start = places[number], self.drafts[number], self.draft_starts[number]
            self.token_ids = list(draft[: self.num_accepted])
            # The last token of a draft never ran.
            self.cached = list(range(start, start + min(self.num_accepted, len(draft) - 1)))
        if not self.is_finished and self.num_accepted < len(its):
            self.token_ids.append(greedy.tokens[its[self.num_accepted]])
        for place in its[: len(self.token_ids)]:
            self._count_in(greedy, place)

    def _count_greedy(self, draft: Sequence[int], places: Sequence[int], greedy: Greedy) -> int:
        """How many of a draft's first tokens greedy decoding would have given."""
        count = 0
        for token, place in zip(draft[: self.stop.max_new_tokens], places, strict=False):
            if greedy.tokens[place] != token:
                break
            count += 1
            if token in self.stop.end_ids:
                break
        return count

    def append(self, greedy: Greedy, place: int) -> None:
        """Go on with the token that was asked for at `place`."""
        self.token_ids.append(greedy.tokens[place])
        self._count_in(greedy, place)

    def _count_in(self, greedy: Greedy, place: int) -> None:
        self.log_prob += greedy.log_probs[place]
        self.margin = min(self.margin, greedy.margins[place])
