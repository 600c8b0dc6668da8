"""Attention over packed sequences.

All layers except attention run on the tokens of all images as one sequence, without padding. The prefix that
questions about one image share runs once. Attention pattern, keys and values of a forward pass are held by a
`Layout`, an argument of the pass, so that passes on one decoder may interleave.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

_NAME = "m3_packed"
Cache = list[tuple[Tensor, Tensor]]


class Layout(Protocol):
    """Attention pattern of one forward pass. It keeps the keys and values of every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention output, in the shape of `query`.

        `query` is `[batch, heads, length, size]`; `key` and `value` have as many heads or fewer.
        """
        ...


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    layout: Layout,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    return layout.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


# No mask function is registered, so transformers makes no mask: the layout determines the attention pattern.
AttentionInterface.register(_NAME, _attention)


def view_packed(module: nn.Module, config: Any = None) -> Any:
    """Return a view of a transformers decoder that takes `layout=` in place of a mask and a cache.

    The view shares weights and hooks with the decoder, which is not changed: modules with children are copied
    and given their own configuration; parameters and leaf modules are shared.
    """
    if config is None:
        config = copy.copy(module.config)
        config._attn_implementation = _NAME
    children = {name: child and view_packed(child, config) for name, child in module.named_children()}
    if not children:
        return module
    view = copy.copy(module)
    view._modules = dict(module._modules) | children
    if "config" in vars(module):
        view.config = config
    if "_old_forward" in vars(module):  # a hook of accelerate, which holds methods of the module itself
        view._old_forward = vars(module)["_old_forward"].__func__.__get__(view)
        view.forward = partial(vars(module)["forward"].func, view)
    return view


@dataclass(frozen=True, eq=False)
class Segment:
    """The tokens of one image: `num_prefix` tokens with causal attention, then the tokens of its questions.

    `mask` `[length - num_prefix, length - num_prefix]` is True where a token of the questions (row) attends
    to another (column); None if attention among the questions is causal too.
    """

    length: int
    num_prefix: int
    mask: Tensor | None = None


class PackedSegments(Layout):
    """Segments packed into one sequence. Every token attends to `common`, the keys and values per layer."""

    def __init__(self, segments: Sequence[Segment], common: Cache | None = None) -> None:
        self.segments = segments
        self.common = common or []
        self.num_common = self.common[0][0].shape[-2] if self.common else 0
        self.cache: Cache = []
        self._masks = [self._mask(segment) for segment in segments]
        self._causal: dict[tuple[int, torch.device], Tensor] = {}

    def _mask(self, segment: Segment) -> Tensor | None:
        """Attention mask of a segment's questions over common tokens, prefix and questions."""
        if segment.mask is None:
            return None
        return pad(segment.mask, (self.num_common + segment.num_prefix, 0), value=True)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        assert layer == len(self.cache)
        self.cache.append((key, value))
        out = torch.empty_like(query)
        start = 0
        for segment, mask in zip(self.segments, self._masks, strict=True):
            end = start + segment.length
            keys, values = self._with_common(layer, key[..., start:end, :], value[..., start:end, :])
            middle = end if mask is None else start + segment.num_prefix
            if middle > start:
                num_seen = self.num_common + middle - start
                out[..., start:middle, :] = _attend(
                    query[..., start:middle, :],
                    keys[..., :num_seen, :],
                    values[..., :num_seen, :],
                    scaling,
                    self._causal_mask(middle - start, query.device),
                )
            if mask is not None:
                out[..., middle:end, :] = _attend(
                    query[..., middle:end, :], keys, values, scaling, mask.to(query.device)
                )
            start = end
        return out

    def _causal_mask(self, length: int, device: torch.device) -> Tensor | None:
        """Mask of `length` causal tokens over common tokens and themselves; None without common tokens."""
        if not self.num_common:
            return None
        if (length, device) not in self._causal:
            seen = torch.ones(length, self.num_common + length, dtype=torch.bool, device=device)
            self._causal[length, device] = seen.tril(self.num_common)
        return self._causal[length, device]

    def take(self, places: Sequence[Sequence[int]], room: int) -> "GrowingRows":
        """Return a batch of sequences to decode further: the common tokens, then the tokens at `places[i]`.

        `room` is the number of tokens by which each sequence can grow.
        """
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
    """A batch of sequences that grow by one token per pass; `lengths` `[batch]` count their tokens."""

    def __init__(self, cache: Cache, lengths: Tensor) -> None:
        self.cache = cache
        self.lengths = lengths
        self._step: tuple[Tensor, ...] = ()

    @property
    def room(self) -> int:
        """Number of tokens that still fit."""
        return self.cache[0][0].shape[-2] - int(self.lengths.max())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        keys, values = self.cache[layer]
        if layer == 0:
            # Indices and mask are the same in every layer.
            seen = torch.arange(int(self.lengths.max()) + 1) <= self.lengths[:, None]
            self._step = tuple(x.to(keys.device) for x in (torch.arange(len(keys)), self.lengths, seen))
        rows, lengths, mask = (x.to(keys.device) for x in self._step)
        keys[rows, :, lengths] = key[:, :, 0]
        values[rows, :, lengths] = value[:, :, 0]
        num_seen = mask.shape[1]
        return _attend(query, keys[:, :, :num_seen], values[:, :, :num_seen], scaling, mask[:, None, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only the given rows of the batch."""
        index = torch.tensor(rows)
        self.lengths = self.lengths[index]
        self.cache = [(key[index.to(key.device)], value[index.to(value.device)]) for key, value in self.cache]

    def grow(self, room: int) -> None:
        """Make room for `room` more tokens."""
        self.cache = [(pad(key, (0, 0, 0, room)), pad(value, (0, 0, 0, room))) for key, value in self.cache]


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """Attention output under a mask, or causal attention if the mask is None."""
    if (groups := query.shape[1] // key.shape[1]) > 1:
        # With a mask, PyTorch's fast GPU kernels need as many key heads as query heads.
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
    )
