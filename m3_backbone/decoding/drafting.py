"""Drafts of answers, and their verification against the decoded tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from m3_backbone.decoding.sampling import Draw, sample_tokens


@dataclass
class Work:
    """Counters of decoder work since creation."""

    num_answers: int = 0
    num_drafted: int = 0  # answers that equal a draft
    prefix_tokens: int = 0
    question_tokens: int = 0
    draft_tokens: int = 0
    decoded_tokens: int = 0
    padding_tokens: int = 0  # padding, and tokens of finished rows that stay in the batch

    @property
    def num_tokens(self) -> int:
        prompts = self.prefix_tokens + self.question_tokens
        return prompts + self.draft_tokens + self.decoded_tokens + self.padding_tokens

    def add(self, other: "Work") -> None:
        """Add the counts of `other` to these."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def since(self, earlier: "Work") -> "Work":
        """Return the counts minus those of `earlier`."""
        return Work(*(now - before for now, before in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Stop:
    """Stopping rule of an answer: one of the tokens `end_ids`, or `max_new_tokens` tokens."""

    end_ids: frozenset[int]
    max_new_tokens: int


class Chosen:
    """Next tokens of answers, with log-probabilities, margins over the best other token, and entropies.

    All are in nats. The entropy is that of the distribution of which the token was chosen, at temperature 1.

    Args:
        log_probs: `[num_steps, vocabulary]`.
        steps: for each step, how the answer is sampled (None: greedy) and the token's position in the answer.
    """

    def __init__(self, log_probs: Tensor, steps: Sequence[tuple[Draw | None, int]]) -> None:
        values, best = log_probs.topk(2)
        tokens = best[:, 0].clone()
        if sampled := [(i, draw, step) for i, (draw, step) in enumerate(steps) if draw]:
            index = torch.tensor([i for i, _, _ in sampled], device=log_probs.device)
            settings = torch.tensor(
                [(draw.temperature, draw.uniform(step)) for _, draw, step in sampled], dtype=torch.float64
            ).to(log_probs.device)
            tokens[index] = sample_tokens(log_probs[index], settings[:, 0], settings[:, 1])
        token_log_probs = log_probs.gather(1, tokens[:, None])[:, 0]
        best_other = torch.where(tokens == best[:, 0], values[:, 1], values[:, 0])
        self.tokens: list[int] = tokens.tolist()
        self.log_probs: list[float] = token_log_probs.tolist()
        self.margins: list[float] = (token_log_probs - best_other).tolist()
        entropies = torch.special.entr(log_probs.exp()).sum(-1).clamp(min=0)
        self.entropies: list[float] = entropies.tolist()


class TokenTree:
    """Prefix tree of the tokens after an image: sequences share the nodes of a common prefix.

    Node i is the token `ids[i]` at position `depths[i]` after the image. It follows the node `parents[i]`, or
    the image if `parents[i]` is -1. Parents precede their children.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, tokens: Sequence[int], parent: int = -1) -> list[int]:
        """Add a sequence after the node `parent` and return its nodes."""
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
        """Mask `[num_nodes, num_nodes]`: nodes attend to themselves and their ancestors; None if causal."""
        if self.parents == list(range(-1, len(self) - 1)):
            return None
        mask = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return torch.from_numpy(mask)


@dataclass(eq=False)
class Prompt:
    """A question about an image, drafts of its answer, and the packed positions of its tokens."""

    owner: int  # number of the image
    question: Sequence[int]
    drafts: Sequence[tuple[int, ...]]
    # Positions of the image and the question, and of each draft. The last token of a draft is left out
    # because no token after it is needed.
    places: list[int] = field(default_factory=list)
    draft_places: list[list[int]] = field(default_factory=list)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Packed positions whose next token is needed, each with the position of that token in the answer.

        They are the end of the question and all tokens of the drafts except the last ones.
        """
        draft_steps = (enumerate(places, start=1) for places in self.draft_places)
        return [(self.places[-1], 0), *((place, step) for steps in draft_steps for step, place in steps)]

    @cached_property
    def paths(self) -> list[list[int]]:
        """For each draft, the indices of the `steps` that predict its tokens."""
        paths, end = [], 1
        for draft in self.drafts:
            paths.append([0, *range(end, end + len(draft) - 1)])
            end += len(draft) - 1
        return paths


@dataclass(eq=False)
class Row:
    """An answer that is being decoded, one row of the batch. It is greedy if `draw` is None.

    `watch` is called with the tokens so far whenever the answer grows.
    """

    prompt: Prompt
    stop: Stop
    draw: Draw | None = None
    # Tokens decoded so far, how many of them come from a draft, and the packed positions of the latter.
    token_ids: list[int] = field(default_factory=list)
    num_accepted: int = 0
    cached: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    margin: float = math.inf
    total_entropy: float = 0.0  # sum over the tokens
    first_probability: float = 0.0  # of the first token of the answer
    watch: Callable[[list[int]], None] | None = None

    @property
    def is_finished(self) -> bool:
        ids = self.token_ids
        return len(ids) >= self.stop.max_new_tokens or (bool(ids) and ids[-1] in self.stop.end_ids)

    def accept(self, chosen: Chosen, start: int) -> None:
        """Accept the longest matching draft prefix, then append the next decoded token.

        The decoded tokens of the prompt's `steps` begin at index `start` of `chosen`.
        """
        prompt = self.prompt
        paths = [[start + step for step in path] for path in prompt.paths]
        num_matching = [
            self._count_matching(draft, path, chosen)
            for draft, path in zip(prompt.drafts, paths, strict=True)
        ]
        self.num_accepted = max(num_matching, default=0)
        path = [start]
        self.first_probability = math.exp(chosen.log_probs[start])
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
        """Length of the longest prefix of a draft that equals the decoded tokens."""
        count = 0
        for token, step in zip(draft[: self.stop.max_new_tokens], path, strict=False):
            if chosen.tokens[step] != token:
                break
            count += 1
            if token in self.stop.end_ids:
                break
        return count

    def append(self, chosen: Chosen, step: int) -> None:
        """Append the decoded token at index `step` of `chosen`."""
        self.token_ids.append(chosen.tokens[step])
        self._add_likelihood(chosen, step)
        if self.watch is not None:
            self.watch(self.token_ids)

    def _add_likelihood(self, chosen: Chosen, step: int) -> None:
        self.log_prob += chosen.log_probs[step]
        self.margin = min(self.margin, chosen.margins[step])
        self.total_entropy += chosen.entropies[step]
