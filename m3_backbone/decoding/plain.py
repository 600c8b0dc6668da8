"""Decoder for models whose attention cannot be packed, with the model's own forward pass and cache.

Sliding windows, keys and values that layers share, per-layer inputs or bidirectional attention within images
are left to the model. Sequences are padded on the left only: padding between two tokens would count as part
of a sliding window. Texts are therefore appended to cached sequences in groups of equal length.

An image runs once for several questions if that saves more than the additional passes cost. Drafts and
references run behind copies of their prompts' caches, so that their tokens alone are computed. The caches
that they leave are dropped, because a cache of sliding layers forgets tokens and cannot be cut back.
"""

import copy
import threading
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.decoding.decoding import Decoder, VisualPrefix, append_chosen
from m3_backbone.decoding.drafting import Prompt, Row, Work


class PlainRows:
    """A batch of cached sequences, padded on the left.

    `mask` `[batch, length]` is 1 at tokens and 0 at padding. `next_positions` `[batch]` are the rotary
    positions of the next tokens, on each of `num_axes` axes. `numbers` are the rows of prompts. `states`
    `[batch, hidden]` are the last hidden states after the latest pass, if `keeps_states`.
    """

    def __init__(self, mask: Tensor, next_positions: Tensor, num_axes: int, cache: Any = None) -> None:
        self.mask = mask
        self.next_positions = next_positions
        self.num_axes = num_axes
        self.cache = cache
        self.numbers: dict[Prompt, int] = {}
        self.keeps_states = False
        self.states: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Self:
        """Return a copy of some rows, which may repeat."""
        index = torch.tensor(rows)  # on the CPU, since layers may be on several devices
        # Keys and values are replaced by selected copies, so that those of this batch stay as they are.
        cache = _copy_cache(self.cache)
        cache.batch_select_indices(index)
        selected = type(self)(self.mask[index], self.next_positions[index], self.num_axes, cache)
        selected.keeps_states = self.keeps_states
        selected.states = None if self.states is None else self.states[index.to(self.states.device)]
        return selected

    @classmethod
    def join(cls, batches: Sequence[Self]) -> Self:
        """Return the rows of all batches, in order, padded to the longest."""
        length = max(batch.mask.shape[1] for batch in batches)
        longest = next(batch for batch in batches if batch.mask.shape[1] == length)
        cache = _copy_cache(longest.cache)
        for number, layer in enumerate(cache.layers):
            if layer.keys is None:
                continue  # its keys and values are those of another layer
            for name in ("keys", "values"):
                states = [getattr(batch.cache.layers[number], name) for batch in batches]
                size = max(state.shape[-2] for state in states)
                padded = [pad(state, (0, 0, size - state.shape[-2], 0)) for state in states]
                setattr(layer, name, torch.cat(padded))
        mask = torch.cat([pad(batch.mask, (length - batch.mask.shape[1], 0)) for batch in batches])
        positions = torch.cat([batch.next_positions for batch in batches])
        joined = cls(mask, positions, longest.num_axes, cache)
        if states := [batch.states for batch in batches if batch.states is not None]:
            joined.states = torch.cat(states)
        return joined


class _HeadInput(threading.local):
    """Input of the output layer, the last hidden states, in the latest pass of a thread if it is kept."""

    is_kept = False
    hidden: Tensor | None = None

    def record(self, layer: Any, arguments: tuple[Tensor, ...]) -> None:
        """Keep the input of the output layer; a forward pre-hook."""
        self.hidden = arguments[0] if self.is_kept else None


class PlainDecoder(Decoder):
    """Decodes the same answers as `Decoder`, in plain batches through the forward pass of any model.

    The model takes token ids with placeholders, `config.image_token_id`, and the arguments that
    `image_arguments` gives. A family whose model takes others overrides that method, and names the subclass
    as `_decoder_class` of its backbone. Its cache must consist of layers with `keys` and `values`.

    Attributes:
        pass_tokens: number of tokens whose computation takes as long as a further pass, which reads all
            weights of the model.
    """

    pass_tokens: ClassVar[int] = 256

    def _set_model(self, model: Any) -> None:
        self.model = model
        self._head_input = _HeadInput()
        # With `output_hidden_states`, layers that share keys and values would compute all tokens.
        model.get_output_embeddings().register_forward_pre_hook(self._head_input.record)

    @property
    def _padding_id(self) -> int:
        # Any token that is no placeholder.
        return min(self.stop.end_ids)

    def image_arguments(self, images: Sequence[VisualPrefix], is_visual: Tensor) -> dict[str, Any]:
        """Arguments of the model for a batch of prompts; `is_visual` `[batch, length]` marks placeholders.

        `images` has one entry per prompt.
        """
        features: Any = BaseModelOutputWithPooling()
        features.pooler_output = tuple(image.embeds for image in images)
        if layers := list(zip(*(image.deep for image in images), strict=True)):
            features.deepstack_features = layers
        return {"mm_encoder_outputs": {"image": features}, "mm_token_type_ids": is_visual.long()}

    def _prefill(  # type: ignore[override]
        self, images: Sequence[VisualPrefix], prompts: Sequence[Prompt], work: Work, *, states: bool = False
    ) -> tuple[PlainRows, Tensor]:
        """Run distinct prompts, then the drafts. Returns the rows of the prompts and logits.

        The logits `[num_steps, vocabulary]` are those of the `steps` of the prompts, in order.
        """
        keys = [(prompt.owner, tuple(prompt.question)) for prompt in prompts]
        number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        rows, last = self._run_prompts(images, list(number_of), work, states)
        rows.keeps_states = False
        rows.numbers = {prompt: number_of[key] for prompt, key in zip(prompts, keys, strict=True)}
        drafts = [(rows.numbers[prompt], draft[:-1]) for prompt in prompts for draft in prompt.drafts]
        draft_logits = iter(self._run_drafts(rows, last, drafts, work))
        logits: list[Tensor] = []
        start = 0
        for prompt in prompts:
            # Places count the steps of all prompts.
            prompt.places = [start]
            logits.append(last[rows.numbers[prompt]][None])
            start += 1
            for draft in prompt.drafts:
                prompt.draft_places.append([*range(start, start + len(draft) - 1)])
                logits.append(next(draft_logits))
                start += len(draft) - 1
        return rows, torch.cat(logits)

    def _run_prompts(
        self,
        images: Sequence[VisualPrefix],
        prompts: Sequence[tuple[int, Sequence[int]]],
        work: Work,
        states: bool,
    ) -> tuple[PlainRows, Tensor]:
        """Run prompts, each the number of an image and a question. Returns their rows and last logits.

        The logits are `[num_prompts, vocabulary]`.
        """
        work.question_tokens += sum(len(question) for _, question in prompts)
        owners = list(dict.fromkeys(owner for owner, _ in prompts))
        num_passes = len({len(question) for _, question in prompts})
        num_saved = sum(len(images[owner]) for owner, _ in prompts) - sum(len(images[o]) for o in owners)
        if num_saved <= num_passes * self.pass_tokens:
            questions = [question for _, question in prompts]
            return self._run_images([images[owner] for owner, _ in prompts], questions, work, states)
        rows, _ = self._run_images([images[owner] for owner in owners], [()] * len(owners), work, states)
        return self._append(rows, [(owners.index(owner), question) for owner, question in prompts])

    def _run_images(
        self,
        images: Sequence[VisualPrefix],
        questions: Sequence[Sequence[int]],
        work: Work,
        states: bool,
    ) -> tuple[PlainRows, Tensor]:
        """Run images, each followed by a question. Returns their rows and logits `[batch, vocabulary]`."""
        placeholder = self.model.config.image_token_id
        num_system = len(self.system_ids)
        prompts = list(zip(images, questions, strict=True))
        length = num_system + max(len(image) + len(question) for image, question in prompts)
        num_axes = max(1 if image.positions is None else len(image.positions) for image in images)
        ids = torch.full((len(prompts), length), self._padding_id)
        mask = torch.zeros_like(ids)
        is_visual = torch.zeros_like(ids, dtype=torch.bool)
        positions = torch.zeros(num_axes, len(prompts), length, dtype=torch.long)
        for number, (image, question) in enumerate(prompts):
            row = [*self.system_ids, *[placeholder] * len(image), *question]
            start = length - len(row)
            first = start + num_system
            ids[number, start:] = torch.tensor(row)
            mask[number, start:] = 1
            is_visual[number, first : first + len(image)] = True
            positions[:, number, start:first] = torch.arange(num_system)
            positions[:, number, first:] = num_system + image.locate(torch.arange(len(question)))
            work.prefix_tokens += len(image)
            work.padding_tokens += start
        ends = [num_system + image.text_start + len(question) for image, question in prompts]
        rows = PlainRows(mask.to(self.device), torch.tensor(ends, device=self.device), num_axes)
        rows.keeps_states = states
        arguments = self.image_arguments(images, is_visual.to(self.device))
        return rows, self._forward(rows, ids, positions, logits_to_keep=1, **arguments)[:, -1]

    def _forward(self, rows: PlainRows, ids: Tensor, positions: Tensor, **arguments: Any) -> Tensor:
        """Run tokens `[batch, length]` behind the cache of `rows`. Returns logits.

        `positions` are `[num_axes, batch, length]`, logits `[batch, num_kept, vocabulary]`.
        """
        self._head_input.is_kept = rows.keeps_states
        outputs = self.model(
            input_ids=ids.to(self.device),
            attention_mask=rows.mask,
            position_ids=(positions if len(positions) > 1 else positions[0]).to(self.device),
            past_key_values=rows.cache,
            use_cache=True,
            **arguments,
        )
        rows.cache = outputs.past_key_values
        if rows.keeps_states:
            assert self._head_input.hidden is not None
            rows.states = self._head_input.hidden[:, -1].to(self.device)
            self._head_input.hidden = None
        logits: Tensor = outputs.logits.to(self.device)
        return logits

    def _last_states(self, layout: PlainRows, hidden: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert layout.states is not None, "the prompts were run without their states"
        return layout.states[[layout.numbers[prompt] for prompt in prompts]]

    def _extend(self, rows: PlainRows, ids: Tensor, num_logits: int) -> Tensor:
        """Append text tokens `[batch, length]` to `rows`. Returns the last `num_logits` logits; all for 0."""
        length = ids.shape[1]
        positions = rows.next_positions[:, None] + torch.arange(length, device=self.device)
        rows.next_positions = rows.next_positions + length
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(ids.shape)], dim=1)
        return self._forward(rows, ids, positions.expand(rows.num_axes, -1, -1), logits_to_keep=num_logits)

    def _append(
        self, rows: PlainRows, texts: Sequence[tuple[int, Sequence[int]]]
    ) -> tuple[PlainRows, Tensor]:
        """Append texts to copies of the given rows. Returns the copies and logits `[num_texts, vocabulary]`.

        Texts of equal length run together.
        """
        of_length: dict[int, list[int]] = defaultdict(list)
        for number, (_, tokens) in enumerate(texts):
            of_length[len(tokens)].append(number)
        batches, logits = [], []
        for group in of_length.values():
            batch = rows.select([texts[number][0] for number in group])
            ids = torch.tensor([list(texts[number][1]) for number in group])
            logits.append(self._extend(batch, ids, 1)[:, -1])
            batches.append(batch)
        if len(batches) == 1:
            return batches[0], logits[0]
        order = torch.tensor([*chain.from_iterable(of_length.values())]).argsort().tolist()
        return PlainRows.join(batches).select(order), torch.cat(logits)[order]

    def _run_drafts(
        self, rows: PlainRows, last: Tensor, drafts: Sequence[tuple[int, Sequence[int]]], work: Work
    ) -> list[Tensor]:
        """Run drafts, each a row and tokens. Returns the logits `[num_tokens, vocabulary]` of each."""
        logits = [last[:0] for _ in drafts]
        order = sorted((len(tokens), number) for number, (_, tokens) in enumerate(drafts) if tokens)
        batch_size = len(last)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            length = batch[-1][0]
            # No token sees the padding on the right.
            ids = torch.tensor(
                [
                    [*drafts[number][1], *[self._padding_id] * (length - num_tokens)]
                    for num_tokens, number in batch
                ]
            )
            outputs = self._extend(rows.select([drafts[number][0] for _, number in batch]), ids, 0)
            for (num_tokens, number), row_logits in zip(batch, outputs, strict=True):
                logits[number] = row_logits[:num_tokens]
                work.draft_tokens += num_tokens
                work.padding_tokens += length - num_tokens
        return logits

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the next token, float32, from its logits, the last states of this decoder."""
        return hidden.float().log_softmax(-1)

    def _decode_rest(  # type: ignore[override]
        self, layout: PlainRows, images: Sequence[VisualPrefix], rows: list[Row], work: Work
    ) -> None:
        """Decode the rest of the answers token by token, after the tokens that are already accepted."""
        work.decoded_tokens += sum(len(row.token_ids) - 1 for row in rows)
        batch, logits = self._append(layout, [(layout.numbers[row.prompt], row.token_ids) for row in rows])
        while True:
            steps = [(row, len(row.token_ids)) for row in rows]
            chosen = self._choose(self._log_probs(logits), steps)
            open_rows = append_chosen(rows, chosen, work)
            if not open_rows:
                return
            # Dropping rows copies the cache, so rows are dropped only when half of them are finished.
            if 2 * len(open_rows) <= len(rows):
                rows = [rows[number] for number in open_rows]
                batch = batch.select(open_rows)
            ids = torch.tensor([row.token_ids[-1:] for row in rows])
            logits = self._extend(batch, ids, 1)[:, -1]


def _copy_cache(cache: Any) -> Any:
    """Copy of a cache that shares keys and values until they are replaced."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied
