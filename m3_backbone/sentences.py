"""Frozen sentence encoders: one vector per question, for predictors.

A question becomes the mean of its tokens' last states, normalised (Sentence-BERT, Reimers and Gurevych,
arXiv 1908.10084): what the `sentence-transformers` models with mean pooling compute.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

# Questions whose vectors are remembered: training, calibration and evaluation ask for the same ones.
_REMEMBERED = 100_000


class SentenceEncoder:
    """An encoder-only transformer in Hugging Face's layout with its tokenizer, from a folder or a hub id.

    Weights are read from safetensors alone, and no code comes with them. Runs on the CPU. Raises ValueError
    for what is no such model.
    """

    def __init__(self, source: str) -> None:
        # Here and not above: what reads no sentences, as most predictors, need not wait for transformers.
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self.model: Any = AutoModel.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False
            ).requires_grad_(False)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"no sentence encoder in {source}: give a folder or hub id that AutoModel and AutoTokenizer "
                f"load, with weights in safetensors ({error})"
            ) from error
        self.width: int = self.model.config.hidden_size
        self._max_length = find_max_length(self.model.config, self.tokenizer)
        # The pooler's states are not looked at, and where a checkpoint has none it is random.
        self._weights = {n: p for n, p in self.model.named_parameters() if not n.startswith("pooler.")}
        self._remembered: dict[str, np.ndarray] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Of weights and vocabulary: vectors of another encoder mean something else."""
        digest = hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        for name, tensor in sorted(self._weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Vectors float32 `[num_texts, width]` of length 1; a text is cut where the model ends."""
        # The longest together: little is padded.
        new = sorted(
            {text for text in texts if text not in self._remembered}, key=lambda text: (len(text), text)
        )
        if len(self._remembered) + len(new) > _REMEMBERED:
            self._remembered = {text: self._remembered[text] for text in texts if text in self._remembered}
        found = self._remembered
        for start in range(0, len(new), batch_size):
            some = new[start : start + batch_size]
            found.update(zip(some, self._run(some), strict=True))
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, self.width), np.float32)

    def forget(self) -> None:
        """Encode even known texts anew from now on."""
        self._remembered = {}

    @torch.inference_mode()
    def _run(self, texts: Sequence[str]) -> np.ndarray:
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        states = self.model(**batch).last_hidden_state.float()
        weights = batch["attention_mask"][..., None].float()
        means = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(means, dim=-1).numpy()

    def count_flops(self, texts: Sequence[str]) -> float:
        """Floating-point operations per text: two per token and weight behind the embeddings."""
        if not texts:
            return 0.0
        cut = self.tokenizer(list(texts), truncation=True, max_length=self._max_length)
        lengths = [len(ids) for ids in cut["input_ids"]]
        weights = sum(p.numel() for name, p in self._weights.items() if not name.startswith("embeddings."))
        return 2.0 * weights * sum(lengths) / len(lengths)


def find_max_length(config: Any, tokenizer: Any) -> int:
    """Tokens that the model has positions for; the tokenizer's own limit may be smaller, or not be said."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return int(tokenizer.model_max_length)
    if "roberta" in config.model_type:  # its positions are counted from behind the padding's
        positions -= (config.pad_token_id or 0) + 1
    return int(min(positions, tokenizer.model_max_length))


@lru_cache(2)
def load_sentence_encoder(source: str) -> SentenceEncoder:
    """The encoder of this name; predictors that read the same one share it."""
    return SentenceEncoder(source)
