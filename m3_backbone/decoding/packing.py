"""Attention over packed sequences: everything but attention runs on the tokens of all images as one row.

Nothing is padded, and what precedes the questions on an image runs once for all of them. transformers hands
queries, keys and values of every layer to a `Layout`, which knows who sees whom.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

_NAME = "m3_packed"
Cache = list[tuple[Tensor, Tensor]]


class Layout(Protocol):
    """Who sees whom in one forward pass; keeps the keys and values of every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query `[batch, heads, length, size]`, key and value with as many heads or fewer: as the query."""
        ...


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    layout: Layout = kwargs["layout"]
    return layout.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)


@contextmanager
def packed(language_model: Any) -> Iterator[None]:
    """Let a decoder of transformers take `layout=` instead of a mask and a cache."""
    config = language_model.config
    kernel = config._attn_implementation
    # Attention under a name that has no mask of its own gets none: the layout is the mask.
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = kernel


@dataclass(frozen=True, eq=False)
class Segment:
    """The tokens of one image: `num_prefix` plainly causal ones, then those of its questions.

    `sees` `[length - num_prefix, length - num_prefix]` says which of the latter see which; None: as causal
    as the prefix.
    """

    length: int
    num_prefix: int
    sees: Tensor | None = None


class PackedSegments(Layout):
    """Segments one after the other in a batch of one; all of them see `common`, keys and values per layer."""

    def __init__(self, segments: Sequence[Segment], common: Cache | None = None) -> None:
        self.segments = segments
        self.common = common or []
        self.num_common = self.common[0][0].shape[-2] if self.common else 0
        self.cache: Cache = []
        self._masks = [self._mask(segment) for segment in segments]
        self._causal: dict[tuple[int, torch.device], Tensor] = {}

    def _mask(self, segment: Segment) -> Tensor | None:
        """What the questions of a segment see of all that it sees."""
        if segment.sees is None:
            return None
        return pad(segment.sees, (self.num_common + segment.num_prefix, 0), value=True)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        assert layer == len(self.cache)
        self.cache.append((key, value))
        out = torch.empty_like(query)
        start = 0
        for segment, mask in zip(self.segments, self._masks, strict=True):
            end = start + segment.length
            k, v = self._with_common(layer, key[..., start:end, :], value[..., start:end, :])
            middle = end if mask is None else start + segment.num_prefix
            if middle > start:
                seen = self.num_common + middle - start
                out[..., start:middle, :] = _attend(
                    query[..., start:middle, :],
                    k[..., :seen, :],
                    v[..., :seen, :],
                    scaling,
                    self._causal_mask(middle - start, query.device),
                )
            if mask is not None:
                out[..., middle:end, :] = _attend(
                    query[..., middle:end, :], k, v, scaling, mask.to(query.device)
                )
            start = end
        return out

    def _causal_mask(self, length: int, device: torch.device) -> Tensor | None:
        """What `length` tokens see of what is common and of themselves; None: PyTorch's own flag will do."""
        if not self.num_common:
            return None
        if (length, device) not in self._causal:
            seen = torch.ones(length, self.num_common + length, dtype=torch.bool, device=device)
            self._causal[length, device] = seen.tril(self.num_common)
        return self._causal[length, device]

    def take(self, places: Sequence[Sequence[int]], room: int) -> "GrowingRows":
        """Rows that go on, each from what is common and the tokens at its `places` in the pack."""
        lengths = [self.num_common + len(row) for row in places]
        longest = max(lengths)
        index = torch.zeros(len(places), longest, dtype=torch.long)
        for i, row in enumerate(places):
            index[i, : lengths[i]] = torch.tensor(
                [*range(self.num_common), *(self.num_common + place for place in row)]
            )
        cache = []
        for layer, pair in enumerate(self.cache):
            keys, values = self._with_common(layer, *pair)
            rows = index.to(keys.device)
            keys, values = (pad(x[0][:, rows].transpose(0, 1), (0, 0, 0, room)) for x in (keys, values))
            cache.append((keys, values))
        return GrowingRows(cache, torch.tensor(lengths))

    def _with_common(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if not self.num_common:
            return key, value
        common_key, common_value = self.common[layer]
        return torch.cat([common_key, key], dim=-2), torch.cat([common_value, value], dim=-2)


class GrowingRows(Layout):
    """A batch of sequences that grow by one token a pass; `lengths` `[batch]` counts what each has."""

    def __init__(self, cache: Cache, lengths: Tensor) -> None:
        self.cache = cache
        self.lengths = lengths
        self._step: tuple[Tensor, ...] = ()

    @property
    def room(self) -> int:
        """How many more tokens fit."""
        return self.cache[0][0].shape[-2] - int(self.lengths.max())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        keys, values = self.cache[layer]
        if layer == 0:
            # The same in every layer.
            seen = torch.arange(int(self.lengths.max()) + 1) <= self.lengths[:, None]
            self._step = tuple(x.to(keys.device) for x in (torch.arange(len(keys)), self.lengths, seen))
        rows, lengths, mask = (x.to(keys.device) for x in self._step)
        keys[rows, :, lengths] = key[:, :, 0]
        values[rows, :, lengths] = value[:, :, 0]
        num_seen = mask.shape[1]
        return _attend(query, keys[:, :, :num_seen], values[:, :, :num_seen], scaling, mask[:, None, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        index = torch.tensor(rows)
        self.lengths = self.lengths[index]
        self.cache = [(k[index.to(k.device)], v[index.to(v.device)]) for k, v in self.cache]

    def grow(self, room: int) -> None:
        """Make room for more tokens."""
        self.cache = [(pad(k, (0, 0, 0, room)), pad(v, (0, 0, 0, room))) for k, v in self.cache]


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """Attention under a mask; without one, causal."""
    if (groups := query.shape[1] // key.shape[1]) > 1:
        # Under a mask PyTorch's fast kernels on a GPU want as many keys as queries.
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
    )
