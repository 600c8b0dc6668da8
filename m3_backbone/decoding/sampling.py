"""Sampled answers: tokens drawn from the distribution of a backbone, reproducible in any batch."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """How to sample one answer: at a temperature, with a key in place of the state of a generator.

    Each token depends only on the logits, the key and its position in the answer. Neither the rest of a batch
    nor the order of the work changes it, and a draft is accepted as far as it equals the sampled answer.
    Raises ValueError for a temperature of 0 or less: greedy answers take no draw.
    """

    temperature: float
    key: tuple[str | int, ...]

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"answers are drawn at a temperature above 0, not {self.temperature}")

    def luck(self, step: int) -> float:
        """The random number, uniform in [0, 1), that decides token number `step`."""
        content = json.dumps([*self.key, step]).encode()
        # As many bits as a float holds.
        return (int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 11) / 2**53


def draw_tokens(log_probs: Tensor, temperature: Tensor, luck: Tensor) -> Tensor:
    """`[num_rows]`: tokens drawn from softmax(`log_probs` / `temperature`) by inversion.

    `log_probs` is `[num_rows, vocabulary]`; `temperature` and `luck`, uniform in [0, 1), are `[num_rows]`.
    A row's token is the first at which the cumulated probability exceeds its luck.
    """
    behind = log_probs.double() - log_probs.double().amax(-1, keepdim=True)
    cumulated = (behind / temperature[:, None]).softmax(-1).cumsum(-1)
    # The sum is 1 only up to rounding.
    wanted = luck[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0]
