"""A promise about the score: the cheapest price that loses at most `alpha`, except with chance `delta`.

The loss is the **drop**, the finest scale's score less that of the chosen scale, in [-1, 1]; what is bounded
is its mean over questions. Images are the independent unit: of an image with `m` questions of drops `d`,

    x = sum(alpha - d) / most        most: the most questions that any image has

lies in [alpha - 1, alpha + 1], and E[x] > 0 is exactly that the mean drop over questions is below `alpha`,
however many questions an image has and however they depend on each other.

A price is certified where E[x] <= 0 is rejected at level `delta` (`evaluation.betting`). Prices are tested
from safe to risky and testing stops at the first that fails (fixed-sequence testing; Bauer, Statistics in
Medicine 1991), so no correction for their number is due. Their grid is fixed below: no sample has a say.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.betting import certify, find_num_needed
from experiments.evaluation.fronts import Floats
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Estimate, ImageMeans, number_images, resample
from m3_backbone.outcomes import OutcomeTable
from predictor.base import ScalePredictor
from predictor.policy import choose, choose_at_prices
from predictor.splitting import halve

# Per `find_nominal_unit`: from "whatever is likeliest to be right" to "as good as coarsest".
PRICES: Floats = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 81)])
_MOST_VALUES = 2**27  # bytes that are held at once: bounds the memory, changes nothing else


@dataclass(frozen=True)
class Guarantee:
    """What calibration allows to promise: with chance 1 - `delta` the mean drop is at most `alpha`.

    `price` is per `unit` visual tokens (`predictor.policy`). It is None where no price could be certified
    from `num_images`; the finest scale is then all that keeps the promise. `num_needed` images would be
    expected to certify the safest price, None where no number would, as its drop is no smaller than `alpha`,
    or where it would take more than 64 times as many.
    `cost` (visual tokens) and `drop` are means on the calibration samples at that price, or at the safest.
    """

    alpha: float
    delta: float
    price: float | None
    unit: float
    num_images: int
    num_needed: int | None
    cost: float
    drop: float

    @property
    def is_feasible(self) -> bool:
        return self.price is not None

    def price_per(self, unit: float) -> float | None:
        """The same price, per another unit of cost."""
        return None if self.price is None else self.price * unit / self.unit


@dataclass(frozen=True, eq=False)
class Realised:
    """What became of a promise on the test samples: mean visual tokens and drop, with intervals.

    `drawn_drop` `[num_resamples]` is the drop on every resample.
    """

    cost: Estimate
    drop: Estimate
    drawn_drop: Floats


def find_nominal_unit(scales: tuple[int, ...]) -> float:
    """The finest scale's own number of tokens: a unit that does not depend on samples."""
    return float(scales[-1])


def find_unseen(predictor: ScalePredictor, calibration: OutcomeTable) -> NDArray[np.bool_]:
    """Mask of the samples that a guarantee may rest on: those the predictor's calibrator has not seen."""
    if predictor.calibrator is None:
        return np.ones(len(calibration), dtype=bool)
    return ~halve(calibration.image_id)


def find_guarantee(
    estimates: ArrayLike,
    calibration: OutcomeTable,
    *,
    alpha: float,
    delta: float,
    most: int | None = None,
    seed: int = 0,
) -> Guarantee:
    """The cheapest price that can be certified from estimates `[num_samples, num_scales]` on calibration.

    `most` questions are asked about one image at most, in what the promise is about (None: as on
    calibration, and then the promise is one about images with no more). `seed` orders the images; their
    order in the table does not matter. Raises ValueError for `alpha` or `delta` outside (0, 1).
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"risk.{name} lies between 0 and 1, got {value}")
    drops = _Drops.at_prices(estimates, calibration)
    values = drops.to_values(alpha, max(most or 0, int(drops.counts.max())))
    num_certified = _count_certified(values, alpha, delta, seed)
    row = max(num_certified - 1, 0)
    return Guarantee(
        alpha=alpha,
        delta=delta,
        price=float(PRICES[row]) if num_certified else None,
        unit=find_nominal_unit(calibration.scales),
        num_images=len(drops.counts),
        num_needed=None if num_certified else find_num_needed(values[0], alpha, delta, seed),
        cost=float(drops.tokens[row].sum() / drops.counts.sum()),
        drop=float(drops.drops[row].sum() / drops.counts.sum()),
    )


@dataclass(frozen=True, eq=False)
class _Drops:
    """Drops and visual tokens summed over the questions of each image, `[num_prices, num_images]`."""

    drops: Floats
    tokens: Floats
    counts: NDArray[np.int64]

    @classmethod
    def at_prices(cls, estimates: ArrayLike, table: OutcomeTable) -> "_Drops":
        tokens, score = table.visual_tokens.astype(np.float64), table.score.astype(np.float64)
        choices = choose_at_prices(estimates, tokens, PRICES, unit=find_nominal_unit(table.scales))
        image, rows = number_images(table.image_id), np.arange(len(table))

        def add_up(values: Floats) -> Floats:
            return np.array([np.bincount(image, weights=values[rows, choice]) for choice in choices])

        return cls(add_up(score[:, -1:] - score), add_up(tokens), np.bincount(image))

    def to_values(self, alpha: float, most: int) -> Floats:
        """x of every image at every price; see the head of this module."""
        return (alpha * self.counts - self.drops) / most


def _count_certified(values: Floats, alpha: float, delta: float, seed: int) -> int:
    """How many prices, from the safest on, pass before one fails; `values [num_prices, num_images]`."""
    order = np.random.default_rng(seed).permutation(values.shape[1])
    return _count_to_first_failure(certify(values[:, order], alpha, delta))


def _count_to_first_failure(passed: NDArray[np.bool_]) -> int:
    return len(passed) if passed.all() else int(passed.argmin())


def apply_guarantee(
    guarantee: Guarantee,
    estimates: ArrayLike,
    test: OutcomeTable,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Realised:
    """Tokens and drop on the test samples at the certified price; at the finest scale where there is none."""
    tokens, score = test.visual_tokens.astype(np.float64), test.score.astype(np.float64)
    if guarantee.price is None:
        choice = np.full(len(test), len(test.scales) - 1)
    else:
        choice = choose(estimates, tokens, guarantee.price, unit=guarantee.unit)
    means = ImageMeans(number_images(test.image_id))
    means.add("price", Schedule.of(choice[None]), tokens, score[:, -1:] - score)

    def measure(weights: np.ndarray) -> dict[str, Floats]:
        cost, drop = means(weights)["price"]
        return {"cost": cost[:, 0], "drop": drop[:, 0]}

    found = resample(measure, means.num_images, num_resamples=num_resamples, seed=seed)
    cost, drop = (found[figure].estimate(confidence) for figure in ("cost", "drop"))
    return Realised(cost, drop, found["drop"].drawn)


@dataclass(frozen=True)
class Resplits:
    """How a promise fared over random halves of the same images, each half once for calibration.

    `feasible`: share of the divisions in which a price was certified. `broken`: in which that price loses
    more than `alpha` on average over *all* images, which are the population that halves are drawn from, so
    that its mean is known. `cost` is the mean of the visual tokens over all images where one was certified.

    The other half alone would be no judge: its mean is twice that over all less that of the half which the
    price was chosen on, so it errs upwards exactly where calibration erred downwards.
    """

    num_splits: int
    num_images: int
    feasible: float
    broken: float
    cost: float


def resplit(
    estimates: ArrayLike,
    table: OutcomeTable,
    *,
    alpha: float,
    delta: float,
    num_splits: int = 200,
    seed: int = 0,
) -> Resplits:
    """Calibrate on random halves of the images of `table`, and see whether promises hold over all of them.

    `estimates` `[num_samples, num_scales]` must come from a predictor that has seen none of these images.
    """
    rng = np.random.default_rng(seed)
    drops = _Drops.at_prices(estimates, table)
    values, num_images = drops.to_values(alpha, int(drops.counts.max())), len(drops.counts)
    halves = np.array([rng.permutation(num_images)[: num_images // 2] for _ in range(num_splits)])
    num_certified: list[int] = []
    size = max(1, _MOST_VALUES // (8 * len(PRICES) * halves.shape[1]))
    for start in range(0, num_splits, size):
        passed = certify(np.moveaxis(values[:, halves[start : start + size]], 0, 1), alpha, delta)
        num_certified += map(_count_to_first_failure, passed)
    rows = np.array([number - 1 for number in num_certified if number], dtype=np.int64)
    num_questions = drops.counts.sum()
    return Resplits(
        num_splits=num_splits,
        num_images=num_images,
        feasible=len(rows) / num_splits,
        broken=float((drops.drops[rows].sum(axis=1) / num_questions > alpha).sum() / num_splits),
        cost=float(drops.tokens[rows].sum() / num_questions / len(rows)) if len(rows) else float("nan"),
    )


@dataclass(frozen=True, eq=False)
class Promise:
    """A guarantee of a predictor beside what became of it on the test samples."""

    name: str
    guarantee: Guarantee
    realised: Realised
    resplits: Resplits | None = None
