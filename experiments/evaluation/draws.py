"""`draws.safetensors`: headline figures on every resample, so that runs can be compared pair by pair.

It lies beside `metrics.json` and holds the draws of those figures in there that `experiments.compare`
shows. A tensor is float32 `[num_resamples]` and is called what leads to its figure there, as
`predictors/NAME/mean_to_mix`; `predictors/NAME/at_budgets/score` and `.../to_mix` are `[num_resamples,
num_kept]`, at the budgets that `keep_budgets` names. nan is a resample without the figure.

Row by row, runs on the same test split with the same bootstrap seed drew the same images: what they have in
common cancels in a difference of their draws. About 1.6 MB a predictor at 10,000 resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from experiments.evaluation.figures import Comparison
from experiments.evaluation.fronts import Floats
from experiments.evaluation.keys import Bound, Key, Metric, Predictor
from experiments.evaluation.risk import CheckedGuarantee
from experiments.evaluation.statistics import Draws

DRAWS = "draws.safetensors"
# Budgets whose draws are kept, at most: enough for a band.
NUM_KEPT_BUDGETS = 13

Float32s = NDArray[np.float32]


def keep_budgets(num_budgets: int) -> NDArray[np.int64]:
    """Positions of the budgets whose draws are kept, evenly spaced, both ends among them."""
    return np.unique(np.linspace(0, num_budgets - 1, NUM_KEPT_BUDGETS).round().astype(np.int64))


# What leads to a headline metric below its predictor; at the budgets those of `keep_budgets`.
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
    "at_budgets/score": (Metric.SCORE_AT_BUDGETS, None),
    "at_budgets/to_mix": (Metric.TO_MIX, None),
}


def list_headlines(name: str, draws: Mapping[Key, Draws]) -> Iterator[tuple[str, Floats]]:
    """The headline metrics of a predictor that exist, by path below it, of all that `Bench.measure` gives."""
    for path, (metric, at) in _HEADLINES.items():
        found = draws[Key(Predictor(name), metric, at)]
        if found.drawn.ndim > 1:
            yield path, found.drawn[:, keep_budgets(found.drawn.shape[1])]
        elif found.exists:
            yield path, found.drawn


def collect_draws(
    comparison: Comparison,
    others: Sequence[Comparison] = (),
    guarantees: Sequence[CheckedGuarantee] = (),
) -> dict[str, Float32s]:
    """The content of `draws.safetensors`, of those accounts and guarantees that `metrics.json` has too."""
    found = {
        f"predictors/{name}/{figure}": drawn
        for name, figures in comparison.draws.items()
        for figure, drawn in figures.items()
    }
    for other in others:
        found |= {
            f"{other.account.key}/predictors/{name}/mean_to_mix": figures["mean_to_mix"]
            for name, figures in other.draws.items()
        }
    found |= {f"risk/predictors/{each.name}/drop": each.realized.drawn_drop for each in guarantees}
    return {name: np.ascontiguousarray(drawn, dtype=np.float32) for name, drawn in found.items()}


def write_draws(folder: Path, draws: Mapping[str, Float32s]) -> None:
    """Write them by renaming: a run whose draws are there is whole."""
    temporary = folder / f"{DRAWS}.tmp"
    temporary.write_bytes(save(dict(draws)))
    temporary.replace(folder / DRAWS)


def read_draws(folder: Path, num_resamples: int) -> dict[str, Float32s]:
    """The draws of a run; ValueError where they are not there, not whole, or not so many resamples."""
    try:
        draws = load_file(folder / DRAWS)
        if not draws or any(len(drawn) != num_resamples for drawn in draws.values()):
            raise ValueError(f"not {num_resamples} resamples")
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {DRAWS}, on which intervals over runs rest: evaluate that run again"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / DRAWS} is not whole ({error}): evaluate that run again") from error
    return draws
