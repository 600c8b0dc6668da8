"""M3 of any size with random weights, for measuring speed without a checkpoint."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig

from m3_backbone.arguments import ClosedFraction, PositiveInt, Seed, checked
from m3_backbone.decoding.decoding import Decoder
from m3_backbone.decoding.drafting import Chosen, Row
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.modeling import M3LlavaForConditionalGeneration, M3Model
from m3_backbone.loading.checkpoint import Checkpoint
from m3_backbone.training.scratch import build_config, build_processor, build_tower_config, train_tokenizer


class RandomLlavaBackbone(LlavaBackbone):
    """LLaVA with random weights and random answers; the default shapes are those of LLaVA-1.5-7B.

    The outputs of random weights are meaningless, so answers are chosen at random: the last draft with
    probability `acceptance`, otherwise an answer that differs from all drafts in its first token, with a
    uniformly random length in `answer_lengths`. The model still does all of its work.

    Args:
        image_size, patch_size, vision_size, num_vision_layers, num_vision_heads: shape of the CLIP tower.
        hidden_size, intermediate_size, num_layers, num_heads, vocab_size: shape of the Llama decoder.
        acceptance: probability that the answer equals the last draft.
        answer_lengths: smallest and largest number of tokens of the other answers, end token included.
        seed: seed of weights and answers.
        arguments: further arguments of `LlavaBackbone`.
    """

    @checked
    def __init__(
        self,
        *,
        image_size: PositiveInt = 336,
        patch_size: PositiveInt = 14,
        vision_size: PositiveInt = 1024,
        num_vision_layers: PositiveInt = 24,
        num_vision_heads: PositiveInt = 16,
        hidden_size: PositiveInt = 4096,
        intermediate_size: PositiveInt = 11008,
        num_layers: PositiveInt = 32,
        num_heads: PositiveInt = 32,
        vocab_size: PositiveInt = 32000,
        acceptance: ClosedFraction = 0.7,
        answer_lengths: tuple[PositiveInt, PositiveInt] = (1, 6),
        seed: Seed = 0,
        **arguments: Any,
    ) -> None:
        tokenizer = train_tokenizer(["What color is it? A red one. How many are there? 0123456789"], 400)
        processor = build_processor(
            tokenizer, image_size=image_size, patch_size=patch_size, prompt="vicuna_v1"
        )
        tower = build_tower_config(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=vision_size,
            num_layers=num_vision_layers,
            num_heads=num_vision_heads,
        )
        config = build_config(
            tower,
            processor,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            num_heads=num_heads,
            vocab_size=max(vocab_size, len(tokenizer)),
            max_length=4096,
            vision_feature_layer=-2,
            tie_word_embeddings=False,
        )
        device = arguments.pop("device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = _RandomCheckpoint("random_llava", Path(), config, processor, None, seed, device)
        super().__init__(checkpoint, **{"dtype": "bfloat16", **arguments, "device": device})
        fewest, most = answer_lengths
        self._decoder_class = partial(
            _RandomDecoder, acceptance=acceptance, answer_lengths=(fewest, most), seed=seed
        )


@dataclass(frozen=True, eq=False)
class _RandomCheckpoint(Checkpoint):
    """Checkpoint whose random weights are created on the device; no file is read."""

    seed: int
    device: str

    @property
    def fingerprint(self) -> str:
        content = json.dumps([self.config.to_dict(), self.seed], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def load_model(
        self,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
    ) -> M3Model:
        if device_map is not None:
            raise ValueError("random weights are on a single device: give device, not device_map")
        assert isinstance(self.config, LlavaConfig)
        if dtype == "auto":
            dtype = torch.float32
        before = torch.get_default_dtype()
        torch.manual_seed(self.seed)
        try:
            torch.set_default_dtype(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
            with torch.device(self.device):
                model = M3LlavaForConditionalGeneration(self.config)
        finally:
            torch.set_default_dtype(before)
        model.set_attn_implementation(attn_implementation or "sdpa")
        ends = self.config.get_text_config().eos_token_id
        model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=self.processor.pad_token_id
        )
        return model.eval()


class _RandomDecoder(Decoder):
    """Decoder of random answers, as described in `RandomLlavaBackbone`."""

    def __init__(
        self, *args: Any, acceptance: float, answer_lengths: tuple[int, int], seed: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.acceptance, self.answer_lengths = acceptance, answer_lengths
        self.random = random.Random(seed)
        self._answer_of: WeakKeyDictionary[Row, Sequence[int]] = WeakKeyDictionary()

    def _choose(self, log_probs: Tensor, steps: Sequence[tuple[Row, int]]) -> Chosen:
        chosen = super()._choose(log_probs, steps)
        for index, (row, step) in enumerate(steps):
            if row not in self._answer_of:
                self._answer_of[row] = self._choose_answer(row)
            answer = self._answer_of[row]
            chosen.tokens[index] = answer[min(step, len(answer) - 1)]
        return chosen

    def _choose_answer(self, row: Row) -> Sequence[int]:
        if row.prompt.drafts and self.random.random() < self.acceptance:
            return row.prompt.drafts[-1]
        length = self.random.randint(*self.answer_lengths)
        taken = {draft[0] for draft in row.prompt.drafts} | self.stop.end_ids
        first = next(token for token in range(3, 400) if token not in taken)
        (end,) = self.stop.end_ids
        return [*[first] * (length - 1), end] if length > 1 else [end]
