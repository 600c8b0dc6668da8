"""Prompts of chat models: the text around an image and a question, from the checkpoint's chat template."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from m3_backbone.loading.tokenization import check_plain

# Stands for the question while the template is rendered; templates strip white space, so it has none.
_QUESTION = "\ue000question\ue000"
_ANSWER = "\ue000answer\ue000"


class ChatProcessor:
    """Tokenizer and chat template of a checkpoint.

    A prompt is one user message that consists of an image and a question. The template is rendered in the
    sandbox of transformers. `image_text` is the text of the image's placeholder in the rendered prompt, with
    the markers around it that belong to the image. Raises ValueError for a tokenizer without a chat template,
    and for a template that does not put the image before the question.

    Args:
        tokenizer: the tokenizer, with its chat template.
        image_text: placeholder of one image in the rendered template.
        end_ids: ids of the tokens that end an answer.
        image_markers: texts before and after the tokens of an image, where the template leaves them out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_text: str,
        end_ids: Sequence[int],
        image_markers: tuple[str, str] = ("", ""),
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                "the checkpoint has no chat template: add chat_template.jinja to its folder, as in the "
                "repository that it comes from"
            )
        self.tokenizer = tokenizer
        self.image_text = image_text
        self.image_markers = image_markers
        self.end_ids = list(end_ids)
        before, separator, after = self._render(_QUESTION).partition(image_text)
        if not separator or _QUESTION in before or _QUESTION not in after:
            raise ValueError(
                f"the chat template does not put an image ({image_text}) before the question: give a "
                "checkpoint whose template does"
            )
        self.text = (before + image_markers[0], image_markers[1] + after)

    def _render(self, question: str, answer: str | None = None) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None
            )
        except Exception as error:  # a template may raise any error
            raise ValueError(f"the chat template cannot be used: {' '.join(str(error).split())}") from error
        return str(text)

    @cached_property
    def system_ids(self) -> list[int]:
        """Token ids of the prompt before the image, the same for every question."""
        return self._tokenize(self.text[0])

    def suffix_ids(self, question: str) -> list[int]:
        """Token ids of the prompt after the image."""
        return self._tokenize(self.image_markers[1] + self._render(question).partition(self.image_text)[2])

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text in which control tokens are plain text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer after the prompt, end token included."""
        return [*self.text_ids(self._answer_space + answer.strip()), self.end_id]

    @cached_property
    def _answer_space(self) -> str:
        """White space that the template puts between the prompt and an answer, as in "Assistant: yes"."""
        prompt = self._render("?")
        try:
            before, _, _ = self._render("?", _ANSWER).partition(_ANSWER)
        except ValueError:  # a template for questions only
            return ""
        space = before.removeprefix(prompt)
        return space if space.isspace() else ""

    @cached_property
    def end_id(self) -> int:
        """Id of the token that the template puts behind an answer."""
        try:
            after = self._tokenize(self._render("?", _ANSWER).rpartition(_ANSWER)[2])
        except ValueError:  # a template for questions only
            after = []
        return next((token for token in after if token in self.end_ids), self.end_ids[0])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens and surrounding white space."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(dict.fromkeys([*added, *self.tokenizer.all_special_tokens]))

    def check_text(self, subject: str, text: str) -> None:
        """Raise ValueError that names `subject` for a text with control tokens or invalid characters."""
        check_plain(subject, text, self._control_tokens)

    def describe(self) -> dict[str, Any]:
        """All settings that determine the token ids of a prompt, as JSON types."""
        return {
            "text": list(self.text),
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "ends": self.end_ids,
            "answer_space": self._answer_space,
        }
