"""Comparison of the query transformer with visual tokens that MQT-LLaVA's code computed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.parity.deviations import Deviation, compare_tensors, read_tensors
from m3_backbone.llava.queries import NUM_HEADS, QueryTransformer

STATE = "query_abstractor."
# Allowed deviation relative to the largest recorded number. At the size of the published checkpoint, float32
# rounding of the authors' code itself is 1.3e-6.
FLOAT32 = 1e-5
_TOKENS = re.compile(r"tokens\.([1-9]\d{0,8})")


@torch.no_grad()
def compare_abstractor(file: Path, num_heads: int | None = None) -> Iterator[Deviation]:
    """Yield the deviation of the visual tokens for each recorded number of queries, computed in float32.

    The file has `features` `[batch, grid * grid, width]`, the weights `query_abstractor.*` and, for numbers
    M of queries, `tokens.M` `[batch, M, hidden]`. Sizes are those of the tensors. The number of heads is
    `num_heads`, or `num_heads` in the metadata of the file, or 16 as in the authors' code.

    Raises ValueError that names the file if it is damaged or of another kind.
    """
    recorded = read_tensors(file)
    counts = sorted(int(match[1]) for match in map(_TOKENS.fullmatch, recorded) if match)
    state = {name.removeprefix(STATE): x.float() for name, x in recorded.items() if name.startswith(STATE)}
    if not state or not counts or "features" not in recorded:
        raise ValueError(
            f"{file} has no query transformer with tokens: give a file with features, {STATE}*, tokens.M"
        )
    features = recorded["features"].float()
    try:
        model = _build(state, num_heads or _read_num_heads(file) or NUM_HEADS)
        _check_shapes(features, {count: recorded[f"tokens.{count}"] for count in counts}, model)
        tokens = model(features)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the tensors in {file} are not those of MQT-LLaVA's query transformer: {reason}"
        ) from error
    for count in counts:
        expected = recorded[f"tokens.{count}"].float()
        largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        yield compare_tensors(
            "query tokens", f"tokens.{count}", tokens[:, :count] / largest, expected / largest, FLOAT32
        )


def _read_num_heads(file: Path) -> int | None:
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get("num_heads")
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ValueError(f"num_heads in the metadata is {text!r} and not a positive whole number")
    return int(text)


def _build(state: Mapping[str, Tensor], num_heads: int) -> QueryTransformer:
    """Return the query transformer with these weights. Raises ValueError or RuntimeError for others."""
    for name in ("query", "proj"):
        if name not in state or state[name].ndim != 2:
            raise ValueError(f"{STATE}{name} is missing or no matrix")
    (num_queries, width), hidden = state["query"].shape, state["proj"].shape[1]
    if 0 in (num_queries, width, hidden):
        raise ValueError("the weights are empty")
    # On the meta device, so that a file with wrong sizes takes no memory.
    with torch.device("meta"):
        model = QueryTransformer(width, hidden, num_queries, num_heads)
    model.load_state_dict(dict(state), assign=True)
    return model.eval()


def _check_shapes(features: Tensor, tokens: Mapping[int, Tensor], model: QueryTransformer) -> None:
    num_queries, hidden = len(model.query), model.proj.shape[1]
    if features.ndim != 3 or features.shape[2] != model.query.shape[1] or not features.numel():
        raise ValueError(
            f"features have shape {list(features.shape)}: give [batch, patches, {model.query.shape[1]}]"
        )
    for count, recorded in tokens.items():
        if count > num_queries:
            raise ValueError(f"tokens.{count} are more than the {num_queries} queries")
        if (shape := [len(features), count, hidden]) != list(recorded.shape):
            raise ValueError(f"tokens.{count} have shape {list(recorded.shape)} and should have {shape}")
