"""Processor of M3: pixels, and token ids with one placeholder per visual token."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_type_hints

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase

from m3_backbone.images import to_rgb
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.llava.prompts import IMAGE, PromptTemplate, prompt_template
from m3_backbone.llava.queries import QueryPreprocessor
from m3_backbone.loading.tokenization import check_plain, load_tokenizer
from m3_backbone.outcomes.shards import write_text
from m3_backbone.reading import check_settings, read_json

PROCESSOR_FILE = "m3_processor.json"


class M3Processor:
    """Tokenizer, image preprocessing and prompt template of one checkpoint.

    `image_token_id` is the placeholder of a visual token. If the vocabulary lacks `<image>`, the token is
    added; the model needs no embedding for it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, images: ImagePreprocessor, prompt: str = "vicuna_v1"
    ) -> None:
        self.tokenizer = tokenizer
        self.images = images
        self.template: PromptTemplate = prompt_template(prompt)
        self.tokenizer.add_tokens([IMAGE], special_tokens=True)
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE))  # type: ignore[arg-type]

    def __call__(
        self, images: Image.Image | Sequence[Image.Image], text: str | Sequence[str], token_scale: int
    ) -> BatchFeature:
        """Return the inputs of `generate(**inputs, token_scale=...)` for images and prompts.

        Each prompt contains `<image>` once. `input_ids` and `attention_mask` are `[batch, length]`, padded on
        the left. `pixel_values` are `[batch, 3, height, width]`; with tiles
        `[batch, max_tiles, 3, height, width]`, padded with zeros, and there are `image_sizes` `[batch, 2]`
        (height and width of the images in pixels). Raises ValueError if the numbers of images and prompts
        differ.
        """
        images = [to_rgb(image) for image in ([images] if isinstance(images, Image.Image) else images)]
        text = [text] if isinstance(text, str) else list(text)
        if len(images) != len(text):
            raise ValueError(f"{len(images)} images for {len(text)} prompts: give one image for each prompt")
        parts = [self.prompt_parts(prompt) for prompt in text]
        counts = [self.images.num_visual_tokens(image.size, token_scale) for image in images]
        ids = [
            before + [self.image_token_id] * count + after
            for (before, after), count in zip(parts, counts, strict=True)
        ]
        length = max(map(len, ids))
        inputs = {
            "input_ids": torch.tensor([[self.pad_token_id] * (length - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
        }
        return BatchFeature({**inputs, **self.preprocess(images)})

    def preprocess(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return `pixel_values` and, with tiles, `image_sizes` of the images, as in `__call__`."""
        tiles = [self.images(image) for image in images]
        if self.images.tiling is None:
            return {"pixel_values": torch.cat(tiles)}
        sizes = torch.tensor([[image.height, image.width] for image in images])
        return {"pixel_values": pad_sequence(tiles, batch_first=True), "image_sizes": sizes}

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token; the end token if the tokenizer has none. Padding is always masked."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def system_ids(self) -> list[int]:
        """Token ids of the prompt before the image, the same for every question."""
        return self.prompt_parts(self.template.text)[0]

    def suffix_ids(self, question: str) -> list[int]:
        """Token ids of the prompt after the image."""
        return self.prompt_parts(self.template.format(question))[1]

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the prompt for a question, with one `image_token_id` in place of all visual tokens."""
        before, after = self.prompt_parts(self.template.format(question))
        return [*before, self.image_token_id, *after]

    def text_ids(self, text: str, *, add_start: bool = False) -> list[int]:
        """Token ids of a text in which control tokens are plain text: "</s>" is four characters.

        With `add_start`, the start token is prepended if the tokenizer has one.
        """
        ids: list[int] = self.tokenizer(
            text,
            add_special_tokens=add_start,
            # The default otherwise, with which the recorded ids were made; it makes no difference there.
            **({"split_special_tokens": True} if self._holds_control(text) else {}),
        ).input_ids
        return ids

    def _holds_control(self, text: str) -> bool:
        return any(token in text for token in self._control_tokens)

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values())
        return tuple(dict.fromkeys([*added, *self.tokenizer.all_special_tokens]))

    def next_turn_ids(self, question: str) -> list[int]:
        """Token ids of the next question of a conversation, after the end token of the previous answer."""
        text = self.template.format_later(question)
        if self._holds_control(text):
            return self.text_ids(text)
        return self.tokenizer(self.tokenizer.eos_token + text, add_special_tokens=False).input_ids[1:]

    def prompt_parts(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after `<image>`, tokenised separately as in LLaVA.

        Raises ValueError if the prompt does not contain `<image>` exactly once.
        """
        parts = prompt.split(IMAGE)
        if len(parts) != 2:
            raise ValueError(
                f"a prompt needs {IMAGE!r} once, this one contains it {len(parts) - 1} times: {prompt!r}"
            )
        before, after = (self.text_ids(part, add_start=True) for part in parts)
        has_start = before and before[0] == self.tokenizer.bos_token_id
        return before, after[1:] if has_start else after

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer after the prompt, end token included.

        White space around the answer is ignored, as in `decode`. Raises ValueError for an answer with
        `<image>`.
        """
        if IMAGE in answer:
            raise ValueError(f"an answer cannot contain {IMAGE!r}, which stands for an image: {answer!r}")
        # The split of the first word depends on the text before the answer: tokenise both, then cut.
        before = self.template.text.rpartition("{question}")[2]
        start, whole = (
            self.text_ids(text) for text in (before, before + self.template.lead + answer.strip())
        )
        return [*whole[len(start) :], self.tokenizer.eos_token_id]

    def check_text(self, subject: str, text: str) -> None:
        """Raise ValueError that names `subject` for a text with control tokens or invalid characters."""
        if IMAGE in text:
            raise ValueError(
                f"{subject} contains {IMAGE!r}, the placeholder of the image: remove it: {text!r}"
            )
        check_plain(subject, text, self.tokenizer.all_special_tokens)

    def describe(self) -> dict[str, Any]:
        """Return all settings that determine the inputs for an image and a question, as JSON types."""
        tokenizer = {
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "legacy": getattr(self.tokenizer, "legacy", None),
        }
        return {"template": asdict(self.template), "images": asdict(self.images), "tokenizer": tokenizer}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens and surrounding white space."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer and `m3_processor.json`."""
        self.tokenizer.save_pretrained(folder)
        content = {"prompt": self.template.name, "images": asdict(self.images)}
        write_text(Path(folder) / PROCESSOR_FILE, json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a processor that `save_pretrained` wrote. Raises ValueError that names a damaged file."""
        file = Path(folder) / PROCESSOR_FILE
        content = read_json(file)
        check_settings(file, content, {"images": dict[str, Any], "prompt": str})
        images_class = QueryPreprocessor if "num_queries" in content.get("images", {}) else ImagePreprocessor
        check_settings(file, content.get("images", {}), get_type_hints(images_class))
        try:
            settings = content["images"]
            for name in ("resolutions", "mean", "std"):
                settings[name] = tuple(tuple(v) if isinstance(v, list) else v for v in settings[name])
            images, prompt = images_class(**settings), content["prompt"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} was not written by this version ({error}): fetch it again") from error
        return cls(load_tokenizer(folder), images, prompt)
