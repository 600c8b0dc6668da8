"""Backbone of M3 and MQT-LLaVA checkpoints: one vision pass serves all scales."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.backbone import Answer, Backbone
from m3_backbone.decoding.batches import group_indices, run_batches
from m3_backbone.decoding.decoding import Decoded, Decoder
from m3_backbone.decoding.drafting import Work
from m3_backbone.decoding.sampling import Draw
from m3_backbone.features import GROUPS, ImageFeatures, describe_image
from m3_backbone.images import to_rgb
from m3_backbone.ladder import Family
from m3_backbone.llava.costs import decoder_flops_per_token, prefill_flops, vision_flops
from m3_backbone.llava.modeling import M3Model
from m3_backbone.llava.pooling import describe_tokens
from m3_backbone.llava.prompts import prompt_template
from m3_backbone.llava.queries import describe_queries, num_queries_of
from m3_backbone.loading.checkpoint import Checkpoint

# Scales of M3 that are cheap to store and to read.
_FEATURE_SCALES = (1, 9, 36)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the single vision pass that serves every scale.

    `tokens` `[num_tiles, grid * grid, hidden]` are projected but not yet pooled; of an MQT-LLaVA they are
    those of all queries, `[1, num_queries, hidden]`.
    """

    tokens: Tensor
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


class LlavaBackbone(Backbone):
    """Backbone of an M3 or MQT-LLaVA checkpoint.

    The constructor reads only the configuration and the tokenizer; the weights are loaded when first needed.
    It raises ValueError for unknown devices, dtypes and attention kernels, and the errors of
    `Checkpoint.open`.

    Args:
        checkpoint: folder, hub id, `tiny_m3`, or an opened `Checkpoint`.
        name: name of the backbone in the labels that it makes; by default the last part of `checkpoint`.
        dtype: dtype of the weights, such as `float32` or `bfloat16`; `auto` uses that of the checkpoint.
        device: device of the model; by default a GPU if there is one. Excludes `device_map`.
        device_map: distribution of the model over devices, as in `from_pretrained` (needs accelerate).
        attn_implementation: attention kernel, as in `from_pretrained`.
        scales: scales that replace those in the checkpoint's configuration. The checkpoint must have been
            trained for them.
        image_grid_pinpoints: other grids of tiles for a tiled checkpoint, (width, height) in pixels.
        prompt: name of the prompt template; by default that of the checkpoint.
        max_new_tokens: largest number of tokens of an answer.
        batch_size: number of questions that are answered together.
        image_batch_size: number of images that are encoded together.
    """

    family: Family = "pooled"
    _decoder_class: Callable[..., Decoder] = Decoder

    @checked
    def __init__(
        self,
        checkpoint: str | Path | Checkpoint,
        *,
        name: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        scales: Sequence[PositiveInt] | None = None,
        image_grid_pinpoints: Sequence[Sequence[PositiveInt]] | None = None,
        prompt: str | None = None,
        max_new_tokens: PositiveInt = 16,
        batch_size: PositiveInt = 64,
        image_batch_size: PositiveInt = 16,
    ) -> None:
        if device is not None and device_map is not None:
            raise ValueError("give device or device_map, not both")
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, and there is no GPU: use cpu")
        if device is not None:
            check_device(device)
        check_dtype(dtype)
        if attn_implementation is not None:
            check_attention(attn_implementation)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.open(checkpoint, image_grid_pinpoints, scales)
        elif scales is not None:
            checkpoint = replace(checkpoint, given_scales=tuple(scales))
        self.name = name or Path(checkpoint.source).name
        self.dtype, self.attn_implementation = dtype, attn_implementation
        self.device, self.device_map = device, device_map
        self.max_new_tokens = max_new_tokens
        self.batch_size, self.image_batch_size = batch_size, image_batch_size
        self.checkpoint = checkpoint
        self.processor = self.checkpoint.processor
        if prompt is not None:
            self.processor.template = prompt_template(prompt)
        self._system_ids = self.processor.prompt_parts(self.processor.template.text)[0]
        self._make_caches()

    def _make_caches(self) -> None:
        # Questions recur at every scale, and references recur with many questions.
        self._suffix_ids = lru_cache(2**16)(self._tokenize_suffix)
        self._answer_ids = lru_cache(2**16)(self.processor.answer_ids)

    def __getstate__(self) -> dict[str, Any]:
        """State without model and caches: the process that unpickles it loads the weights itself."""
        excluded = ("model", "_decoder", "_suffix_ids", "_answer_ids")
        return {name: value for name, value in vars(self).items() if name not in excluded}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return self.checkpoint.scales

    @property
    def feature_scales(self) -> tuple[int, ...]:
        if num_queries_of(self.checkpoint.config):
            return self.scales[:3]
        return tuple(scale for scale in self.scales if scale in _FEATURE_SCALES) or self.scales[:1]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        dtype = self.checkpoint.config.dtype if self.dtype == "auto" else self.dtype
        return {
            "weights": self.checkpoint.fingerprint,
            "prompt": _digest(self.processor.describe()),
            "decoding": _digest(
                {
                    "method": "greedy",
                    "max_new_tokens": self.max_new_tokens,
                    "dtype": str(dtype).removeprefix("torch."),
                    "attention": self.attn_implementation,
                }
            ),
        }

    @cached_property
    def model(self) -> M3Model:
        """The model with its weights, on its device."""
        model: Any = self.checkpoint.load_model(
            dtype=self.dtype, device_map=self.device_map, attn_implementation=self.attn_implementation
        )
        if self.device_map is None:
            model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return model.requires_grad_(False)

    @property
    def torch_dtype(self) -> torch.dtype:
        """dtype of the weights, whether or not they are loaded."""
        name = self.checkpoint.config.dtype if self.dtype == "auto" else self.dtype
        dtype: torch.dtype = getattr(torch, str(name or "float32").removeprefix("torch."))
        return dtype

    @property
    def torch_device(self) -> torch.device:
        """Device of the model, whether or not it is loaded; with `device_map`, that of its first weights."""
        if self.device_map is not None:
            return self.model.device
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def move(self, device: str | None = None, dtype: str | None = None) -> None:
        """Move the model to another device, or reload its weights with another `dtype` when next needed.

        Another dtype changes the fingerprint of `decoding`. Raises ValueError for a device that is missing,
        and for a device if the model was opened with `device_map`.
        """
        if self.device_map is not None and device is not None:
            raise ValueError("a model opened with device_map cannot be moved: open it with device instead")
        if device is not None:
            if torch.device(device).type == "cuda" and not torch.cuda.is_available():
                raise ValueError(f"device is {device!r}, and there is no GPU: use cpu")
            self.device = device
        stale = ["_decoder"]
        if dtype is not None and getattr(torch, dtype) != self.torch_dtype:
            self.dtype = dtype
            stale += ["model", "fingerprints"]
        for name in stale:
            vars(self).pop(name, None)
        if "model" in vars(self) and device is not None:
            model: Any = self.model
            model.to(device)

    @cached_property
    def _decoder(self) -> Decoder:
        ends = self.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends
        return self._decoder_class(self.model, ends, self.max_new_tokens, self._system_ids)

    @property
    def work(self) -> Work:
        """Counters of decoder work since the weights were loaded."""
        return self._decoder.work

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        return self.processor.images.num_visual_tokens(image_size, scale)

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        return vision_flops(self.checkpoint.config, self.processor.images.num_tiles(image_size))

    def prefill_flops(self, image_size: tuple[int, int], question: str, scale: int) -> int:
        num_text_tokens = len(self._system_ids) + len(self._suffix_ids(question))
        return prefill_flops(
            self.checkpoint.config, num_text_tokens + self.num_visual_tokens(image_size, scale)
        )

    def decode_flops_per_token(self) -> int:
        return decoder_flops_per_token(self.checkpoint.config)

    def check_image(self, image_size: tuple[int, int]) -> None:
        """Do nothing: images of every size are resized to the size of the tower."""

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        images = [to_rgb(image) for image in images]

        def encode(batch: Sequence[Image.Image]) -> list[EncodedImage]:
            inputs = {
                name: x.to(self._decoder.device) for name, x in self.processor.preprocess(batch).items()
            }
            tokens = self.model.encode_images(**inputs)
            counts = [self.processor.images.num_tiles(image.size) for image in batch]
            return [
                EncodedImage(t.clone(), image) for t, image in zip(tokens.split(counts), batch, strict=True)
            ]

        batches = run_batches(encode, images, self.image_batch_size, self._decoder.device)
        return [encoded for _, results in batches for encoded in results]

    @torch.no_grad()
    def visual_tokens(self, encoded: Sequence[EncodedImage], scale: int) -> list[Tensor]:
        """Visual tokens of each image that enter the decoder at a scale, `[num_tokens, hidden]`."""
        if not encoded:
            return []
        sizes = torch.tensor([image.size[::-1] for image in encoded])
        return self.model.pool_images(torch.cat([image.tokens for image in encoded]), scale, sizes)

    def compute_features(  # type: ignore[override]
        self, encoded: Sequence[EncodedImage], scales: Collection[int], groups: Collection[str] = GROUPS
    ) -> list[ImageFeatures]:
        tokens_at = {scale: self.visual_tokens(encoded, scale) for scale in scales}
        features = []
        for number, image in enumerate(encoded):
            visual = {scale: tokens[number].half().cpu().numpy() for scale, tokens in tokens_at.items()}
            statistics = self._describe_tower(image) if "tower" in groups else {}
            if "image" in groups:
                statistics |= describe_image(image.image)
            features.append(ImageFeatures(visual, statistics))
        return features

    def _describe_tower(self, image: EncodedImage) -> dict[str, float]:
        describe = describe_queries if num_queries_of(self.checkpoint.config) else describe_tokens
        return describe(image.tokens, self.scales)

    def answer(  # type: ignore[override]
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
        draws: Sequence[Draw] | None = None,
    ) -> list[Answer]:
        references = references or [()] * len(questions)
        draft_ids = [[draft.token_ids] for draft in drafts] if drafts else [[]] * len(questions)
        if any(
            len(column) != len(encoded) for column in (questions, references, draft_ids, draws or encoded)
        ):
            raise ValueError(
                f"{len(encoded)} images, {len(questions)} questions, {len(references)} references, "
                f"{len(draft_ids)} drafts, {len(draws or encoded)} draws: give one of each per question"
            )
        for question in dict.fromkeys(questions):
            self.check_question(question, scale=scale)

        def decode(groups: Sequence[list[int]]) -> list[Decoded]:
            indices = list(chain.from_iterable(groups))
            images = list({id(encoded[i]): encoded[i] for i in indices}.values())
            number_of = {id(image): number for number, image in enumerate(images)}
            return self._decoder.decode(
                self.visual_tokens(images, scale),
                [number_of[id(encoded[i])] for i in indices],
                [self._suffix_ids(questions[i]) for i in indices],
                [[self._answer_ids(answer) for answer in dict.fromkeys(references[i])] for i in indices],
                [draft_ids[i] for i in indices],
                [draws[i] for i in indices] if draws else None,
            )

        # Questions about one image are adjacent, so that they share its prefix.
        by_question = group_indices([id(image) for image in encoded], questions)
        answers: dict[int, Answer] = {}
        device = self._decoder.device
        for groups, results in run_batches(decode, by_question, self.batch_size, device):
            for index, decoded in zip(chain.from_iterable(groups), results, strict=True):
                answers[index] = Answer(self.processor.decode(decoded.token_ids), **vars(decoded))
        return [answers[index] for index in range(len(encoded))]

    def _tokenize_suffix(self, question: str) -> list[int]:
        """Token ids of the prompt after the image."""
        return self.processor.prompt_parts(self.processor.template.format(question))[1]

    def check_question(self, question: str, references: Sequence[str] = (), scale: int | None = None) -> None:
        if not question.strip():
            raise ValueError("the question is empty: ask something")
        self.processor.check_text("the question", question)
        num_visual = self.processor.images.max_visual_tokens(scale or self.scales[-1])
        context = self.checkpoint.context_length
        prompt_length = len(self._system_ids) + num_visual + len(self._suffix_ids(question))
        if prompt_length + self.max_new_tokens > context:
            raise ValueError(
                f"the question is too long: with {num_visual} visual tokens and {self.max_new_tokens} for an "
                f"answer it needs {prompt_length + self.max_new_tokens} positions, "
                f"and the model has {context}"
            )
        for reference in dict.fromkeys(references):
            self.processor.check_text("a reference", reference)
            length = len(self._answer_ids(reference))
            if prompt_length + length > context:
                raise ValueError(
                    f"a reference is too long: with {num_visual} visual tokens, the question and its own "
                    f"{length} tokens it needs {prompt_length + length} positions, "
                    f"and the model has {context}"
                )

    def question_ids(self, question: str) -> list[int]:
        return self.processor.text_ids(question)

    def token_embeddings(self) -> Tensor:
        return self._decoder.embed.weight.detach().cpu()


def check_device(device: str) -> None:
    """Raise ValueError if PyTorch does not know the device."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device}: give cpu, cuda, cuda:N or another device of PyTorch") from error


def check_dtype(dtype: str) -> None:
    """Raise ValueError if the name is not `auto` or a floating-point type of PyTorch."""
    known = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not (isinstance(known, torch.dtype) and known.is_floating_point):
        raise ValueError(f"dtype={dtype}: give auto, float32, bfloat16 or float16")


def check_attention(name: str) -> None:
    """Raise ValueError if transformers does not know the attention. Names of hub kernels have a slash."""
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if name not in known and "/" not in name:
        raise ValueError(f"attn_implementation={name}: give one of {', '.join(known)}")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
