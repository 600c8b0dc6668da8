"""Agreement of AVG-LLaVA's router and ranking losses with a recording of its released code."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.parity.deviations import NUMBER, Deviation, compare_tensors, read_tensors
from m3_backbone.llava.pooling import grid_scales, pool
from predictor.networks.avg_router import NUM_WORDS, AVGRouter
from predictor.networks.base import InputShape
from predictor.objectives.likelihood import rank_by_likelihood

STATE = "router."


@torch.no_grad()
def compare_router(file: Path) -> Iterator[Deviation]:
    """Everything that a file of this layout records.

    `router.*` is a state dict; of each `case`, `tile_tokens` [num_tiles, grid * grid, hidden],
    `question_embeddings` [num_words, hidden], `question_mask` [num_words] and the resulting `logits`
    [num_scales]; and `rglf.logits`, `rglf.nll` [batch, num_scales] with `rglf.cross_entropy` and
    `rglf.rank_loss_margin1`. Raises ValueError where something of it is missing.
    """
    recorded = read_tensors(file)
    state = {name.removeprefix(STATE): x for name, x in recorded.items() if name.startswith(STATE)}
    cases = sorted({name.split(".")[0] for name in recorded if name.startswith("case")})
    if not state or not cases:
        raise ValueError(f"{file} holds no router with cases: it needs {STATE}* and case0.*")
    tokens = _take(recorded, f"{cases[0]}.tile_tokens", file)
    scales = grid_scales(round(tokens.shape[1] ** 0.5))
    router = AVGRouter(InputShape(tokens.shape[2], sum(scales), 0), len(scales), attention="crops").eval()
    try:
        router.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the router in {file} is not one of AVG-LLaVA's over scales {', '.join(map(str, scales))} and "
            f"{NUM_WORDS} words: {error}"
        ) from error
    for case in cases:
        tokens, words, mask, logits = (
            _take(recorded, f"{case}.{name}", file)
            for name in ("tile_tokens", "question_embeddings", "question_mask", "logits")
        )
        found = router.route([pool(tokens, scale) for scale in scales], words, mask)
        yield compare_tensors("router logits", case, found, logits, NUMBER)
    logits, nll = _take(recorded, "rglf.logits", file), _take(recorded, "rglf.nll", file)
    entropy = nn.functional.cross_entropy(logits, nll.argmin(dim=1))
    for name, loss in (
        ("cross_entropy", entropy),
        ("rank_loss_margin1", rank_by_likelihood(logits, nll, 1.0)),
    ):
        expected = _take(recorded, f"rglf.{name}", file)
        yield Deviation.of_number(f"loss: {name}", "rglf", float(loss), float(expected))


def _take(recorded: Mapping[str, Tensor], name: str, file: Path) -> Tensor:
    if name not in recorded:
        raise ValueError(f"{file} lacks {name}: the recording is incomplete")
    return recorded[name]
