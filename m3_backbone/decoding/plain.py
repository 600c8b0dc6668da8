"""Decoder for models whose attention cannot be packed, with the model's own forward pass and cache.

Sliding windows, keys and values that layers share, per-layer inputs or bidirectional attention within images
are left to the model. Prompts are padded on the left and run once, also if several answers are sampled.
Drafts and references run behind copies of their prompts' caches, so that their tokens alone are computed. The
caches that they leave are dropped: a cache of sliding layers forgets tokens and cannot be cut back.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.decoding.decoding import Decoder, VisualPrefix
from m3_backbone.decoding.drafting import Prompt, Row, Work


class PlainRows:
    """A batch of sequences, padded on the left, that grow by the same number of tokens per pass.

    `mask` `[batch, length]` is 1 at tokens and 0 at padding. `next_positions` `[batch]` are the rotary
    positions of the next tokens, on each of `num_axes` axes. `numbers` are the rows of prompts.
    """

    def __init__(self, mask: Tensor, next_positions: Tensor, num_axes: int) -> None:
        self.mask = mask
        self.next_positions = next_positions
        self.num_axes = num_axes
        self.cache: Any = None
        self.numbers: dict[Prompt, int] = {}

    def select(self, rows: Sequence[int]) -> "PlainRows":
        """Copy of some rows, which may repeat."""
        index = torch.tensor(rows, device=self.mask.device)
        selected = PlainRows(self.mask[index], self.next_positions[index], self.num_axes)
        # Keys and values are replaced by selected copies, so that those of this batch stay as they are.
        selected.cache = copy.copy(self.cache)
        selected.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        selected.cache.batch_select_indices(index)
        return selected


class PlainDecoder(Decoder):
    """Decodes the same answers as `Decoder`, in plain batches through the forward pass of any model.

    The model takes token ids with placeholders, `config.image_token_id`, and the arguments that
    `image_arguments` gives. A family whose model takes others overrides that method, and names the subclass
    as `_decoder_class` of its backbone.
    """

    def _set_model(self, model: Any) -> None:
        self.model = model

    def image_arguments(self, images: Sequence[VisualPrefix], is_visual: Tensor) -> dict[str, Any]:
        """Arguments of the model for a batch of prompts; `is_visual` `[batch, length]` marks placeholders.

        `images` has one entry per prompt.
        """
        features = BaseModelOutputWithPooling(pooler_output=tuple(image.embeds for image in images))  # type: ignore[arg-type]
        return {"mm_encoder_outputs": {"image": features}, "mm_token_type_ids": is_visual.long()}

    def _prefill(  # type: ignore[override]
        self, images: Sequence[VisualPrefix], prompts: Sequence[Prompt], work: Work
    ) -> tuple[PlainRows, Tensor]:
        """Run distinct prompts, then the drafts. Returns the rows of the prompts and logits.

        The logits `[num_steps, vocabulary]` are those of the `steps` of the prompts, in order.
        """
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        of_prompt = {
            prompt: numbers.setdefault((prompt.owner, tuple(prompt.question)), len(numbers))
            for prompt in prompts
        }
        rows, last = self._run_prompts([(images[owner], question) for owner, question in numbers], work)
        rows.numbers = of_prompt
        drafts = [(prompt, draft) for prompt in prompts for draft in prompt.drafts]
        draft_logits = iter(
            self._run_drafts(rows, last, [(of_prompt[prompt], draft[:-1]) for prompt, draft in drafts], work)
        )
        logits: list[Tensor] = []
        start = 0
        for prompt in prompts:
            # Places count the steps of all prompts.
            prompt.places = [start]
            logits.append(last[of_prompt[prompt]][None])
            start += 1
            for draft in prompt.drafts:
                prompt.draft_places.append([*range(start, start + len(draft) - 1)])
                logits.append(next(draft_logits))
                start += len(draft) - 1
        return rows, torch.cat(logits)

    def _run_prompts(
        self, prompts: Sequence[tuple[VisualPrefix, Sequence[int]]], work: Work
    ) -> tuple[PlainRows, Tensor]:
        """Run prompts, each an image and a question. Returns their rows and last logits.

        The logits are `[batch, vocabulary]`.
        """
        placeholder = self.model.config.image_token_id
        num_system = len(self.system_ids)
        length = num_system + max(len(image) + len(question) for image, question in prompts)
        num_axes = max(1 if image.positions is None else len(image.positions) for image, _ in prompts)
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
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
            work.question_tokens += len(question)
            work.padding_tokens += start
        rows = PlainRows(mask.to(self.device), positions[0, :, -1].to(self.device) + 1, num_axes)
        arguments = self.image_arguments([image for image, _ in prompts], is_visual.to(self.device))
        logits = self._forward(rows, ids, positions, logits_to_keep=1, **arguments)
        return rows, logits[:, -1]

    def _forward(self, rows: PlainRows, ids: Tensor, positions: Tensor, **arguments: Any) -> Tensor:
        """Run tokens `[batch, length]` behind the cache of `rows`. Returns logits.

        `positions` are `[num_axes, batch, length]`, logits `[batch, num_kept, vocabulary]`.
        """
        outputs = self.model(
            input_ids=ids.to(self.device),
            attention_mask=rows.mask,
            position_ids=(positions if len(positions) > 1 else positions[0]).to(self.device),
            past_key_values=rows.cache,
            use_cache=True,
            **arguments,
        )
        rows.cache = outputs.past_key_values
        return outputs.logits.to(self.device)

    def _extend(self, rows: PlainRows, ids: Tensor, num_logits: int) -> Tensor:
        """Append text tokens `[batch, length]` to `rows`. Returns the last `num_logits` logits; all for 0."""
        length = ids.shape[1]
        positions = rows.next_positions[:, None] + torch.arange(length, device=self.device)
        rows.next_positions = rows.next_positions + length
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(ids.shape)], dim=1)
        positions = positions.expand(rows.num_axes, -1, -1)
        return self._forward(rows, ids, positions, logits_to_keep=num_logits)

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
                [[*drafts[number][1], *[0] * (length - num_tokens)] for num_tokens, number in batch]
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
        """Decode the rest of the answers token by token; accepted tokens of some are fed with them."""
        batch = layout.select([layout.numbers[row.prompt] for row in rows])
        num_fed = 0
        while rows:
            length = min(len(row.token_ids) for row in rows if not row.is_finished)
            fed = [[*row.token_ids, *[0] * length][num_fed:length] for row in rows]
            logits = self._extend(batch, torch.tensor(fed), 1)
            steps = [(row, length) for row in rows]
            chosen = self._choose(self._log_probs(logits[:, -1]), steps)
            for number, row in enumerate(rows):
                if row.is_finished:
                    work.padding_tokens += length - num_fed
                    continue
                work.decoded_tokens += length - num_fed
                if len(row.token_ids) == length:
                    row.append(chosen, number)
            num_fed = length
            open_rows = [number for number, row in enumerate(rows) if not row.is_finished]
            # Dropping rows copies the cache, so rows are dropped only when half of them are finished.
            if 2 * len(open_rows) <= len(rows):
                rows = [rows[number] for number in open_rows]
                if rows:
                    batch = batch.select(open_rows)
