"""From images and text to what the model takes: pixels, and ids with a placeholder for every visual token."""

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
from m3_backbone.loading.tokenization import load_tokenizer
from m3_backbone.outcomes.shards import write_text
from m3_backbone.reading import check_settings, read_json

PROCESSOR_FILE = "m3_processor.json"


class M3Processor:
    """Tokenizer, image preparation and prompt template of one checkpoint.

    `image_token_id` stands in the ids for a visual token. A vocabulary without `<image>` gets it as one more
    id, for which the model needs no embedding.
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
        """Prompts with one `<image>` each, and their images, for `generate(**inputs, token_scale=...)`.

        `input_ids` and `attention_mask` `[batch, length]`, padded on the left. `pixel_values`
        `[batch, 3, height, width]`; with tiles `[batch, max_tiles, 3, height, width]`, padded with zeros, and
        `image_sizes` `[batch, 2]` (height, width of the images in pixels).
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
        """`pixel_values` and, with tiles, `image_sizes` of the images, as above."""
        tiles = [self.images(image) for image in images]
        if self.images.tiling is None:
            return {"pixel_values": torch.cat(tiles)}
        sizes = torch.tensor([[image.height, image.width] for image in images])
        return {"pixel_values": pad_sequence(tiles, batch_first=True), "image_sizes": sizes}

    @property
    def pad_token_id(self) -> int:
        """Fills masked places only; the end token where the tokenizer has no padding of its own."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def prompt_ids(self, question: str) -> list[int]:
        """Ids of the prompt for a question, one `image_token_id` in the place of all visual tokens."""
        before, after = self.prompt_parts(self.template.format(question))
        return [*before, self.image_token_id, *after]

    def text_ids(self, text: str, *, add_start: bool = False) -> list[int]:
        """Ids of a text in which nothing is a control token: "</s>" in it is four characters.

        With `add_start` the start token goes before, if the tokenizer has one.
        """
        ids: list[int] = self.tokenizer(
            text,
            add_special_tokens=add_start,
            # Left to its default where it makes no difference, which the recorded ids were made with.
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
        """Ids of a further question in the same conversation, after the end token of the last answer."""
        text = self.template.format_later(question)
        if self._holds_control(text):
            return self.text_ids(text)
        return self.tokenizer(self.tokenizer.eos_token + text, add_special_tokens=False).input_ids[1:]

    def prompt_parts(self, prompt: str) -> tuple[list[int], list[int]]:
        """Ids of what stands before and after `<image>`, each tokenised for itself, as LLaVA does."""
        parts = prompt.split(IMAGE)
        if len(parts) != 2:
            raise ValueError(
                f"a prompt needs {IMAGE!r} once, this one has it {len(parts) - 1} times: {prompt!r}"
            )
        before, after = (self.text_ids(part, add_start=True) for part in parts)
        has_start = before and before[0] == self.tokenizer.bos_token_id
        return before, after[1:] if has_start else after

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of the answer after the prompt, end token included. ValueError for one with `<image>`.

        White space around it does not count, which `decode` takes off answers too.
        """
        if IMAGE in answer:
            raise ValueError(f"an answer cannot hold {IMAGE!r}, which stands for an image: {answer!r}")
        # What stands before the answer decides how its first word is split: tokenise together, then cut.
        before = self.template.text.rpartition("{question}")[2]
        start, whole = (
            self.text_ids(text) for text in (before, before + self.template.lead + answer.strip())
        )
        return [*whole[len(start) :], self.tokenizer.eos_token_id]

    def check_text(self, subject: str, text: str) -> None:
        """Raise ValueError, about `subject`, for a text that the tokenizer would not take as mere text."""
        if IMAGE in text:
            raise ValueError(f"{subject} holds {IMAGE!r}, the mark of the image, take it out: {text!r}")
        for token in self.tokenizer.all_special_tokens:
            if token in text:
                raise ValueError(f"{subject} holds {token!r}, a control token of the model: take it out")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{subject} is no text that UTF-8 can hold: {error.reason}") from error

    def describe(self) -> dict[str, Any]:
        """Everything that decides on what the model is handed for an image and a question, as JSON."""
        tokenizer = {
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "legacy": getattr(self.tokenizer, "legacy", None),
        }
        return {"template": asdict(self.template), "images": asdict(self.images), "tokenizer": tokenizer}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens and outer white space."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer and `m3_processor.json`."""
        self.tokenizer.save_pretrained(folder)
        content = {"prompt": self.template.name, "images": asdict(self.images)}
        write_text(Path(folder) / PROCESSOR_FILE, json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """What `save_pretrained` wrote."""
        file = Path(folder) / PROCESSOR_FILE
        content = read_json(file)
        check_settings(file, content, {"images": dict[str, Any], "prompt": str})
        check_settings(file, content.get("images", {}), get_type_hints(ImagePreprocessor))
        try:
            settings = content["images"]
            for name in ("resolutions", "mean", "std"):
                settings[name] = tuple(tuple(v) if isinstance(v, list) else v for v in settings[name])
            images, prompt = ImagePreprocessor(**settings), content["prompt"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is none that this version wrote ({error}): fetch it again") from error
        return cls(load_tokenizer(folder), images, prompt)
