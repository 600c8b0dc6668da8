"""`draws.safetensors`: headline figures on every resample, so that runs can be compared pair by pair.

It lies beside `metrics.json` and holds the resamples of those figures in there that `experiments.compare`
shows. A tensor is float32 `[num_resamples]`, and its name is the path to its figure in `metrics.json`, as
`predictors/NAME/mean_to_mix` (`name_tensor`). `predictors/NAME/at_budgets/score` and `.../to_mix` hold all
budgets, `[num_kept, num_budgets]`, on the first `MOST_BAND_RESAMPLES` resamples only: bands in a drawing need
no more, and p-values and intervals of headline figures rest on all. nan is a resample without the figure.

Row by row, runs on the same test split with the same bootstrap seed drew the same images: what they have in
common cancels in a difference of their draws. About 1.3 MB a predictor with 10,000 resamples and 49 budgets.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from experiments.evaluation.figures import Comparison
from experiments.evaluation.fronts import Floats
from experiments.evaluation.keys import Bound, Key, Metric, Predictor
from experiments.evaluation.risk import CheckedGuarantee
from experiments.evaluation.statistics import Draws
from m3_backbone.shards import write_atomically

DRAWS = "draws.safetensors"
# Resamples of the scores at the budgets that are kept, at most: enough for a band.
MOST_BAND_RESAMPLES = 2000
AT_BUDGETS = "at_budgets"

Float32s = NDArray[np.float32]


def name_tensor(*path: str) -> str:
    """The name of the tensor that holds the figure at a path in `metrics.json`.

    Each step is percent-encoded, so that no two paths share a name, whatever a predictor is called.
    """
    return "/".join(quote(step, safe="") for step in path)


# What leads to a headline metric below its predictor.
_HEADLINES = {
    "mean_to_mix": (Metric.MEAN_DIFFERENCE, Bound.MIX),
    "mean_gap_share": (Metric.MEAN_GAP_SHARE, None),
    "merits/average_quality": (Metric.AVERAGE_QUALITY, None),
    "merits/average_gap_recovered": (Metric.AVERAGE_GAP_RECOVERED, None),
    "merits/hypervolume": (Metric.HYPERVOLUME, None),
    "default/cost": (Metric.DEFAULT_COST, None),
    "default/score": (Metric.DEFAULT_SCORE, None),
    "default/to_best_fixed": (Metric.TO_BEST_FIXED, None),
    "default/smallest_right": (Metric.SMALLEST_RIGHT, None),
    "default/too_coarse": (Metric.TOO_COARSE, None),
    "default/too_fine": (Metric.TOO_FINE, None),
    f"{AT_BUDGETS}/score": (Metric.SCORE_AT_BUDGETS, None),
    f"{AT_BUDGETS}/to_mix": (Metric.TO_MIX, None),
}


def list_headlines(name: str, draws: Mapping[Key, Draws]) -> Iterator[tuple[str, Floats | Float32s]]:
    """The headline metrics of a predictor that exist, by path below it, of all that `Bench.measure` gives."""
    for path, (metric, at) in _HEADLINES.items():
        found = draws[Key(Predictor(name), metric, at)]
        if found.drawn.ndim > 1:
            # A copy: a view would keep all resamples in memory.
            yield path, found.drawn[:MOST_BAND_RESAMPLES].astype(np.float32)
        elif found.exists:
            yield path, found.drawn


def collect_draws(
    comparison: Comparison,
    others: Sequence[Comparison] = (),
    guarantees: Sequence[CheckedGuarantee] = (),
) -> dict[str, Float32s]:
    """The content of `draws.safetensors`, of those accounts and guarantees that `metrics.json` has too."""
    by_path: dict[tuple[str, ...], NDArray[np.floating]] = {
        ("predictors", name, *figure.split("/")): drawn
        for name, figures in comparison.draws.items()
        for figure, drawn in figures.items()
    }
    for other in others:
        by_path |= {
            (other.account.key, "predictors", name, "mean_to_mix"): figures["mean_to_mix"]
            for name, figures in other.draws.items()
        }
    by_path |= {("risk", "predictors", each.name, "drop"): each.realized.drawn_drop for each in guarantees}
    return {
        name_tensor(*path): np.ascontiguousarray(drawn, dtype=np.float32) for path, drawn in by_path.items()
    }


def write_draws(folder: Path, draws: Mapping[str, Float32s]) -> None:
    """Write them by renaming: a run whose draws are there is whole."""
    content = save(dict(draws))
    write_atomically(folder / DRAWS, lambda temporary: temporary.write_bytes(content))


class StoredDraws(Mapping[str, Float32s]):
    """The tensors of a file, each read when it is asked for: many runs need not fit into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="numpy") as file:
            self.num_rows = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Float32s:
        if name not in self.num_rows:
            raise KeyError(name)
        with safe_open(self._path, framework="numpy") as file:
            tensor: Float32s = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.num_rows)

    def __len__(self) -> int:
        return len(self.num_rows)


def read_draws(folder: Path, num_resamples: int) -> StoredDraws:
    """The draws of a run; ValueError where they are not there, not whole, or not so many resamples."""
    try:
        draws = StoredDraws(folder / DRAWS)
        expected = {name: _count_kept(name, num_resamples) for name in draws}
        if not draws or draws.num_rows != expected:
            raise ValueError(f"not {num_resamples} resamples")
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {DRAWS}, on which intervals over runs rest: evaluate that run again"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / DRAWS} is not whole ({error}): evaluate that run again") from error
    return draws


def _count_kept(tensor: str, num_resamples: int) -> int:
    """Number of resamples that a tensor holds. No step of its name holds a "/": the last but one is whole."""
    at_budgets = tensor.split("/")[-2:-1] == [AT_BUDGETS]
    return min(num_resamples, MOST_BAND_RESAMPLES) if at_budgets else num_resamples
