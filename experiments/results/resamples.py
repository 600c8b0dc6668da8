"""`draws.safetensors`: headline figures on every resample, so that runs can be compared pair by pair.

It lies beside `metrics.json` and holds the resamples of the metrics that `experiments.compare` shows. A
tensor is float32 `[num_resamples]`, and its name is the path to its metric in `metrics.json`, as
`predictors/NAME/mean_to_mix` (`name_tensor`). `predictors/NAME/at_budgets/score` and `.../to_mix` hold all
budgets, `[num_kept, num_budgets]`, on the first `MOST_BAND_RESAMPLES` resamples only, which is enough for the
bands of a plot; p-values and intervals of headline metrics use all resamples. nan: the metric does not exist
on that resample. The metadata hold a digest of all tensors.

Row by row, runs on the same test split with the same bootstrap seed drew the same images: what they have in
common cancels in a difference of their draws. About 1.3 MB a predictor with 10,000 resamples and 49 budgets.
"""

import hashlib
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
from m3_backbone.outcomes.manifest import DIGEST
from m3_backbone.outcomes.shards import write_bytes

DRAWS = "draws.safetensors"
# Largest number of resamples that is stored of the scores at the budgets: enough for a band.
MOST_BAND_RESAMPLES = 2000
AT_BUDGETS = "at_budgets"

Float32s = NDArray[np.float32]


def name_tensor(*path: str) -> str:
    """The name of the tensor that holds the metric at a path in `metrics.json`.

    Each step is percent-encoded, so that distinct paths have distinct names.
    """
    return "/".join(quote(step, safe="", errors="surrogatepass") for step in path)


# Headline metrics by their path below the predictor.
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
    """Existing headline metrics of a predictor, by path below it, from the result of `Bench.measure`."""
    for path, (metric, at) in _HEADLINES.items():
        found = draws[Key(Predictor(name), metric, at)]
        if found.drawn.ndim > 1:
            # Copied, as a view would keep all resamples in memory.
            yield path, found.drawn[:MOST_BAND_RESAMPLES].astype(np.float32)
        elif found.exists:
            yield path, found.drawn


def collect_draws(
    comparison: Comparison,
    others: Sequence[Comparison] = (),
    guarantees: Sequence[CheckedGuarantee] = (),
) -> dict[str, Float32s]:
    """The content of `draws.safetensors`, for the accounts and guarantees that are in `metrics.json`."""
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
    """Write them atomically: a run whose draws are there is whole."""
    write_bytes(folder / DRAWS, save(dict(draws), metadata={DIGEST: _digest(draws)}))


class StoredDraws(Mapping[str, Float32s]):
    """The tensors of a file, each read on access, so that many runs need not fit into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="numpy") as file:
            self.num_rows = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
            self._digest = (file.metadata() or {}).get(DIGEST)

    def check(self) -> None:
        """Raise ValueError where tensors are not those that the file was written with."""
        if self._digest is not None and self._digest != _digest(self):
            raise ValueError("its content does not have the digest that it names")

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
        draws.check()
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {DRAWS}, on which intervals over runs rest: evaluate that run again"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / DRAWS} is not whole ({error}): evaluate that run again") from error
    return draws


def _digest(draws: Mapping[str, Float32s]) -> str:
    digest = hashlib.sha256()
    for name in sorted(draws):
        drawn = np.ascontiguousarray(draws[name])
        digest.update(f"{name} {drawn.dtype} {drawn.shape}\n".encode())
        digest.update(drawn.tobytes())
    return digest.hexdigest()[:16]


def _count_kept(tensor: str, num_resamples: int) -> int:
    """Number of resamples that a tensor should hold; steps of its name contain no "/" (`name_tensor`)."""
    match tensor.split("/"):
        case ["predictors", _, step, _] if step == AT_BUDGETS:
            return min(num_resamples, MOST_BAND_RESAMPLES)
    return num_resamples
