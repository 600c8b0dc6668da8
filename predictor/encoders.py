"""Frozen sentence encoders: one vector per question, for predictors.

The vector of a question is the normalised mean of its token vectors. These are either the last hidden states
of a transformer (Sentence-BERT, Reimers and Gurevych, arXiv 1908.10084, as in `sentence-transformers` models
with mean pooling) or rows of a table of static embeddings (Model2Vec, WordLlama), which cost almost nothing.
`HashedWords` needs no weights at all.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

# Package (MIT licence) with a table of static embeddings: 256 numbers for each of Llama 2's 32,000 tokens.
WORDLLAMA = "wordllama"
# Name of `HashedWords`.
HASHED_WORDS = "hashed_words"
_WORDLLAMA_FILES = ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")
_EXTRA = "install the extra: pip install 'tokenscale[sentences]', in a clone make install"


class SentenceEncoder(ABC):
    """Encoder of texts on the CPU. No code is loaded with the weights.

    Encoders do not cache vectors; `Inputs.sentences` caches them for predictors with the same samples.
    """

    width: int

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of weights and vocabulary that identifies the encoder."""

    @abstractmethod
    def count_flops(self, texts: Sequence[str]) -> float:
        """Floating-point operations per text."""

    @abstractmethod
    def _run(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of one batch."""

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return unit vectors float32 `[num_texts, width]`. Texts are cut at the model's maximum length."""
        # Texts of similar length share a batch, which keeps padding small.
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        vector_of: dict[str, np.ndarray] = {}
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            vector_of.update(zip(batch, self._run(batch), strict=True))
        vectors = [vector_of[text] for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, self.width), np.float32)


class TransformerEncoder(SentenceEncoder):
    """Encoder-only transformer in Hugging Face's layout with its tokenizer, from a folder or a hub id.

    Weights are read from safetensors only. Raises ValueError if the source has no such model.
    """

    def __init__(self, source: str) -> None:
        # Imported here, as is torch in other methods: both load slowly, and few predictors read sentences.
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self.model: Any = AutoModel.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False
            ).requires_grad_(False)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"no sentence encoder in {source}: give a folder or hub id that AutoModel and AutoTokenizer "
                f"load, with weights in safetensors, one of static embeddings, or {WORDLLAMA} ({error})"
            ) from error
        self.width = self.model.config.hidden_size
        self._max_length = find_max_length(self.model.config, self.tokenizer)
        # The pooler is not used, and its weights are random if the checkpoint has none.
        self._weights = {n: p for n, p in self.model.named_parameters() if not n.startswith("pooler.")}

    @cached_property
    def fingerprint(self) -> str:
        import torch

        weights = {name: p.detach().contiguous().view(torch.uint8) for name, p in self._weights.items()}
        return _hash(self.tokenizer.get_vocab(), {name: values.numpy() for name, values in weights.items()})

    def _run(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        batch = self._tokenize(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = self.model(**batch).last_hidden_state.float()
            weights = batch["attention_mask"][..., None].float()
            means = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(means, dim=-1).numpy()

    def _tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        """Tokenize texts, cut at the maximum length. "[SEP]" in a text is tokenized as text."""
        return self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self._max_length,
            split_special_tokens=True,
            **options,
        )

    def count_flops(self, texts: Sequence[str]) -> float:
        """Two operations per token and weight outside the embeddings."""
        if not texts:
            return 0.0
        lengths = [len(ids) for ids in self._tokenize(texts)["input_ids"]]
        weights = sum(p.numel() for name, p in self._weights.items() if not name.startswith("embeddings."))
        return 2.0 * weights * sum(lengths) / len(lengths)


class StaticEncoder(SentenceEncoder):
    """Encoder with static embeddings, loaded with `model2vec`.

    The source is a folder or hub id in the layout of `model2vec` or `sentence-transformers`, or `wordllama`
    for the table in the package of that name. Raises ValueError if the source has no such model, or if a
    package is missing.
    """

    def __init__(self, source: str) -> None:
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise ValueError(f"{source} is read by model2vec: {_EXTRA}") from error
        try:
            self.model: Any = (
                StaticModel(*_read_wordllama())
                if source == WORDLLAMA
                else StaticModel.from_pretrained(source, force_download=False)
            )
        except Exception as error:  # tokenizers raises Exception itself for a truncated file
            raise ValueError(f"no static embeddings in {source}: {error}") from error
        self.width = self.model.dim

    @cached_property
    def fingerprint(self) -> str:
        model = self.model
        parts = {"embedding": model.embedding, "weights": model.weights, "mapping": model.token_mapping}
        return _hash(
            model.tokenizer.get_vocab(),
            {name: np.ascontiguousarray(part) for name, part in parts.items() if part is not None},
        )

    def _run(self, texts: Sequence[str]) -> np.ndarray:
        means = self.model.encode(list(texts), use_multiprocessing=False).astype(np.float32)
        # The vector of a text without known tokens is zero.
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def count_flops(self, texts: Sequence[str]) -> float:
        """One addition per token and component."""
        lengths = [len(ids) for ids in self.model.tokenize(list(texts))]
        return self.width * sum(lengths) / len(lengths) if lengths else 0.0


class HashedWords(SentenceEncoder):
    """Presence of words and word pairs, each hashed to one of `width` columns, without a vocabulary.

    Source: Weinberger et al., Feature hashing for large scale multitask learning (ICML 2009).
    """

    width = 512

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(
            n_features=self.width, ngram_range=(1, 2), token_pattern=r"\w+", binary=True, norm="l2"
        )

    @property
    def fingerprint(self) -> str:
        return f"{HASHED_WORDS}/{self.width}"

    def _run(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._vectorizer.transform(texts).toarray(), dtype=np.float32)

    def count_flops(self, texts: Sequence[str]) -> float:
        """One addition per word and word pair."""
        analyze = self._vectorizer.build_analyzer()
        return sum(len(analyze(text)) for text in texts) / len(texts) if texts else 0.0


def _read_wordllama() -> tuple[np.ndarray, Any]:
    """Table and tokenizer of WordLlama, which is not imported since it configures logging on import."""
    from tokenizers import Tokenizer

    spec = find_spec(WORDLLAMA)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {WORDLLAMA} is not installed: {_EXTRA}")
    weights, tokenizer = (Path(spec.submodule_search_locations[0]) / name for name in _WORDLLAMA_FILES)
    # The table is stored in float16, in which means would be rounded.
    return load_file(weights)["embedding.weight"].astype(np.float32), Tokenizer.from_file(str(tokenizer))


def _hash(vocabulary: Mapping[str, int], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()[:16]


def find_max_length(config: Any, tokenizer: Any) -> int:
    """Maximum number of tokens: the smaller of the model's positions and the tokenizer's limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return int(tokenizer.model_max_length)
    if "roberta" in config.model_type:  # position ids start after the padding id
        positions -= (config.pad_token_id or 0) + 1
    return int(min(positions, tokenizer.model_max_length))


def is_static(source: str) -> bool:
    """Return whether the configuration in a folder or hub repository is that of static embeddings."""
    if source == WORDLLAMA:
        return True
    from m3_backbone.loading.weights import fetch

    for name, mark in (("modules.json", "StaticEmbedding"), ("config.json", '"model2vec"')):
        try:
            path = Path(source) / name if Path(source).is_dir() else fetch(source, name)
            if path and path.is_file() and mark in path.read_text(encoding="utf-8"):
                return True
        except (OSError, ValueError):
            return False  # loading the encoder will report the problem
    return False


@lru_cache(2)
def load_sentence_encoder(source: str) -> SentenceEncoder:
    """Load an encoder, shared by all predictors that read it. Raises ValueError if there is none."""
    if source == HASHED_WORDS:
        return HashedWords()
    return StaticEncoder(source) if is_static(source) else TransformerEncoder(source)
