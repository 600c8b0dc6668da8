"""Base class of backbones around a vision-language model of transformers."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.backbone import Answer, Backbone, EncodedImage, check_scale
from m3_backbone.costs import decoder_flops_per_token, prefill_flops
from m3_backbone.decoding.batches import Capacity, group_indices, run_batches
from m3_backbone.decoding.decoding import Decoded, Decoder, StartedAnswers, VisualPrefix, Watch, renumber
from m3_backbone.decoding.drafting import Work
from m3_backbone.decoding.sampling import Draw
from m3_backbone.features import GROUPS, ImageFeatures, describe_image, make_thumbnail
from m3_backbone.prefilled import Prefilled

Result = TypeVar("Result")


class TextProcessor(Protocol):
    """Prompts, questions and answers as token ids."""

    @property
    def system_ids(self) -> list[int]:
        """Token ids of the prompt before the image, the same for every question."""
        ...

    def suffix_ids(self, question: str) -> list[int]:
        """Token ids of the prompt after the image."""
        ...

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text in which control tokens are plain text."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer after the prompt, end token included."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens and surrounding white space."""
        ...

    def check_text(self, subject: str, text: str) -> None:
        """Raise ValueError that names `subject` for a text with control tokens or invalid characters."""
        ...

    def describe(self) -> dict[str, Any]:
        """All settings that determine the inputs for an image and a question, as JSON types."""
        ...


class OpenedCheckpoint(Protocol):
    """A checkpoint of which only the configuration and the tokenizer have been read."""

    @property
    def source(self) -> str: ...

    @property
    def config(self) -> Any: ...

    @property
    def processor(self) -> TextProcessor: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    @property
    def is_local(self) -> bool: ...

    def copy_to(self, folder: Path) -> None: ...

    def load_model(self, *, dtype: Any, device_map: Any, attn_implementation: str | None) -> Any: ...


class ModelBackbone(Backbone, ABC):
    """Backbone of a checkpoint: device and dtype of its model, questions, batches and answers.

    A subclass encodes images, gives their visual tokens as `VisualPrefix` at each scale, and says what they
    cost. The constructor reads only the configuration and the tokenizer; the weights are loaded when first
    needed. It raises ValueError for unknown devices, dtypes and attention kernels.

    Args:
        checkpoint: an opened checkpoint.
        name: name of the backbone in the labels that it makes; by default the last part of the source.
        dtype: dtype of the weights, such as `float32` or `bfloat16`; `auto` uses that of the checkpoint.
        device: device of the model; by default a GPU if there is one. Excludes `device_map`.
        device_map: distribution of the model over devices, as in `from_pretrained` (needs accelerate).
        attn_implementation: attention kernel, as in `from_pretrained`.
        max_new_tokens: largest number of tokens of an answer.
        batch_size: number of questions that are answered together.
        image_batch_size: number of images that are encoded together.
        batch_tokens: number of visual and text tokens that are decoded together, in place of `batch_size`.
    """

    # What `vars` may hold that another process makes again.
    _UNPICKLED: ClassVar[frozenset[str]] = frozenset(
        {"model", "_decoder", "_suffix_ids", "_answer_ids", "_capacities"}
    )
    _decoder_class: Callable[..., Decoder] = Decoder

    @checked
    def __init__(
        self,
        checkpoint: OpenedCheckpoint,
        *,
        name: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        max_new_tokens: PositiveInt = 64,
        batch_size: PositiveInt = 16,
        image_batch_size: PositiveInt = 4,
        batch_tokens: PositiveInt | None = None,
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
        self.name = name or Path(checkpoint.source).name
        self.dtype, self.attn_implementation = dtype, attn_implementation
        self.device, self.device_map = device, device_map
        self.max_new_tokens = max_new_tokens
        self.batch_size, self.image_batch_size = batch_size, image_batch_size
        self.batch_tokens = batch_tokens
        self.checkpoint: Any = checkpoint
        self.processor: Any = checkpoint.processor
        self._make_caches()

    def _make_caches(self) -> None:
        # Questions recur at every scale, and references recur with many questions.
        self._suffix_ids = lru_cache(2**16)(self.processor.suffix_ids)
        self._answer_ids = lru_cache(2**16)(self.processor.answer_ids)
        self._capacities: dict[tuple[str, int, int], Capacity] = {}

    def _capacity(self, work: str, scale: int, limit: int) -> Capacity:
        """Return the size of the batches of one kind of work at a scale, which remembers what fitted."""
        return self._capacities.setdefault((work, scale, limit), Capacity(limit))

    def __getstate__(self) -> dict[str, Any]:
        """State without model and caches: the process that unpickles it loads the weights itself."""
        return {name: value for name, value in vars(self).items() if name not in self._UNPICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    def saved_arguments(self) -> dict[str, Any]:
        """Arguments besides the checkpoint with which the class opens this backbone again, as JSON types."""
        names = ("name", "dtype", "attn_implementation", "max_new_tokens", "batch_size", "image_batch_size")
        tokens = {} if self.batch_tokens is None else {"batch_tokens": self.batch_tokens}
        return {name: getattr(self, name) for name in names} | tokens

    @cached_property
    def system_ids(self) -> list[int]:
        """Token ids of the prompt before the image."""
        return self.processor.system_ids

    def _describe_decoding(self) -> dict[str, Any]:
        """Settings that determine answers besides weights and prompt, for the fingerprint."""
        dtype = self.checkpoint.config.dtype if self.dtype == "auto" else self.dtype
        return {
            "method": "greedy",
            "max_new_tokens": self.max_new_tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "attention": self.attn_implementation,
        }

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return {
            "weights": self.checkpoint.fingerprint,
            "prompt": _digest(self.processor.describe()),
            "decoding": _digest(self._describe_decoding()),
        }

    @cached_property
    def model(self) -> Any:
        """The model with its weights, on its device."""
        model = self._load_model()
        if self.device_map is None:
            model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return model.requires_grad_(False)

    def _load_model(self) -> Any:
        return self.checkpoint.load_model(
            dtype=self.dtype, device_map=self.device_map, attn_implementation=self.attn_implementation
        )

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

    def limit_answers(self, max_new_tokens: int) -> None:
        """Set the largest number of tokens of an answer, which changes the fingerprint of `decoding`."""
        self.max_new_tokens = max_new_tokens
        for name in ("_decoder", "fingerprints"):
            vars(self).pop(name, None)

    def count_room(self, question: str, scale: int | None = None) -> int:
        """Number of tokens of the context that a question about an image of any size leaves to an answer.

        By default, that at the finest scale. It may be negative.
        """
        finest = self.scales[-1] if scale is None else check_scale(scale, self.scales)
        num_text = len(self.system_ids) + len(self._suffix_ids(question))
        return self.checkpoint.context_length - num_text - self.max_prefix_tokens(finest)

    @property
    def hidden_size(self) -> int:
        """Size of visual tokens and token embeddings in the decoder."""
        return int(self.checkpoint.config.get_text_config().hidden_size)

    @property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends)

    @cached_property
    def _decoder(self) -> Decoder:
        return self._decoder_class(self.model, self.end_ids, self.max_new_tokens, self.system_ids)

    @property
    def work(self) -> Work:
        """Counters of decoder work since the weights were loaded."""
        return self._decoder.work

    def prefill_flops(self, image_size: tuple[int, int], question: str, scale: int) -> int:
        return self._decoder_flops(self.num_prompt_tokens(image_size, question, scale))

    def num_prompt_tokens(self, image_size: tuple[int, int], question: str, scale: int) -> int:
        """Number of tokens of a prompt in the decoder: the text and the tokens of the image."""
        num_text_tokens = len(self.system_ids) + len(self._suffix_ids(question))
        return num_text_tokens + self.num_prefix_tokens(image_size, scale)

    def _decoder_flops(self, num_tokens: int) -> int:
        """Operations of the decoder on a prompt of `num_tokens` tokens."""
        return prefill_flops(self.checkpoint.config, num_tokens)

    def decode_flops_per_token(self) -> int:
        return decoder_flops_per_token(self.checkpoint.config)

    def num_prefix_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        """Number of tokens of an image in the decoder: its visual tokens and the markers among them."""
        return self.num_visual_tokens(image_size, scale)

    @abstractmethod
    def max_prefix_tokens(self, scale: int) -> int:
        """Largest number of tokens that an image of any size has in the decoder at a scale."""

    @abstractmethod
    def visual_prefixes(self, encoded: Sequence[Any], scale: int) -> list[VisualPrefix]:
        """Tokens of each image that enter the decoder at a scale; runs the vision pass where necessary."""

    @abstractmethod
    def visual_tokens(self, encoded: Sequence[Any], scale: int) -> list[Tensor]:
        """Visual tokens of each image that enter the decoder at a scale, `[num_tokens, hidden]`."""

    @abstractmethod
    def _describe_tower(self, image: Any) -> dict[str, float]:
        """Statistics `tower/...` of an encoded image (see `m3_backbone.features`)."""

    def compute_features(
        self, encoded: Sequence[Any], scales: Collection[int], groups: Collection[str] = GROUPS
    ) -> list[ImageFeatures]:
        if "tower" in groups:
            self.encode_at(encoded, self.scales[0])
        tokens_at = {scale: self.visual_tokens(encoded, scale) for scale in scales}
        features = []
        for number, image in enumerate(encoded):
            visual = {scale: tokens[number].half().cpu().numpy() for scale, tokens in tokens_at.items()}
            statistics = self._describe_tower(image) if "tower" in groups else {}
            if "image" in groups:
                statistics |= describe_image(image.image)
            features.append(ImageFeatures(visual, statistics))
        return features

    def make_thumbnails(self, encoded: Sequence[Any], side: int) -> list[np.ndarray]:
        return [make_thumbnail(image.image, side) for image in encoded]

    def encode_at(self, encoded: Sequence[Any], scale: int) -> None:
        """Run the vision pass of a scale on the images that lack it; nothing if `encode` has run it."""

    @abstractmethod
    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        """Inputs with which `model.generate` answers questions[i] about images[i] from pixels.

        Token ids are padded on the left. Answers of this backbone equal those of `generate`; it is for tests
        and timings.
        """

    def encode_in_batches(
        self, encode: Callable[[Sequence[Any]], list[Any]], images: Sequence[Any], scale: int
    ) -> list[Any]:
        """Return the results of `encode` on batches of images, in order; `scale` is theirs."""
        capacity = self._capacity("encode", scale, self.image_batch_size)
        batches = run_batches(encode, images, capacity, self._decoder.device)
        return [result for _, results in batches for result in results]

    def answer(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
        draws: Sequence[Draw] | None = None,
        watch: Watch | None = None,
    ) -> list[Answer]:
        """Answer as `Backbone.answer` does.

        `watch` is called, in this thread, with the index of a question and the tokens of its answer so far,
        whenever the answer grows. If a batch runs out of memory and is divided, its answers start again.
        """
        return self._answer(encoded, questions, scale, references, drafts, draws, watch=watch)

    @property
    def has_states(self) -> bool:
        return True

    def answer_with_states(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
    ) -> list[Answer]:
        return self._answer(encoded, questions, scale, references, drafts, states=True)

    def _answer(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        references: Sequence[Sequence[str]] | None,
        drafts: Sequence[Answer] | None,
        draws: Sequence[Draw] | None = None,
        *,
        states: bool = False,
        watch: Watch | None = None,
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

        def decode(indices: Sequence[int]) -> list[Decoded]:
            return self._decoder.decode(
                *self._list_prompts(encoded, questions, indices, scale),
                [[self._answer_ids(answer) for answer in dict.fromkeys(references[i])] for i in indices],
                [draft_ids[i] for i in indices],
                [draws[i] for i in indices] if draws else None,
                states=states,
                watch=renumber(watch, indices),
            )

        answers: dict[int, Answer] = {}
        for indices, results in self._run_questions(decode, encoded, questions, scale):
            for index, decoded in zip(indices, results, strict=True):
                answers[index] = Answer(self.processor.decode(decoded.token_ids), **vars(decoded))
        return [answers[index] for index in range(len(encoded))]

    def prefill(self, encoded: Sequence[EncodedImage], questions: Sequence[str], scale: int) -> Prefilled:
        def start(indices: Sequence[int]) -> list[StartedAnswers]:
            prompts = self._list_prompts(encoded, questions, indices, scale)
            return [self._decoder.start(*prompts, [()] * len(indices), states=True)]

        batches: list[StartedAnswers] = []
        place_of: dict[int, tuple[int, int]] = {}
        for indices, (started,) in self._run_questions(start, encoded, questions, scale):
            place_of |= {index: (len(batches), row) for row, index in enumerate(indices)}
            batches.append(started)
        return Prefilled(self._decoder, batches, place_of, self.processor.decode)

    def _list_prompts(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], indices: Sequence[int], scale: int
    ) -> tuple[list[VisualPrefix], list[int], list[list[int]]]:
        """Return distinct images of the questions `indices`, the image of each, and their token ids."""
        images = list({id(encoded[i]): encoded[i] for i in indices}.values())
        number_of = {id(image): number for number, image in enumerate(images)}
        prefixes = self.visual_prefixes(images, scale)
        owners = [number_of[id(encoded[i])] for i in indices]
        return prefixes, owners, [self._suffix_ids(questions[i]) for i in indices]

    def _run_questions(
        self,
        run: Callable[[Sequence[int]], list[Result]],
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
    ) -> list[tuple[list[int], list[Result]]]:
        """Return (indices, `run(indices)`) for batches of the questions, which are checked first."""
        check_scale(scale, self.scales)
        for question in dict.fromkeys(questions):
            self.check_question(question, scale=scale)
        # For all images of the call together, before the questions are divided into batches.
        self.encode_at(encoded, scale)
        # Questions about one image are adjacent, so that they share its prefix.
        by_question = group_indices([id(image) for image in encoded], questions)
        sizes = None
        if self.batch_tokens is not None:
            sizes = self._count_tokens(encoded, questions, by_question, scale)
        capacity = self._capacity("answer", scale, self.batch_tokens or self.batch_size)

        def run_groups(groups: Sequence[list[int]]) -> list[Result]:
            return run(list(chain.from_iterable(groups)))

        owners = [id(encoded[first]) for first, *_ in by_question]
        batches = run_batches(run_groups, by_question, capacity, self._decoder.device, sizes, owners)
        return [(list(chain.from_iterable(groups)), results) for groups, results in batches]

    def _count_tokens(
        self, encoded: Sequence[Any], questions: Sequence[str], groups: Sequence[list[int]], scale: int
    ) -> list[int]:
        """Return the number of tokens of each group of equal questions; an image counts at its first one."""
        counts = []
        seen: set[int] = set()
        for first, *_ in groups:
            image = encoded[first]
            num_text = len(self._suffix_ids(questions[first])) + self.max_new_tokens
            is_new = id(image) not in seen
            seen.add(id(image))
            counts.append(num_text + (self.num_prefix_tokens(image.size, scale) if is_new else 0))
        return counts

    def check_question(self, question: str, references: Sequence[str] = (), scale: int | None = None) -> None:
        if not question.strip():
            raise ValueError("the question is empty: ask something")
        self.processor.check_text("the question", question)
        finest = self.scales[-1] if scale is None else check_scale(scale, self.scales)
        num_visual = self.max_prefix_tokens(finest)
        context = self.checkpoint.context_length
        prompt_length = context - self.count_room(question, finest)
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
