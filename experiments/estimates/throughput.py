"""Speed of devices: of GPUs from their data sheets, of a CPU from a short measurement."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.benchmark import Timer

from m3_backbone.costs import read_heads

# Seconds for which each shape is measured.
_MIN_SECONDS = 0.4


@dataclass(frozen=True)
class Gpu:
    """Dense peak of matrix products in operations per second, bytes per second and bytes of memory.

    `half` is the peak in bfloat16 with sums in float32, `single` that in float32 without tensor cores.
    """

    half: float
    single: float
    bandwidth: float
    memory: float


# From the vendor's data sheets (SXM versions of H200, H100 and A100), without sparsity.
GPUS = {
    "h200": Gpu(989e12, 67e12, 4.8e12, 141e9),
    "h100": Gpu(989e12, 67e12, 3.35e12, 80e9),
    "a100": Gpu(312e12, 19.5e12, 2.039e12, 80e9),
    "l40s": Gpu(362e12, 91.6e12, 0.864e12, 48e9),
    "rtx4090": Gpu(165.2e12, 82.6e12, 1.008e12, 24e9),
}
# Share of the peak bandwidth at which weights are assumed to be read.
BANDWIDTH_SHARE = 0.6


@dataclass(frozen=True)
class LayerShape:
    """Shape of a transformer layer: widths of its input, queries, keys and MLP, and its attention heads."""

    hidden: int
    query: int
    key: int
    inner: int
    num_heads: int

    @classmethod
    def of_decoder(cls, config: Any) -> Self:
        """Return the shape of a decoder's first layer from a configuration of transformers."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        key_heads, size = read_heads(config)[0]
        return cls(text.hidden_size, heads * size, key_heads * size, text.intermediate_size, heads)

    @classmethod
    def of_tower(cls, config: Any) -> Self:
        """Return the shape of the layers of a vision tower."""
        vision = config.vision_config
        hidden = vision.hidden_size
        heads = getattr(vision, "num_attention_heads", None) or vision.num_heads
        return cls(hidden, hidden, hidden, vision.intermediate_size, heads)

    def flops(self, num_tokens: int, num_seen: int) -> float:
        """Operations of a layer on tokens that attend to `num_seen` tokens each."""
        linear = 4 * self.query + 4 * self.key + 6 * self.inner
        return num_tokens * (self.hidden * linear + 4 * num_seen * self.query)


@torch.no_grad()
def measure_layer(shape: LayerShape, num_rows: int, length: int, dtype: torch.dtype) -> float:
    """Return operations per second of processor time of one core in a layer with random weights.

    The layer runs on `num_rows` sequences of `length` tokens: its matrix products, attention, and the
    element-wise operations between them.
    """
    hidden, size = shape.hidden, shape.query // shape.num_heads
    key_heads = max(1, shape.key // size)

    def weight(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs).mul_(inputs**-0.5).to(dtype)

    query, key, value = (weight(width, hidden) for width in (shape.query, shape.key, shape.key))
    output, down = weight(hidden, shape.query), weight(hidden, shape.inner)
    gate, up = (weight(shape.inner, hidden) for _ in range(2))
    states = torch.randn(num_rows * length, hidden).to(dtype)
    scale, mask = torch.ones(hidden).to(dtype), torch.ones(length, length, dtype=torch.bool).tril()

    def normalize(x: Tensor) -> Tensor:
        single = x.float()
        return scale * (single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)

    def split(x: Tensor, heads: int) -> Tensor:
        x = x.view(num_rows, length, heads, size).transpose(1, 2)
        # Rotary positions: two products and a sum.
        return x * 0.5 + torch.cat([x[..., size // 2 :], x[..., : size // 2]], dim=-1) * 0.5

    def run() -> Tensor:
        x = normalize(states)
        heads = split(x @ query.T, shape.num_heads)
        keys, values = (
            split(x @ w.T, key_heads).repeat_interleave(shape.num_heads // key_heads, dim=1)
            for w in (key, value)
        )
        parts = [
            scaled_dot_product_attention(heads[row, None], keys[row, None], values[row, None], mask)
            for row in range(num_rows)
        ]
        attended = torch.cat(parts).transpose(1, 2).reshape(num_rows * length, shape.query)
        y = states + attended @ output.T
        x = normalize(y)
        return y + (silu(x @ gate.T) * (x @ up.T)) @ down.T

    return shape.flops(num_rows * length, length) / _time(run)


def _time(run: Callable[[], Tensor]) -> float:
    """Return the median seconds of processor time of a call on one thread, also on a busy machine."""
    timer = Timer("run()", globals={"run": run}, timer=time.process_time, num_threads=1)
    return float(timer.blocked_autorange(min_run_time=_MIN_SECONDS).median)


def count_cores() -> int:
    """Return the number of threads that PyTorch uses on this machine."""
    return min(torch.get_num_threads(), os.cpu_count() or 1)
