"""Answers and reference likelihoods in little more than one pass over the tokens of a batch.

The prefix of the questions on an image runs once for all of them, and a question once for all its answers.
Answers are verified rather than generated (speculative decoding, Leviathan et al., arXiv 2211.17192, with
greedy acceptance): references and other drafts run with the question. A draft is accepted as far as each of
its tokens is the one that decoding gives, and only the rest of the answer is decoded token by token. That
holds for sampled answers too, since sampling with a given key gives one certain token (`sampling`). The same
pass gives the likelihoods of the references.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from m3_backbone.decoding.drafting import Chosen, Prompt, Row, Stop, Work
from m3_backbone.decoding.packing import Cache, GrowingRows, Layout, PackedSegments, Segment, view_packed
from m3_backbone.decoding.sampling import Draw

log = logging.getLogger(__name__)

# Tokens by which the sequences of a batch can grow before their cache is enlarged.
_ROOM = 16


@dataclass(frozen=True)
class Decoded:
    """An answer as token ids; the fields are those of `m3_backbone.backbone.Answer`."""

    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None


class Decoder:
    """Runs a language model on questions about images, and on drafts of their answers.

    Several threads may decode at once: all that belongs to one call is passed along, and the model stays as
    it is.

    Args:
        model: a vision-language model of transformers whose language model is a plain decoder.
        end_ids: tokens that end an answer.
        max_new_tokens: largest number of tokens of an answer.
        system_ids: what precedes the image in every prompt; runs once.
    """

    def __init__(
        self, model: Any, end_ids: Sequence[int], max_new_tokens: int, system_ids: Sequence[int] = ()
    ) -> None:
        self.language_model = view_packed(model.model.language_model)
        self.lm_head = model.lm_head
        self.embed = model.get_input_embeddings()
        self.device: torch.device = self.embed.weight.device
        self.stop = Stop(frozenset(end_ids), max_new_tokens)
        self.system_ids = list(system_ids)
        self.work = Work()
        self._work_lock = Lock()
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
    ) -> list[Decoded]:
        """Answers to questions[i], each after the visual tokens `images[owners[i]]`, `[num_tokens, hidden]`.

        `references[i]` are token ids of possible answers, end token included; `drafts[i]` are further
        guesses at the answer, which is greedy, or sampled as `draws[i]` says. Rows that differ in their draw
        alone share a prompt.
        """
        prompts: dict[Any, Prompt] = {}
        rows: list[Row] = []
        no_drafts: list[Any] = [()] * len(owners)
        no_draws: list[Draw | None] = [None] * len(owners)
        columns = (owners, questions, references, drafts or no_drafts, draws or no_draws)
        for owner, question, row_references, row_drafts, draw in zip(*columns, strict=True):
            guesses = dict.fromkeys(tuple(guess) for guess in (*row_references, *row_drafts) if guess)
            prompt = Prompt(owner, question, tuple(guesses))
            prompt = prompts.setdefault((owner, tuple(question), prompt.drafts), prompt)
            rows.append(Row(prompt, self.stop, draw))
        work = Work(num_answers=len(rows))
        layout, hidden = self._prefill(images, list(prompts.values()), work)
        nlls = self._verify(list(prompts.values()), rows, hidden, references, work)
        open_rows = [row for row in rows if not row.is_finished]
        # However many answers a question has, no more of them are decoded at once than there are questions.
        for start in range(0, len(open_rows), len(prompts)):
            self._decode_rest(layout, open_rows[start : start + len(prompts)], work)
        with self._work_lock:
            self.work.add(work)
        return [
            Decoded(row.token_ids, math.exp(row.log_prob), row.margin, *likeliest)
            for row, likeliest in zip(rows, nlls, strict=True)
        ]

    def _prefill(
        self, images: Sequence[Tensor], prompts: Sequence[Prompt], work: Work
    ) -> tuple[PackedSegments, Tensor]:
        """Run images, questions and drafts in one pass. Returns the hidden states `[num_tokens, hidden]`."""
        system = self._system_cache()
        num_system = len(self.system_ids)
        prompts_of: list[list[Prompt]] = [[] for _ in images]
        for prompt in prompts:
            prompts_of[prompt.owner].append(prompt)
        pieces: list[Tensor] = []
        segments: list[Segment] = []
        positions: list[Tensor] = []
        start = 0
        for visual, image_prompts in zip(images, prompts_of, strict=True):
            ids: list[int] = []
            # Per token: its question, its draft (0: the question itself), and its position after the image.
            turns: list[int] = []
            branches: list[int] = []
            places: list[int] = []
            prefix = range(start, start + len(visual))
            for turn, prompt in enumerate(image_prompts):
                prompt.prefix, prompt.start = prefix, prefix.stop + len(ids)
                for branch, tokens in enumerate([prompt.question, *(draft[:-1] for draft in prompt.drafts)]):
                    if branch:
                        prompt.draft_starts.append(prefix.stop + len(ids))
                    ids.extend(tokens)
                    turns.extend([turn] * len(tokens))
                    branches.extend([branch] * len(tokens))
                    first = len(prompt.question) if branch else 0
                    places.extend(range(first, first + len(tokens)))
            num_question_tokens = sum(len(prompt.question) for prompt in image_prompts)
            work.prefix_tokens += len(visual)
            work.question_tokens += num_question_tokens
            work.draft_tokens += len(ids) - num_question_tokens
            text = self.embed(torch.tensor(ids, dtype=torch.long, device=self.device))
            pieces += [visual.to(text), text]
            is_causal = max(turns, default=0) == 0 and max(branches, default=0) <= 1
            sees = None if is_causal else self._visibility(turns, branches)
            segments.append(Segment(len(visual) + len(ids), len(visual), sees))
            first = num_system + len(visual)
            positions += [torch.arange(num_system, first), first + torch.tensor(places, dtype=torch.long)]
            start = prefix.stop + len(ids)
        layout = PackedSegments(segments, system)
        hidden = self._run(torch.cat(pieces)[None], torch.cat(positions)[None], layout)[0]
        assert layout.cache, "the language model has not passed its layout on"
        return layout, hidden

    def _visibility(self, turns: list[int], branches: list[int]) -> Tensor:
        """Mask of the tokens after an image: each attends to its question and to its draft of the answer."""
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

    def _run(self, embeds: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Last hidden states of `embeds`, both `[batch, length, hidden]`."""
        outputs = self.language_model(
            inputs_embeds=embeds, position_ids=positions.to(embeds.device), use_cache=False, layout=layout
        )
        return outputs.last_hidden_state

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., vocabulary]`, float32."""
        return self.lm_head(hidden).to(self.device, torch.float32).log_softmax(-1)

    def _choose(self, log_probs: Tensor, steps: Sequence[tuple[Row, int]]) -> Chosen:
        """Next tokens of answers: `steps[i]` is a row and the number of the token in its answer."""
        return Chosen(log_probs, [(row.draw, step) for row, step in steps])

    def _verify(
        self,
        prompts: Sequence[Prompt],
        rows: Sequence[Row],
        hidden: Tensor,
        references: Sequence[Sequence[Sequence[int]]],
        work: Work,
    ) -> list[tuple[float | None, int | None]]:
        """Accept the longest correct draft of every row, and append its next token.

        Returns, for each row, the least mean NLL of its references and that reference's number of tokens.
        """
        steps = {prompt: prompt.steps for prompt in prompts}
        first_of = dict(zip(prompts, accumulate(map(len, steps.values()), initial=0), strict=False))
        places = [place for prompt_steps in steps.values() for place, _ in prompt_steps]
        log_probs = self._log_probs(hidden[torch.tensor(places, device=hidden.device)])
        draft_tokens = [
            (first_of[prompt] + step, token)
            for prompt in prompts
            for draft, path in zip(prompt.drafts, prompt.paths, strict=True)
            for step, token in zip(path, draft, strict=True)
        ]
        index = torch.tensor(draft_tokens, dtype=torch.long, device=self.device).reshape(-1, 2)
        likelihoods = iter(log_probs[index[:, 0], index[:, 1]].tolist())
        nll_of = {
            prompt: {draft: -sum(next(likelihoods) for _ in draft) / len(draft) for draft in prompt.drafts}
            for prompt in prompts
        }

        row_steps = [(row, number) for row in rows for _, number in steps[row.prompt]]
        index = torch.tensor(
            [first_of[row.prompt] + step for row in rows for step in range(len(steps[row.prompt]))],
            device=log_probs.device,
        )
        chosen = self._choose(log_probs[index], row_steps)
        nlls: list[tuple[float | None, int | None]] = []
        start = 0
        for row, row_references in zip(rows, references, strict=True):
            row.accept(chosen, start)
            start += len(steps[row.prompt])
            work.num_drafted += row.is_finished and row.num_accepted == len(row.token_ids)
            candidates = [(nll_of[row.prompt][tuple(ids)], len(ids)) for ids in row_references]
            nlls.append(min(candidates) if candidates else (None, None))
        return nlls

    def _decode_rest(self, layout: PackedSegments, rows: list[Row], work: Work) -> None:
        """Decode token by token what the drafts leave open."""
        places = [[*row.prompt.places, *row.cached] for row in rows]
        growing: GrowingRows = layout.take(places, min(_ROOM, self.stop.max_new_tokens))
        while rows:
            if not growing.room:
                growing.grow(_ROOM)
            ids = torch.tensor([row.token_ids[-1:] for row in rows], device=self.device)
            hidden = self._run(self.embed(ids), growing.lengths[:, None], growing)
            growing.lengths = growing.lengths + 1
            steps = [(row, len(row.token_ids)) for row in rows]
            chosen = self._choose(self._log_probs(hidden[:, -1]), steps)
            for number, row in enumerate(rows):
                if row.is_finished:
                    work.padding_tokens += 1
                else:
                    work.decoded_tokens += 1
                    row.append(chosen, number)
            open_rows = [number for number, row in enumerate(rows) if not row.is_finished]
            # Dropping rows copies the cache, so not for every single one.
            if 2 * len(open_rows) <= len(rows):
                rows = [rows[number] for number in open_rows]
                if rows:
                    growing.keep(open_rows)


Item = TypeVar("Item")
Other = TypeVar("Other")
Result = TypeVar("Result")


def group_rows(first: Sequence[Item], second: Sequence[Other]) -> list[list[int]]:
    """Numbers of rows, grouped by both keys; groups with the same first key are adjacent."""
    groups: dict[Item, dict[Other, list[int]]] = {}
    for row, (outer, inner) in enumerate(zip(first, second, strict=True)):
        groups.setdefault(outer, {}).setdefault(inner, []).append(row)
    return [rows for subgroups in groups.values() for rows in subgroups.values()]


def halve_until_it_fits(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], batch_size: int
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """(batch, `work(batch)`) for batches of `batch_size` items, halved where one does not fit on the device.

    Raises torch.OutOfMemoryError where a single item does not fit.
    """
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        try:
            results = work(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            yield batch, results
            continue
        # Out here, the failed attempt's tensors are no longer held by the exception.
        torch.cuda.empty_cache()
        _say_once(len(batch))
        yield from halve_until_it_fits(work, batch, (len(batch) + 1) // 2)


@cache
def _say_once(size: int) -> None:
    log.warning("a batch of %d does not fit on the device: halved, as any other that does not fit", size)
