"""Curve of the share of the gap over the number of labelled images: power law and intervals over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit
from scipy.stats import t

from experiments.evaluation.fronts import Floats
from experiments.evaluation.statistics import Estimate
from experiments.training.label_curve import Measurement

# A power law has three parameters, so that four sizes are the fewest that can contradict it.
FEWEST_SIZES = 4
EXPONENTS = (0.05, 3.0)
# Half-width of the interval of the limit beyond which the limit counts as unknown.
_WIDEST_LIMIT = 0.1


@dataclass(frozen=True)
class PowerLaw:
    """The curve `share(n) = limit - loss * n ** -exponent` of n images."""

    limit: float
    loss: float
    exponent: float

    def at(self, num_images: ArrayLike) -> Floats:
        """Return the share at numbers of images."""
        return self.limit - self.loss * np.asarray(num_images, dtype=np.float64) ** -self.exponent

    def find_size(self, share: float, largest: int) -> float:
        """Return the least number of images with this share; nan if it is not reached by `largest`."""
        if self.at(largest) < share or self.loss <= 0:
            return float("nan")
        return float((self.loss / max(self.limit - share, 1e-12)) ** (1 / self.exponent))


def fit_power_law(num_images: ArrayLike, share: ArrayLike) -> PowerLaw:
    """Fit a power law by least squares. The limit is at most 1, the exponent in `EXPONENTS`."""
    sizes, shares = np.asarray(num_images, dtype=np.float64), np.asarray(share, dtype=np.float64)
    smallest = sizes.min()

    def predict(size: Floats, limit: float, loss: float, exponent: float) -> Floats:
        # Relative to the smallest size, parameters are of the order of one.
        return limit - loss * (size / smallest) ** -exponent

    start = (shares.max(), max(np.ptp(shares), 1e-3), 0.5)
    bounds = ([-1.0, 0.0, EXPONENTS[0]], [1.0, 5.0, EXPONENTS[1]])
    limit, loss, exponent = curve_fit(
        predict, sizes, shares, p0=np.clip(start, *bounds), bounds=bounds, max_nfev=10_000
    )[0]
    return PowerLaw(float(limit), float(loss * smallest**exponent), float(exponent))


def estimate_over_seeds(values: ArrayLike, confidence: float) -> Estimate:
    """Return the mean over seeds, the first axis, with Student's t interval; without one for one seed."""
    array = np.asarray(values, dtype=np.float64)
    mean, num_seeds = array.mean(axis=0), len(array)
    if num_seeds < 2:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = t.ppf((1 + confidence) / 2, num_seeds - 1) * array.std(axis=0, ddof=1) / np.sqrt(num_seeds)
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True, eq=False)
class FittedCurve:
    """A power law fitted to all seeds, with the limits and curves of the seeds fitted one by one.

    `limit` and `curve` (at the measured sizes) are means over these fits with intervals over seeds.
    `residual` is the largest difference of a mean share to the law, at `residual_size` images. `problems`
    says where the fit is poor.
    """

    law: PowerLaw
    limit: Estimate
    curve: Estimate
    residual: float
    residual_size: int
    problems: tuple[str, ...]


def fit_curve(sizes: Sequence[int], share: ArrayLike, confidence: float) -> FittedCurve | None:
    """Fit shares `[num_seeds, num_sizes]` at numbers of images; None for fewer than `FEWEST_SIZES` sizes."""
    shares = np.asarray(share, dtype=np.float64)
    if len(sizes) < FEWEST_SIZES:
        return None
    law = fit_power_law(np.tile(sizes, len(shares)), shares.ravel())
    laws = [fit_power_law(sizes, of_seed) for of_seed in shares]
    limit = estimate_over_seeds([of_seed.limit for of_seed in laws], confidence)
    differences = shares.mean(axis=0) - law.at(sizes)
    worst = int(np.abs(differences).argmax())
    problems = []
    if not EXPONENTS[0] * 1.01 < law.exponent < EXPONENTS[1] * 0.99:
        problems.append(f"the exponent is at its bound of {law.exponent:.2f}, so the limit is unknown")
    elif law.limit > 0.99 or (limit.high - limit.low) / 2 > _WIDEST_LIMIT:
        problems.append("the limit is not determined")
    if len(shares) > 1:
        error = shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
        excess = np.abs(differences) - np.maximum(2 * error, 0.01)
        # Means of few images are noisy, so that the largest difference may be within their error.
        off = int(excess.argmax())
        if excess[off] > 0:
            problems.append(f"off by {100 * differences[off]:+.1f} points at {sizes[off]:,} images")
    return FittedCurve(
        law=law,
        limit=limit,
        curve=estimate_over_seeds([of_seed.at(sizes) for of_seed in laws], confidence),
        residual=float(differences[worst]),
        residual_size=int(sizes[worst]),
        problems=tuple(problems),
    )


def interpolate_share(num_answers: ArrayLike, share: ArrayLike, at: float) -> float:
    """Return the share at a number of answers, linear in its logarithm; nan outside the measured range."""
    numbers, shares = np.asarray(num_answers, dtype=np.float64), np.asarray(share, dtype=np.float64)
    order = np.argsort(numbers)
    return float(
        np.interp(np.log(at), np.log(numbers[order]), shares[order], left=float("nan"), right=float("nan"))
    )


class Series(NamedTuple):
    """What the points of one curve have in common."""

    predictor: str
    questions_per_image: int | None
    soft: bool

    @property
    def label(self) -> str:
        """Name in legends and tables."""
        number = self.questions_per_image
        questions = "" if number is None else f", {number} question{'s' * (number > 1)} an image"
        return f"{self.predictor}{questions}{', soft targets' * self.soft}"


@dataclass(frozen=True, eq=False)
class SeriesCurve:
    """One curve over numbers of images: shares `[num_seeds, num_sizes]` of the seeds that have all sizes.

    `num_samples` and `num_answers` `[num_seeds, num_sizes]` are those of the trainings. `share` is the mean
    over seeds, with interval; `fit` is None for too few sizes.
    """

    series: Series
    sizes: list[int]
    seeds: list[int]
    shares: np.ndarray
    num_samples: np.ndarray
    num_answers: np.ndarray
    share: Estimate
    fit: FittedCurve | None


@dataclass(frozen=True, eq=False)
class SoftDifference:
    """Share with soft targets minus that with greedy outcomes, over the same seeds.

    `equal_images` compares the same questions, which as soft targets cost several answers each.
    `equal_answers` compares the same number of answers, with greedy outcomes of more images, and
    `more_questions` the same number with greedy outcomes of all questions of each image; both are
    interpolated on the greedy curve of the seed, and None where it does not have this number of answers.
    """

    series: Series
    num_images: int
    num_answers: float
    equal_images: Estimate | None
    equal_answers: Estimate | None
    more_questions: Estimate | None


@dataclass(frozen=True, eq=False)
class LabelCurve:
    """All curves of one label folder."""

    task: str
    backbone: str
    confidence: float
    num_validation_images: int
    measurements: Sequence[Measurement]
    curves: Sequence[SeriesCurve]
    soft: Sequence[SoftDifference]


def collect(
    measurements: Sequence[Measurement],
    *,
    task: str,
    backbone: str,
    confidence: float,
    num_validation_images: int,
) -> LabelCurve:
    """Gather measurements into curves. Raises ValueError if there are none."""
    if not measurements:
        raise ValueError("no training succeeded, so that there is no curve: see the messages above")
    groups: dict[Series, list[Measurement]] = {}
    for measurement in measurements:
        series = Series(measurement.predictor, measurement.questions_per_image, measurement.soft)
        groups.setdefault(series, []).append(measurement)
    curves = {series: _make_curve(series, group, confidence) for series, group in groups.items()}
    return LabelCurve(
        task=task,
        backbone=backbone,
        confidence=confidence,
        num_validation_images=num_validation_images,
        measurements=measurements,
        curves=[curve for curve in curves.values() if curve is not None],
        soft=_compare_soft({series: curve for series, curve in curves.items() if curve}, confidence),
    )


def _make_curve(series: Series, group: Sequence[Measurement], confidence: float) -> SeriesCurve | None:
    """Return the curve of the seeds that have all sizes; None if a failure left no such seed."""
    sizes = sorted({measurement.num_images for measurement in group})
    by_key = {(measurement.seed, measurement.num_images): measurement for measurement in group}
    seeds = sorted({measurement.seed for measurement in group})
    seeds = [seed for seed in seeds if all((seed, size) in by_key for size in sizes)]
    if not seeds:
        return None
    rows = [[by_key[seed, size] for size in sizes] for seed in seeds]
    shares, num_samples, num_answers = (
        np.array([[getattr(measurement, name) for measurement in row] for row in rows], dtype=np.float64)
        for name in ("share", "num_samples", "num_answers")
    )
    return SeriesCurve(
        series=series,
        sizes=sizes,
        seeds=seeds,
        shares=shares,
        num_samples=num_samples,
        num_answers=num_answers,
        share=estimate_over_seeds(shares, confidence),
        fit=fit_curve(sizes, shares, confidence),
    )


def _compare_soft(curves: dict[Series, SeriesCurve], confidence: float) -> list[SoftDifference]:
    differences = []
    for series, curve in curves.items():
        greedy = curves.get(series._replace(soft=False))
        all_questions = curves.get(series._replace(soft=False, questions_per_image=None))
        if not series.soft or greedy is None or greedy.seeds != curve.seeds:
            continue
        for column, size in enumerate(curve.sizes):
            share, answers = curve.shares[:, column], curve.num_answers[:, column]
            same = share - greedy.shares[:, greedy.sizes.index(size)] if size in greedy.sizes else None
            differences.append(
                SoftDifference(
                    series=series,
                    num_images=size,
                    num_answers=float(answers.mean()),
                    equal_images=None if same is None else estimate_over_seeds(same, confidence),
                    equal_answers=_subtract(share, answers, greedy, confidence),
                    more_questions=None
                    if all_questions in (None, greedy) or all_questions.seeds != curve.seeds
                    else _subtract(share, answers, all_questions, confidence),
                )
            )
    return differences


def _subtract(
    share: np.ndarray, num_answers: np.ndarray, greedy: SeriesCurve, confidence: float
) -> Estimate | None:
    """Return the difference to a greedy curve at equal numbers of answers; None outside its range."""
    at_equal_cost = [
        interpolate_share(greedy.num_answers[row], greedy.shares[row], num_answers[row])
        for row in range(len(share))
    ]
    difference = share - np.array(at_equal_cost)
    return estimate_over_seeds(difference, confidence) if np.isfinite(difference).all() else None
