"""Greedy answers and reference likelihoods from a prefix that the questions of an image share.

The prefix (what precedes the image in the prompt, and the visual tokens) runs once per image; its keys and
values are then shared out to the questions. Padding is masked and positions count real tokens only, so that a
row comes out as it would alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from m3_backbone.modeling import M3Model


@dataclass(frozen=True)
class Decoded:
    """`token_ids` with the end token, if it came; `confidence`: product of their probabilities.

    `nll`: least mean negative log-likelihood per token over the row's references; None without references.
    """

    token_ids: list[int]
    confidence: float
    nll: float | None


class GreedyDecoder:
    """Runs the language model of `model` on rows (prefix, question) and, per row, on reference answers."""

    def __init__(self, model: M3Model, end_ids: Sequence[int], max_new_tokens: int) -> None:
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head
        self.embed: Any = model.get_input_embeddings()
        self.device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]
        self.end_ids = torch.tensor(end_ids, device=self.device)
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def decode(
        self,
        prefixes: Sequence[Tensor],
        owners: Sequence[int],
        questions: Sequence[Sequence[int]],
        references: Sequence[Sequence[Sequence[int]]],
        *,
        answer: bool = True,
    ) -> list[Decoded]:
        """Row i is the prefix `owners[i]`, `[length, hidden]`, and the token ids `questions[i]`.

        `references[i]` are token ids of possible answers, end token included. Without `answer` they are all
        that is looked at.
        """
        rows = _Rows(self.language_model, self.device)
        rows.extend(*_pad_left(prefixes))
        rows.share_out(owners)
        ids, is_real = _pad_left([torch.tensor(question, device=self.device) for question in questions])
        log_probs = self._log_probs(rows.extend(self.embed(ids), is_real)[:, -1])
        nlls = self._score(rows, log_probs, references)
        if not answer:
            return [Decoded([], 0.0, nll) for nll in nlls]
        return [
            Decoded(token_ids, confidence, nll)
            for (token_ids, confidence), nll in zip(self._answer(rows, log_probs), nlls, strict=True)
        ]

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., vocabulary]`, float32."""
        return self.lm_head(hidden).to(self.device, torch.float32).log_softmax(-1)

    def _score(
        self, rows: "_Rows", first: Tensor, references: Sequence[Sequence[Sequence[int]]]
    ) -> list[float | None]:
        """Least mean NLL of each row's references; `first` `[batch, vocabulary]` is for their first token."""
        best: list[float | None] = [None] * len(references)
        # The k-th references of all rows run together, and are forgotten again: no copy of the cache.
        for k in range(max(map(len, references), default=0)):
            answers = [torch.tensor(row[k] if k < len(row) else [], dtype=torch.long) for row in references]
            lengths = torch.tensor([len(answer) for answer in answers], device=self.device)
            ids = pad_sequence(answers, batch_first=True).to(self.device)
            is_real = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
            log_probs = first[:, None]
            if ids.shape[1] > 1:
                hidden = rows.extend(self.embed(ids[:, :-1]), is_real[:, :-1])
                rows.forget(ids.shape[1] - 1)
                log_probs = torch.cat([log_probs, self._log_probs(hidden)], dim=1)
            chosen = log_probs.gather(-1, ids[..., None]).squeeze(-1)
            nlls = (-(chosen * is_real).sum(1) / lengths).tolist()
            for i, (nll, answer) in enumerate(zip(nlls, answers, strict=True)):
                if len(answer):
                    best[i] = nll if (old := best[i]) is None else min(old, nll)
        return best

    def _answer(self, rows: "_Rows", log_probs: Tensor) -> Iterator[tuple[list[int], float]]:
        """Greedy token ids and their joint probability, row by row."""
        batch = len(log_probs)
        is_open = torch.ones(batch, dtype=torch.bool, device=self.device)
        total = torch.zeros(batch, device=self.device)
        steps: list[Tensor] = []
        for step in range(self.max_new_tokens):
            if step:
                hidden = rows.extend(self.embed(steps[-1][:, None]), is_open[:, None])
                log_probs = self._log_probs(hidden[:, -1])
            values, tokens = log_probs.max(-1)
            total += values * is_open
            steps.append(tokens)
            is_open &= ~torch.isin(tokens, self.end_ids)
            if not is_open.any():
                break
        ends = set(self.end_ids.tolist())
        for ids, log_prob in zip(torch.stack(steps, dim=1).tolist(), total.tolist(), strict=True):
            end = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
            yield ids[:end], math.exp(log_prob)


class _Rows:
    """A batch of sequences in the making: keys and values so far, and which of their places are real."""

    def __init__(self, language_model: torch.nn.Module, device: torch.device) -> None:
        self.language_model = language_model
        self.cache = DynamicCache()
        self.is_real = torch.zeros(0, 0, dtype=torch.bool, device=device)

    def extend(self, embeds: Tensor, is_real: Tensor) -> Tensor:
        """Append `embeds` `[batch, length, hidden]`, real where `is_real` `[batch, length]`: their states."""
        so_far = self.is_real if self.is_real.numel() else is_real[:, :0]
        self.is_real = torch.cat([so_far, is_real], dim=1)
        positions = (self.is_real.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=self.is_real,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state

    def share_out(self, owners: Sequence[int]) -> None:
        """Row i becomes a copy of row `owners[i]`."""
        if list(owners) != list(range(len(self.is_real))):
            index = torch.tensor(owners, device=self.is_real.device)
            self.cache.batch_select_indices(index)
            self.is_real = self.is_real[index]

    def forget(self, num_tokens: int) -> None:
        """Take the last `num_tokens` off again."""
        self.cache.crop(-num_tokens)
        self.is_real = self.is_real[:, :-num_tokens]


def _pad_left(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences `[length, ...]` -> `[batch, longest, ...]` with zeros in front, and what is real of it."""
    padded = pad_sequence(list(sequences), batch_first=True, padding_side="left")
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=padded.device)
    longest = padded.shape[1]
    return padded, torch.arange(longest, device=padded.device) >= longest - lengths[:, None]
