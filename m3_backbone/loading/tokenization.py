"""LLaMA's sentencepiece tokenizer, run by sentencepiece itself."""

from typing import Any

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

WORD_START = "\u2581"  # sentencepiece's mark for a space


class SentencePieceLlamaTokenizer(SentencePieceBackend):
    """The slow tokenizer with which the checkpoints were trained.

    transformers 5 turns `tokenizer.model` into a `tokenizers` model instead, which keeps a trailing space
    that sentencepiece drops and decodes broken byte sequences otherwise: prompts and answers would differ.
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
            legacy=legacy is None or legacy,
            special_tokens_pattern="bos" if add_bos_token else None,
            **kwargs,
        )

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        if self.legacy or not text:
            return super().tokenize(text, **kwargs)
        tokens = super().tokenize(WORD_START + text.replace(WORD_START, " "), **kwargs)
        if len(tokens) > 1 and tokens[0] == WORD_START and tokens[1] in self.all_special_tokens:
            return tokens[1:]
        return tokens

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of the tokens; special tokens stay as they are, all else goes through sentencepiece."""
        special = set(self.all_special_tokens)
        text = ""
        run: list[str] = []
        for token in tokens:
            if token in special:
                text += self.sp_model.decode(run) + token
                run = []
            else:
                run.append(token)
        return text + self.sp_model.decode(run)
