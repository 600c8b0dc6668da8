"""Sampling of answer tokens at a temperature, reproducible in any batch."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """How to sample one answer: a temperature, and a key in place of a random generator's state.

    Each token depends only on the logits, the key and its position in the answer, not on the rest of the
    batch or the order of the work. A draft can therefore be verified against a sampled answer. Raises
    ValueError for a temperature of 0 or less; a greedy answer needs no `Draw`.
    """

    temperature: float
    key: tuple[str | int, ...]

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"answers are sampled at a temperature above 0, not {self.temperature}")

    def uniform(self, step: int) -> float:
        """Random number in [0, 1) that selects the token at position `step` of the answer."""
        content = json.dumps([*self.key, step]).encode()
        # A float has a mantissa of 53 bits.
        return (int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 11) / 2**53


def sample_tokens(log_probs: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """Tokens `[num_rows]` sampled from softmax(`log_probs` / `temperature`) by inversion.

    `log_probs` is `[num_rows, vocabulary]`; `temperature` and `uniform`, random numbers in [0, 1), are
    `[num_rows]`. The token of a row is the first whose cumulative probability exceeds its random number.
    """
    shifted = log_probs.double() - log_probs.double().amax(-1, keepdim=True)
    cumulative = (shifted / temperature[:, None]).softmax(-1).cumsum(-1)
    # The last value is 1 only up to rounding.
    threshold = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
