"""Decoder of answers and reference likelihoods in little more than one pass over the tokens of a batch.

The prefix that questions about one image share runs once, and so do the first tokens that questions or
answers have in common. Drafts of the answers, among them the references, run together with the question and
are then verified (speculative decoding, Leviathan et al., arXiv 2211.17192, with greedy acceptance). The
longest prefix of a draft that equals the decoded tokens is accepted, and only the rest of the answer is
decoded token by token. Sampled answers are verified in the same way, since sampling with a given key is
deterministic (`sampling`). The same pass gives the likelihoods of the references.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from m3_backbone.decoding.drafting import Chosen, Prompt, Row, Stop, TokenTree, Work
from m3_backbone.decoding.packing import Cache, GrowingRows, Layout, PackedSegments, Segment, view_packed
from m3_backbone.decoding.sampling import Draw

# Called with the number of a question and the tokens of its answer so far.
Watch = Callable[[int, list[int]], None]
# Number of tokens by which the key-value cache of a batch is enlarged at a time.
_ROOM = 16


@dataclass(frozen=True, eq=False)
class DecoderState:
    """State of the decoder after image and question, before the first token of the answer.

    `hidden` float32 `[hidden_size]` is the last hidden state at the last position of the prompt, after the
    final normalisation, as in `output_hidden_states` of transformers. `probability` is that of the first
    token of the answer.
    """

    hidden: Tensor
    probability: float

    def is_finite(self) -> bool:
        """Return whether all numbers are finite, `hidden` also in half precision, in which it is stored."""
        return math.isfinite(self.probability) and bool(self.hidden.half().isfinite().all())


@dataclass(frozen=True)
class Decoded:
    """An answer as token ids; the fields are those of `m3_backbone.backbone.Answer`."""

    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None
    state: DecoderState | None = None
    entropy: float | None = None


@dataclass(frozen=True, eq=False)
class VisualPrefix:
    """The tokens of one image as they enter the decoder, before the text of the question.

    `embeds` are `[num_tokens, hidden]`. `positions` `[num_axes, num_tokens]` are rotary positions relative to
    the first one, by default consecutive; one axis, or the three of Qwen's M-RoPE. `extent` is the position
    of the next text token, by default the number of tokens. `deep` are features `[num_tokens, hidden]` that
    are added to the hidden states after the first layers, one per layer (DeepStack, arXiv 2406.04334).
    """

    embeds: Tensor
    positions: Tensor | None = None
    extent: int | None = None
    deep: tuple[Tensor, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def text_start(self) -> int:
        """Position of the next text token, relative to the first visual token."""
        return len(self) if self.extent is None else self.extent

    def locate(self, text_depths: Tensor) -> Tensor:
        """Positions `[num_axes, num_tokens + num_text]` of the image and of text tokens at these depths."""
        visual = torch.arange(len(self))[None] if self.positions is None else self.positions.cpu()
        text = (self.text_start + text_depths).expand(len(visual), -1)
        return torch.cat([visual, text], dim=1)


@dataclass(eq=False)
class StartedAnswers:
    """Answers to a batch of questions after the prefill, in the order of the questions.

    `layout` holds the keys and values of the prompts, from which `Decoder.finish` decodes further.
    `last_states` `[num_questions, hidden]` are the last hidden states of the prompts, if they are kept.
    """

    layout: Any
    images: Sequence[VisualPrefix]
    rows: list[Row]
    nlls: list[tuple[float | None, int | None]]
    num_prompts: int
    last_states: Tensor | None

    @property
    def states(self) -> list[DecoderState]:
        """State of the decoder after each question."""
        assert self.last_states is not None, "start with states=True"
        hidden = self.last_states.float().cpu()
        return [
            DecoderState(state, row.first_probability) for state, row in zip(hidden, self.rows, strict=True)
        ]


class Decoder:
    """Decodes answers to questions about images with a language model, given drafts of the answers.

    Several threads may decode at the same time: the state of a call is local, and the model is not changed.

    Args:
        model: a vision-language model of transformers whose language model is a plain causal decoder.
        end_ids: ids of the tokens that end an answer.
        max_new_tokens: largest number of tokens of an answer.
        system_ids: token ids that precede the image in every prompt; they run once per decoder.
    """

    def __init__(
        self, model: Any, end_ids: Sequence[int], max_new_tokens: int, system_ids: Sequence[int] = ()
    ) -> None:
        self._set_model(model)
        self.embed = model.get_input_embeddings()
        self.device: torch.device = self.embed.weight.device
        self.stop = Stop(frozenset(end_ids), max_new_tokens)
        self.system_ids = list(system_ids)
        self.work = Work()
        self._work_lock = Lock()

    def _set_model(self, model: Any) -> None:
        language_model = getattr(model.model, "language_model", None)
        self.language_model = view_packed(language_model or model.model.text_model)
        self.lm_head = model.lm_head
        self._system: Cache | None = None

    @torch.no_grad()
    def decode(
        self,
        images: Sequence[VisualPrefix],
        owners: Sequence[int],
        questions: Sequence[Sequence[int]],
        references: Sequence[Sequence[Sequence[int]]],
        drafts: Sequence[Sequence[Sequence[int]]] | None = None,
        draws: Sequence[Draw] | None = None,
        *,
        states: bool = False,
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Return the answer to each question, in order; the arguments are those of `start` and `finish`."""
        started = self.start(images, owners, questions, references, drafts, draws, states=states)
        return self.finish(started, watch=watch)

    @torch.no_grad()
    def start(
        self,
        images: Sequence[VisualPrefix],
        owners: Sequence[int],
        questions: Sequence[Sequence[int]],
        references: Sequence[Sequence[Sequence[int]]],
        drafts: Sequence[Sequence[Sequence[int]]] | None = None,
        draws: Sequence[Draw] | None = None,
        *,
        states: bool = False,
    ) -> StartedAnswers:
        """Run the prompts and the drafts, and accept the drafts as far as they match.

        Args:
            images: visual tokens of each image.
            owners: number of the image of each question.
            questions: token ids of the prompt after the image.
            references: token ids of the reference answers of each question, end token included.
            drafts: token ids of further drafts of each answer.
            draws: how each answer is sampled; greedy if None. Questions that differ only in `draws` share a
                prompt.
            states: whether the states of the decoder after the questions are kept.
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
        layout, hidden = self._prefill(images, list(prompts.values()), work, states=states)
        nlls = self._verify(list(prompts.values()), rows, hidden, references, work)
        last_states = self._last_states(layout, hidden, [row.prompt for row in rows]) if states else None
        with self._work_lock:
            self.work.add(work)
        return StartedAnswers(layout, images, rows, nlls, len(prompts), last_states)

    @torch.no_grad()
    def finish(
        self,
        started: StartedAnswers,
        numbers: Sequence[int] | None = None,
        num_tokens: int | None = None,
        watch: Watch | None = None,
    ) -> list[Decoded]:
        """Return the answers to the questions of these numbers; by default, to all.

        With `num_tokens`, no token ends an answer before it has that many. `started` is not changed. `watch`
        is called with the number of a question and the tokens of its answer so far, whenever the answer
        grows; it must not change them.
        """
        rows: dict[int, Row] = {}
        for number in range(len(started.rows)) if numbers is None else numbers:
            row = started.rows[number]
            rows[number] = replace(
                row,
                stop=row.stop if num_tokens is None else Stop(frozenset(), num_tokens),
                token_ids=list(row.token_ids),
                watch=None if watch is None else partial(watch, number),
            )
            if watch is not None:
                watch(number, row.token_ids)
        open_rows = [row for row in rows.values() if not row.is_finished]
        work = Work()
        # A question may have many sampled answers; at most as many rows as prompts are decoded at a time.
        for start in range(0, len(open_rows), started.num_prompts):
            part = open_rows[start : start + started.num_prompts]
            self._decode_rest(started.layout, started.images, part, work)
        with self._work_lock:
            self.work.add(work)
        states = [None] * len(started.rows) if started.last_states is None else started.states
        return [
            Decoded(
                row.token_ids,
                math.exp(row.log_prob),
                row.margin,
                *started.nlls[i],
                states[i],
                row.total_entropy / len(row.token_ids),
            )
            for i, row in rows.items()
        ]

    def _last_states(self, layout: Any, hidden: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the last hidden state of each prompt, `[num_prompts, hidden]`."""
        return hidden[torch.tensor([prompt.places[-1] for prompt in prompts], device=hidden.device)]

    def _prefill(
        self, images: Sequence[VisualPrefix], prompts: Sequence[Prompt], work: Work, *, states: bool = False
    ) -> tuple[PackedSegments, Tensor]:
        """Run images, questions and drafts in one pass. Returns layout and states `[num_tokens, hidden]`.

        The states are there whatever `states`, which is for decoders that get logits alone.
        """
        system = self._system_cache()
        num_system = len(self.system_ids)
        prompts_of: list[list[Prompt]] = [[] for _ in images]
        for prompt in prompts:
            prompts_of[prompt.owner].append(prompt)
        pieces: list[Tensor] = []
        segments: list[Segment] = []
        positions: list[Tensor] = []
        is_visual: list[Tensor] = []
        start = 0
        for visual, image_prompts in zip(images, prompts_of, strict=True):
            tree = TokenTree()
            first = start + len(visual)
            for prompt in image_prompts:
                num_before = len(tree)
                question = tree.add(prompt.question)
                num_prompted = len(tree)
                drafts = [tree.add(draft[:-1], question[-1] if question else -1) for draft in prompt.drafts]
                prompt.places = [*range(start, first), *(first + node for node in question)]
                prompt.draft_places = [[first + node for node in draft] for draft in drafts]
                work.question_tokens += num_prompted - num_before
                work.draft_tokens += len(tree) - num_prompted
            work.prefix_tokens += len(visual)
            text = self.embed(torch.tensor(tree.ids, dtype=torch.long, device=self.device))
            pieces += [visual.embeds.to(text), text]
            mask = tree.make_mask()
            mask = None if mask is None else mask.to(self.device)
            segments.append(Segment(len(visual) + len(tree), len(visual), mask))
            positions.append(num_system + visual.locate(torch.tensor(tree.depths, dtype=torch.long)))
            is_visual += [torch.ones(len(visual), dtype=torch.bool), torch.zeros(len(tree), dtype=torch.bool)]
            start = first + len(tree)
        layout = PackedSegments(segments, system)
        deep = _join_deep(images, torch.cat(is_visual)) if is_visual else {}
        hidden = self._run(torch.cat(pieces)[None], torch.cat(positions, dim=1)[:, None], layout, **deep)[0]
        assert layout.cache, "the language model did not pass its layout to the attention"
        return layout, hidden

    def _system_cache(self) -> Cache:
        if self._system is None:
            layout = PackedSegments([Segment(len(self.system_ids), len(self.system_ids))])
            if self.system_ids:
                ids = torch.tensor([self.system_ids], device=self.device)
                self._run(self.embed(ids), torch.arange(len(self.system_ids))[None, None], layout)
            self._system = layout.cache
        return self._system

    def _run(self, embeds: Tensor, positions: Tensor, layout: Layout, **deep: Any) -> Tensor:
        """Return the last hidden states of `embeds`; both are `[batch, length, hidden]`.

        `positions` are `[num_axes, batch, length]`; `deep` are further arguments of the language model.
        """
        position_ids = (positions if len(positions) > 1 else positions[0]).to(embeds.device)
        outputs = self.language_model(
            inputs_embeds=embeds, position_ids=position_ids, use_cache=False, layout=layout, **deep
        )
        return outputs.last_hidden_state

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the next token: `[..., hidden]` -> `[..., vocabulary]`, float32."""
        return self.lm_head(hidden).to(self.device, torch.float32).log_softmax(-1)

    def _choose(self, log_probs: Tensor, steps: Sequence[tuple[Row, int]]) -> Chosen:
        """Choose the next tokens of answers; `steps[i]` is a row and the token's position in its answer."""
        return Chosen(log_probs, [(row.draw, step) for row, step in steps])

    def _verify(
        self,
        prompts: Sequence[Prompt],
        rows: Sequence[Row],
        hidden: Tensor,
        references: Sequence[Sequence[Sequence[int]]],
        work: Work,
    ) -> list[tuple[float | None, int | None]]:
        """Accept the longest matching draft prefix of every row, then append its next decoded token.

        Returns for each row the smallest mean NLL of its references and the number of tokens of that
        reference.
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

    def _decode_rest(
        self, layout: PackedSegments, images: Sequence[VisualPrefix], rows: list[Row], work: Work
    ) -> None:
        """Decode the rest of the answers token by token."""
        places = [[*row.prompt.places, *row.cached] for row in rows]
        # Text after an image continues from its extent, which may differ from its number of tokens.
        owners = [images[row.prompt.owner] for row in rows]
        offsets = torch.tensor([image.text_start - len(image) for image in owners])
        growing: GrowingRows = layout.take(places, min(_ROOM, self.stop.max_new_tokens))
        while rows:
            if not growing.room:
                growing.grow(_ROOM)
            ids = torch.tensor([row.token_ids[-1:] for row in rows], device=self.device)
            hidden = self._run(self.embed(ids), (growing.lengths + offsets)[None, :, None], growing)
            growing.lengths = growing.lengths + 1
            steps = [(row, len(row.token_ids)) for row in rows]
            chosen = self._choose(self._log_probs(hidden[:, -1]), steps)
            open_rows = append_chosen(rows, chosen, work)
            # Dropping rows copies the cache, so rows are dropped only when half of them are finished.
            if 2 * len(open_rows) <= len(rows):
                rows = [rows[number] for number in open_rows]
                if rows:
                    growing.keep(open_rows)
                    offsets = offsets[open_rows]


def append_chosen(rows: Sequence[Row], chosen: Chosen, work: Work) -> list[int]:
    """Append the next token to each unfinished answer, and return the indices of the still unfinished ones.

    The token of rows[i] is at index i of `chosen`.
    """
    for number, row in enumerate(rows):
        if row.is_finished:
            work.padding_tokens += 1
        else:
            work.decoded_tokens += 1
            row.append(chosen, number)
    return [number for number, row in enumerate(rows) if not row.is_finished]


def renumber(watch: Watch | None, numbers: Mapping[int, int] | Sequence[int]) -> Watch | None:
    """Return a `watch` for a batch, given one for all questions; question i of the batch is `numbers[i]`."""
    if watch is None:
        return None
    return lambda number, token_ids: watch(numbers[number], token_ids)


def _join_deep(images: Sequence[VisualPrefix], is_visual: Tensor) -> dict[str, Any]:
    """Return the arguments of a language model for the deep features of packed images; none without them.

    `is_visual` `[num_tokens]` is True at the visual tokens of the packed sequence.
    """
    layers = list(zip(*(image.deep for image in images), strict=True))
    if not layers:
        return {}
    return {
        "visual_pos_masks": is_visual[None],
        "deepstack_visual_embeds": [torch.cat(features) for features in layers],
    }
