"""Tokenizers of checkpoints. LLaMA's tokenizer runs in the sentencepiece library itself."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from m3_backbone.reading import check_no_pointer

WORD_START = "\u2581"  # sentencepiece's mark for a space
# A serialized `ModelProto` with these bytes behind it is the same message with
# `normalizer_spec.add_dummy_prefix = false`: in protobuf's encoding, the last value of a field holds.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceLlamaTokenizer(SentencePieceBackend):
    """The slow tokenizer with which the checkpoints were trained.

    transformers 5 converts `tokenizer.model` to a `tokenizers` model instead, which keeps a trailing space
    that sentencepiece drops and decodes broken byte sequences differently: prompts and answers would differ.
    """

    def __init__(
        self,
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        add_bos_token: bool = True,
        legacy: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            add_bos_token=add_bos_token,
            legacy=True,
            special_tokens_pattern="bos" if add_bos_token else None,
            **kwargs,
        )
        self.legacy = self.init_kwargs["legacy"] = legacy is None or legacy
        if not self.legacy:
            # The base class does this through generated code, which takes no protobuf but recent ones.
            self.sp_model.LoadFromSerializedProto(self.sp_model.serialized_model_proto() + NO_DUMMY_PREFIX)

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        if self.legacy or not text:
            return super().tokenize(text, **kwargs)
        tokens = super().tokenize(WORD_START + text.replace(WORD_START, " "), **kwargs)
        if len(tokens) > 1 and tokens[0] == WORD_START and tokens[1] in self.all_special_tokens:
            return tokens[1:]
        return tokens

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens. Special tokens are kept; sentencepiece decodes the others."""
        special = set(self.all_special_tokens)
        text = ""
        pieces: list[str] = []
        for token in tokens:
            if token in special:
                text += self.sp_model.decode(pieces) + token
                pieces = []
            else:
                pieces.append(token)
        return text + self.sp_model.decode(pieces)


def check_plain(subject: str, text: str, control_tokens: Iterable[str]) -> None:
    """Raise ValueError that names `subject` for a text with control tokens or invalid characters."""
    for token in control_tokens:
        if token in text:
            raise ValueError(f"{subject} contains {token!r}, a control token of the model: remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{subject} cannot be encoded as UTF-8: {error.reason}") from error


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; `tokenizer.model` takes precedence, as in the authors' code.

    Raises FileNotFoundError without tokenizer files, ValueError for damaged ones.
    """
    present = [name for name in ("tokenizer.model", "tokenizer.json") if (Path(folder) / name).is_file()]
    if not present:
        raise FileNotFoundError(f"no tokenizer.model and no tokenizer.json in {folder}")
    for name in (*present, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        check_no_pointer(Path(folder) / name)
    tokenizer_class: Any = SentencePieceLlamaTokenizer if "tokenizer.model" in present else AutoTokenizer
    try:
        return tokenizer_class.from_pretrained(folder, trust_remote_code=False)
    except (RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"the tokenizer in {folder} is damaged, fetch it again: {error}") from error
