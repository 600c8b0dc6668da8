"""Attention over packed questions: SDPA as the engine uses it, FlexAttention, variable-length kernels."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from experiments.bench.gpu_check.parts import Unavailable, Values
from experiments.labels.machine import time_call
from m3_backbone.decoding.packing import PackedSegments, Segment

ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
NUM_ROUNDS = 10
NUM_QUESTION_TOKENS = 24


@dataclass(frozen=True)
class PackedInputs:
    """Queries, keys and values `[1, heads, length, size]` of images with their questions, packed.

    `image` and `question` `[length]` number the image and, within it, the question of each token; visual
    tokens have question -1.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    image: Tensor
    question: Tensor
    segments: tuple[Segment, ...]

    @classmethod
    def draw(
        cls, *, num_images: int, num_questions: int, num_visual: int, heads: int, size: int, device: str
    ) -> "PackedInputs":
        """Return random inputs, in bfloat16 on a GPU and float32 on a CPU."""
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        number = torch.arange(num_questions).repeat_interleave(NUM_QUESTION_TOKENS)
        mask = None
        if num_questions > 1:
            mask = (number[:, None] == number).tril().to(device)
        length = num_visual + len(number)
        question = torch.cat([torch.full((num_visual,), -1), number]).repeat(num_images).to(device)
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(3, 1, heads, num_images * length, size, generator=generator).to(device, dtype)
        query, key, value = states
        return cls(
            query=query,
            key=key,
            value=value,
            image=torch.arange(num_images, device=device).repeat_interleave(length),
            question=question,
            segments=(Segment(length, num_visual, mask),) * num_images,
        )

    @property
    def scaling(self) -> float:
        return self.query.shape[-1] ** -0.5


def attend_packed(inputs: PackedInputs) -> Tensor:
    """Return the attention output by the engine's own layout, the reference."""
    layout = PackedSegments(inputs.segments)
    return layout.attend(0, inputs.query, inputs.key, inputs.value, inputs.scaling)


def prepare_flex(inputs: PackedInputs, *, is_compiled: bool) -> Callable[[], Tensor]:
    """Return FlexAttention over the same tokens; the block mask is made once, as for all layers of a pass."""
    image, question = inputs.image, inputs.question

    def is_seen(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        is_shared = (question[column] == -1) | (question[row] == question[column])
        return (row >= column) & (image[row] == image[column]) & is_shared

    length = len(image)
    mask = create_block_mask(is_seen, None, None, length, length, device=str(image.device))
    attend = torch.compile(flex_attention) if is_compiled else flex_attention
    return partial(attend, inputs.query, inputs.key, inputs.value, block_mask=mask, scale=inputs.scaling)


def prepare_varlen(inputs: PackedInputs) -> Callable[[], Tensor]:
    """Return causal variable-length attention over the images, each with one question."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unavailable("this version of PyTorch has no variable-length attention") from error
    lengths = torch.tensor([0, *(segment.length for segment in inputs.segments)], device=inputs.image.device)
    ends = lengths.cumsum(0).int()
    longest = max(segment.length for segment in inputs.segments)

    def attend() -> Tensor:
        query, key, value = (x[0].transpose(0, 1) for x in (inputs.query, inputs.key, inputs.value))
        output = varlen_attn(
            query, key, value, ends, ends, longest, longest, window_size=(-1, 0), scale=inputs.scaling
        )
        assert isinstance(output, Tensor)
        return output.transpose(0, 1)[None]

    return attend


def compare_attention(inputs: PackedInputs, attend: Callable[[], Tensor], *, is_timed: bool) -> Values:
    """Return the largest difference from the engine's attention and the median ratio of times in pairs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        difference = (attend().float() - attend_packed(inputs).float()).abs().max().item()
    allowed = ALLOWED[inputs.query.dtype]
    values = {
        "agrees": difference <= allowed,
        "largest_difference": difference,
        "allowed_difference": allowed,
        "times_as_fast": "unavailable, because FlexAttention is compiled for GPUs only",
    }
    if is_timed:
        pairs = [
            (time_call(partial(attend_packed, inputs))[1], time_call(attend)[1]) for _ in range(NUM_ROUNDS)
        ]
        values["times_as_fast"] = median(engine / other for engine, other in pairs)
    return values
