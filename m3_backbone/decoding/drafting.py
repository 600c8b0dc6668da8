"""Answers that are verified rather than generated: drafts, and how much of them decoding accepts."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from m3_backbone.decoding.sampling import Draw, draw_tokens


@dataclass
class Work:
    """Counters of decoder work since creation."""

    num_answers: int = 0
    num_drafted: int = 0  # answers of which a draft was accepted whole
    prefix_tokens: int = 0
    question_tokens: int = 0
    draft_tokens: int = 0
    decoded_tokens: int = 0
    padding_tokens: int = 0  # of finished rows that stay in their batch

    @property
    def num_tokens(self) -> int:
        prompts = self.prefix_tokens + self.question_tokens
        return prompts + self.draft_tokens + self.decoded_tokens + self.padding_tokens

    def add(self, other: "Work") -> None:
        """Add the counts of `other` to these."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def since(self, earlier: "Work") -> "Work":
        """The counts minus earlier ones."""
        return Work(*(now - before for now, before in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Stop:
    """Where an answer ends: after one of the tokens `end_ids`, or after `max_new_tokens`."""

    end_ids: frozenset[int]
    max_new_tokens: int


class Chosen:
    """Next tokens of answers, their log-probabilities, and their leads over the best other token.

    Args:
        log_probs: `[num_steps, vocabulary]`.
        steps: for each, how the answer is sampled (None: greedy), and the number of the token in its answer.
    """

    def __init__(self, log_probs: Tensor, steps: Sequence[tuple[Draw | None, int]]) -> None:
        values, best = log_probs.topk(2)
        tokens = best[:, 0].clone()
        if drawn := [(i, draw, step) for i, (draw, step) in enumerate(steps) if draw]:
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


class TokenTree:
    """Tokens after an image. Sequences with the same first tokens share them, so that they run once.

    Node i is the token `ids[i]`, which follows the node `parents[i]`, or the image where that is -1, and is
    number `depths[i]` after the image. Parents come before their children.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, tokens: Sequence[int], parent: int = -1) -> list[int]:
        """Nodes of `tokens`, of which the first follows the node `parent`."""
        nodes = []
        for token in tokens:
            node = self._children.setdefault((parent, token), len(self))
            if node == len(self):
                self.ids.append(token)
                self.parents.append(parent)
                self.depths.append(self.depths[parent] + 1 if parent >= 0 else 0)
            nodes.append(node)
            parent = node
        return nodes

    def make_mask(self) -> Tensor | None:
        """Mask `[num_nodes, num_nodes]`: each node attends to its ancestors and itself; None if causal."""
        if self.parents == list(range(-1, len(self) - 1)):
            return None
        mask = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return torch.from_numpy(mask)


@dataclass(eq=False)
class Prompt:
    """A question about an image, drafts of its answer, and the places of its tokens in the pack."""

    owner: int  # number of the image
    question: Sequence[int]
    drafts: Sequence[tuple[int, ...]]
    # Places of the image and the question, and of each draft. The last token of a draft is left out: no token
    # after it is needed.
    places: list[int] = field(default_factory=list)
    draft_places: list[list[int]] = field(default_factory=list)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Places whose next token is needed, with its number in the answer.

        They are the end of the question and all tokens of the drafts but the last ones.
        """
        drafted = (enumerate(places, start=1) for places in self.draft_places)
        return [(self.places[-1], 0), *((place, step) for steps in drafted for step, place in steps)]

    @cached_property
    def paths(self) -> list[list[int]]:
        """For each draft, which of `steps` give its tokens."""
        paths, end = [], 1
        for draft in self.drafts:
            paths.append([0, *range(end, end + len(draft) - 1)])
            end += len(draft) - 1
        return paths


@dataclass(eq=False)
class Row:
    """The unfinished answer to a prompt; greedy without a `draw`."""

    prompt: Prompt
    stop: Stop
    draw: Draw | None = None
    # The answer so far, how many of its tokens came from a draft, and the places of those that ran.
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
        """Accept the longest matching draft prefix, then append the next decoded token.

        `chosen` holds the decoded tokens of the prompt's `steps` from number `start` on.
        """
        prompt = self.prompt
        paths = [[start + step for step in path] for path in prompt.paths]
        num_matching = [
            self._count_matching(draft, path, chosen)
            for draft, path in zip(prompt.drafts, paths, strict=True)
        ]
        self.num_accepted = max(num_matching, default=0)
        path = [start]
        if self.num_accepted:
            number = num_matching.index(self.num_accepted)
            path = paths[number]
            self.token_ids = list(prompt.drafts[number][: self.num_accepted])
            self.cached = prompt.draft_places[number][: self.num_accepted]
        if not self.is_finished and self.num_accepted < len(path):
            self.token_ids.append(chosen.tokens[path[self.num_accepted]])
        for step in path[: len(self.token_ids)]:
            self._add_likelihood(chosen, step)

    def _count_matching(self, draft: Sequence[int], path: Sequence[int], chosen: Chosen) -> int:
        """Number of first tokens of a draft that decoding gives too."""
        count = 0
        for token, step in zip(draft[: self.stop.max_new_tokens], path, strict=False):
            if chosen.tokens[step] != token:
                break
            count += 1
            if token in self.stop.end_ids:
                break
        return count

    def append(self, chosen: Chosen, step: int) -> None:
        """Append the decoded token number `step` of `chosen`."""
        self.token_ids.append(chosen.tokens[step])
        self._add_likelihood(chosen, step)

    def _add_likelihood(self, chosen: Chosen, step: int) -> None:
        self.log_prob += chosen.log_probs[step]
        self.margin = min(self.margin, chosen.margins[step])
