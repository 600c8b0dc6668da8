"""Answers and reference likelihoods in little more than one pass over the tokens of a batch.

What precedes the questions on an image runs once for all of them, and a question once for all its answers.
Answers are verified rather than generated (speculative decoding, Leviathan et al., arXiv 2211.17192, with
greedy acceptance): references and other drafts run with the question; as long as each token is the one that
decoding takes, it is accepted, and only what differs is decoded on. That goes for drawn answers too, as a
draw, like greedy decoding, takes one certain token (`sampling`). The same pass gives the references'
likelihoods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from m3_backbone.decoding.drafting import Chosen, Prompt, Row, Stop, Work
from m3_backbone.decoding.packing import Cache, PackedSegments, Segment, packed
from m3_backbone.decoding.sampling import Draw
from m3_backbone.llava.modeling import M3Model

# Tokens for which a batch that goes on gets room at once.
_ROOM = 16


@dataclass(frozen=True)
class Decoded:
    """`token_ids` with the end token, if it came; `confidence`: product of their probabilities.

    `margin`: least lead of a chosen token over the best other one, in nats. `nll`: least mean negative
    log-likelihood per token over the row's references, and `reference_tokens` the number of tokens of that
    reference; None without references.
    """

    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None


class Decoder:
    """Runs the language model of `model` on questions about images, and on drafts of their answers.

    Args:
        model: an M3 model.
        end_ids: tokens that end an answer.
        max_new_tokens: where answers are cut off.
        system_ids: what precedes the image in every prompt; runs once.
    """

    def __init__(
        self, model: M3Model, end_ids: Sequence[int], max_new_tokens: int, system_ids: Sequence[int] = ()
    ) -> None:
        self.language_model: Any = model.model.language_model
        self.lm_head = model.lm_head
        self.embed: Any = model.get_input_embeddings()
        self.device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]
        self.stop = Stop(frozenset(end_ids), max_new_tokens)
        self.system_ids = list(system_ids)
        self.work = Work()
        self._system: Cache | None = None

    @torch.no_grad()
    def decode(
        self,
        images: Sequence[Tensor],
        owners: Sequence[int],
        questions: Sequence[Sequence[int]],
        references: Sequence[Sequence[Sequence[int]]],
        drafts: Sequence[Sequence[Sequence[int]]] | None = None,
        draws: Sequence[Draw] | None = None,
        *,
        answer: bool = True,
    ) -> list[Decoded]:
        """Row i is what follows the visual tokens `images[owners[i]]`, `[num_tokens, hidden]`, in a prompt.

        `references[i]` are token ids of possible answers, end token included; `drafts[i]` of further
        guesses at the answer, which is that of `draws[i]`, or greedy. Rows that differ in their draw alone
        share a prompt. Without `answer` the references are all that is looked at.
        """
        prompts: dict[Any, Prompt] = {}
        rows: list[Row] = []
        nothing: list[Any] = [()] * len(owners)
        greedy: list[Draw | None] = [None] * len(owners)
        columns = (owners, questions, references, (answer and drafts) or nothing, draws or greedy)
        for owner, question, its, more, draw in zip(*columns, strict=True):
            unique = tuple(dict.fromkeys(tuple(guess) for guess in (*its, *more) if guess))
            prompt = prompts.setdefault((owner, tuple(question), unique), Prompt(owner, question, unique))
            rows.append(Row(prompt, self.stop, draw))
        with packed(self.language_model):
            layout, hidden = self._prefill(images, list(prompts.values()))
            nlls = self._verify(list(prompts.values()), rows, hidden, references)
            if not answer:
                return [Decoded([], 0.0, 0.0, *likeliest) for likeliest in nlls]
            is_open = [row for row in rows if not row.is_finished]
            # However many answers there are to a question, no more go on at once than there are questions.
            for start in range(0, len(is_open), len(prompts)):
                self._go_on(layout, is_open[start : start + len(prompts)])
        self.work.num_answers += len(rows)
        return [
            Decoded(row.token_ids, math.exp(row.log_prob), row.margin, *likeliest)
            for row, likeliest in zip(rows, nlls, strict=True)
        ]

    def _prefill(self, images: Sequence[Tensor], prompts: Sequence[Prompt]) -> tuple[PackedSegments, Tensor]:
        """Images, questions and drafts in one pass: the states `[num_tokens, hidden]` of all of them."""
        system = self._system_cache()
        num_system = len(self.system_ids)
        of_image: list[list[Prompt]] = [[] for _ in images]
        for prompt in prompts:
            of_image[prompt.owner].append(prompt)
        pieces: list[Tensor] = []
        segments: list[Segment] = []
        positions: list[Tensor] = []
        start = 0
        for visual, its_prompts in zip(images, of_image, strict=True):
            ids: list[int] = []
            # Per token: its question, its draft (0: the question itself), and its position after the image.
            turns: list[int] = []
            branches: list[int] = []
            places: list[int] = []
            prefix = range(start, start + len(visual))
            for turn, prompt in enumerate(its_prompts):
                prompt.prefix, prompt.start = prefix, prefix.stop + len(ids)
                for branch, tokens in enumerate([prompt.question, *(draft[:-1] for draft in prompt.drafts)]):
                    if branch:
                        prompt.draft_starts.append(prefix.stop + len(ids))
                    ids.extend(tokens)
                    turns.extend([turn] * len(tokens))
                    branches.extend([branch] * len(tokens))
                    first = len(prompt.question) if branch else 0
                    places.extend(range(first, first + len(tokens)))
                self.work.question_tokens += len(prompt.question)
            self.work.prefix_tokens += len(visual)
            self.work.draft_tokens += len(ids) - sum(len(prompt.question) for prompt in its_prompts)
            text = self.embed(torch.tensor(ids, dtype=torch.long, device=self.device))
            pieces += [visual.to(text), text]
            is_plain = max(turns, default=0) == 0 and max(branches, default=0) <= 1
            sees = None if is_plain else self._visibility(turns, branches)
            segments.append(Segment(len(visual) + len(ids), len(visual), sees))
            first = num_system + len(visual)
            positions += [torch.arange(num_system, first), first + torch.tensor(places, dtype=torch.long)]
            start = prefix.stop + len(ids)
        layout = PackedSegments(segments, system)
        return layout, self._run(torch.cat(pieces)[None], torch.cat(positions)[None], layout)[0]

    def _visibility(self, turns: list[int], branches: list[int]) -> Tensor:
        """Which tokens after an image see which: their own question, and their own draft of its answer."""
        turn, branch = torch.tensor(turns), torch.tensor(branches)
        same_branch = (branch == 0) | (branch[:, None] == branch)
        return ((turn[:, None] == turn) & same_branch).tril().to(self.device)

    def _system_cache(self) -> Cache:
        if self._system is None:
            layout = PackedSegments([Segment(len(self.system_ids), len(self.system_ids))])
            if self.system_ids:
                ids = torch.tensor([self.system_ids], device=self.device)
                self._run(self.embed(ids), torch.arange(len(self.system_ids))[None], layout)
            self._system = layout.cache
        return self._system

    def _run(self, embeds: Tensor, positions: Tensor, layout: Any) -> Tensor:
        """Last states of `embeds`, either `[batch, length, hidden]`."""
        outputs = self.language_model(
            inputs_embeds=embeds, position_ids=positions.to(embeds.device), use_cache=False, layout=layout
        )
        return outputs.last_hidden_state

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., vocabulary]`, float32."""
        return self.lm_head(hidden).to(self.device, torch.float32).log_softmax(-1)

    def _choose(self, log_probs: Tensor, places: Sequence[tuple[Row, int]]) -> Chosen:
        """The tokens that answers go on with: place i asks for token number `places[i][1]` of a row's."""
        return Chosen(log_probs, [(row.draw, step) for row, step in places])

    def _verify(
        self,
        prompts: Sequence[Prompt],
        rows: Sequence[Row],
        hidden: Tensor,
        references: Sequence[Sequence[Sequence[int]]],
    ) -> list[tuple[float | None, int | None]]:
        """Give every row the longest draft that decoding would give, and its next token.

        Returns the least mean NLL of the references of each, and that reference's number of tokens.
        """
        asked = {prompt: prompt.asked for prompt in prompts}
        firsts = dict(zip(prompts, accumulate(map(len, asked.values()), initial=0), strict=False))
        places = [place for its in asked.values() for place, _ in its]
        log_probs = self._log_probs(hidden[torch.tensor(places, device=hidden.device)])
        drafted = [
            (firsts[prompt] + place, token)
            for prompt in prompts
            for draft, path in zip(prompt.drafts, prompt.paths, strict=True)
            for place, token in zip(path, draft, strict=True)
        ]
        where = torch.tensor(drafted, dtype=torch.long, device=self.device).reshape(-1, 2)
        likelihoods = iter(log_probs[where[:, 0], where[:, 1]].tolist())
        nll_of = {
            prompt: {draft: -sum(next(likelihoods) for _ in draft) / len(draft) for draft in prompt.drafts}
            for prompt in prompts
        }

        asking = [(row, step) for row in rows for _, step in asked[row.prompt]]
        index = [firsts[row.prompt] + i for row in rows for i in range(len(asked[row.prompt]))]
        chosen = self._choose(log_probs[torch.tensor(index, device=log_probs.device)], asking)
        nlls: list[tuple[float | None, int | None]] = []
        start = 0
        for row, its_references in zip(rows, references, strict=True):
            row.accept(chosen, start)
            start += len(asked[row.prompt])
            self.work.num_drafted += row.is_finished and row.num_accepted == len(row.token_ids)
            wanted = [(nll_of[row.prompt][tuple(each)], len(each)) for each in its_references]
            nlls.append(min(wanted) if wanted else (None, None))
        return nlls

    def _go_on(self, layout: PackedSegments, rows: list[Row]) -> None:
        """Decode token by token what the drafts leave open."""
        growing = layout.take(
            [[*row.prompt.places, *row.cached] for row in rows], min(_ROOM, self.stop.max_new_tokens)
        )
        while True:
            if not growing.room:
                growing.grow(_ROOM)
            ids = torch.tensor([row.token_ids[-1:] for row in rows], device=self.device)
            hidden = self._run(self.embed(ids), growing.lengths[:, None], growing)
            growing.lengths = growing.lengths + 1
            places = [(row, len(row.token_ids)) for row in rows]
            chosen = self._choose(self._log_probs(hidden[:, -1]), places)
            for place, row in enumerate(rows):
                if row.is_finished:
                    self.work.padding_tokens += 1
                    continue
                self.work.decoded_tokens += 1
                row.append(chosen, place)
            is_open = [place for place, row in enumerate(rows) if not row.is_finished]
            if not is_open:
                return
            if 2 * len(is_open) <= len(rows):  # dropping rows copies the cache: not for every single one
                growing.keep(is_open)
                rows = [rows[place] for place in is_open]
