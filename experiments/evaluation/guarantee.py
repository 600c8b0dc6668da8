"""Guarantee on the score: the cheapest price whose mean loss is at most `alpha` with probability 1 - `delta`.

The loss of a sample is its **drop**: the score at the finest scale minus the score at the chosen scale, in
[-1, 1]. The guarantee bounds the mean drop over questions. Images are the independent units. An image with
`m` questions of drops `d` contributes the value

    x = weight * sum(alpha - d) / most_questions        weight = min(1, most_questions / m)

which lies in [alpha - 1, alpha + 1]. E[x] > 0 means that the mean drop is below `alpha`, whatever the
dependence between questions about one image. An image with more than `most_questions` questions counts as
that many; if no image has more, the mean is the plain mean over questions.

A price is certified if E[x] <= 0 is rejected at level `delta` (`evaluation.betting`). Prices are tested from
safe to risky until the first failure (fixed-sequence testing; Bauer, Statistics in Medicine 1991), which
needs no correction for their number. Neither the grid of prices nor the order of the images in the test
depends on outcomes or on a seed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from experiments.evaluation.betting import certify, find_num_needed
from experiments.evaluation.fronts import Floats
from experiments.evaluation.statistics import Bootstrap, Estimate, number_images
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import ScalePredictor
from predictor.policy.front import choose, choose_at_prices
from predictor.splitting import calibrator_half

# Per `find_nominal_unit`: from choosing the scale with the highest estimate to nearly always the coarsest.
PRICES: Floats = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 81)])
# Limits on re-split replicates (for the processor cache) and on values (for memory) tested at once.
_NUM_AT_ONCE, _MOST_VALUES = 128, 2**22


@dataclass(frozen=True)
class Guarantee:
    """Bound: with probability 1 - `level` over calibration images, the mean drop at `price` is <= `alpha`.

    `level` is `delta / num_joint`: `num_joint` guarantees certified at this level hold together with
    probability 1 - `delta`. One image counts for at most `most_questions` questions. `price` is per `unit`
    visual tokens (`predictor.policy.front`); None if no price can be certified with `num_images` calibration
    images, in which case only the finest scale is certain to meet the bound. `num_needed` estimates how many
    images would certify the safest price; None if a price is certified or no estimate exists
    (`betting.find_num_needed`). `cost` (visual tokens) and `drop` are means on the calibration samples at
    `price`, or at the safest price if `price` is None; None without calibration samples.
    """

    alpha: float
    delta: float
    num_joint: int
    most_questions: int
    price: float | None
    unit: float
    num_images: int
    num_needed: int | None
    cost: float | None
    drop: float | None

    @property
    def level(self) -> float:
        return self.delta / self.num_joint

    @property
    def is_feasible(self) -> bool:
        return self.price is not None

    def price_per(self, unit: float) -> float | None:
        """Return the price per another unit of cost."""
        return None if self.price is None else self.price * unit / self.unit


@dataclass(frozen=True, eq=False)
class RealizedLoss:
    """Mean visual tokens and drop on the test samples at a certified price, with intervals.

    `resampled_drop` `[num_resamples]` is the drop on every resample. `num_large` test images have more than
    `most_questions` questions, and count as that many.
    """

    cost: Estimate
    drop: Estimate
    resampled_drop: Floats
    confidence: float
    num_large: int


@dataclass(frozen=True, eq=False)
class ResplitCheck:
    """Simulated failure rate of a guarantee that is certified on other calibration images.

    Each replicate samples `num_images` images, as many as the guarantee used, with replacement from the
    `num_population` test images and certifies a price on them. The test images are the population, so the
    true mean drop is known exactly. `failures` `[num_resplits]` marks the replicates whose certified price
    has a true mean drop above `alpha`; the guarantee states that their share is at most its `level`.
    `num_certified` replicates certified a price; `cost` is the mean number of visual tokens over all test
    images at those prices, None if there are none.

    The check is valid for a population distributed like these test images. `interval` covers the noise of the
    simulation only, not the choice of test images. The check does not cover calibration images that are
    distributed differently from test images.
    """

    failures: NDArray[np.bool_]
    num_images: int
    num_population: int
    num_certified: int
    cost: float | None
    confidence: float

    @property
    def num_resplits(self) -> int:
        return len(self.failures)

    @property
    def num_failed(self) -> int:
        return int(self.failures.sum())

    @property
    def failed(self) -> float:
        """Share of the replicates in which the guarantee failed."""
        return self.num_failed / self.num_resplits

    @property
    def interval(self) -> tuple[float, float]:
        """Exact binomial interval of the probability of a failure (Clopper & Pearson 1934)."""
        low, high = binomtest(self.num_failed, self.num_resplits).proportion_ci(self.confidence, "exact")
        return float(low), float(high)


@dataclass(frozen=True, eq=False)
class CheckedGuarantee:
    """The guarantee of the predictor `name`, its loss on the test samples, and its re-split check."""

    name: str
    guarantee: Guarantee
    realized: RealizedLoss
    check: ResplitCheck | None = None


@dataclass(frozen=True)
class GuaranteeTerms:
    """Terms of the guarantees and of their check: settings `guarantee` of `evaluate`.

    With probability 1 - `delta`, the mean score is at most `alpha` below that of the finest scale; with
    `joint`, this holds for all predictors together. One image counts for at most `most_questions` questions;
    None: the largest number on calibration. `num_resplits` is the number of resamples of the test images in
    the check; 0: no check.
    """

    alpha: float = 0.02
    delta: float = 0.1
    joint: bool = False
    most_questions: int | None = None
    num_resplits: int = 1000


def find_nominal_unit(scales: tuple[int, ...]) -> float:
    """Return the nominal number of tokens of the finest scale, a unit that does not depend on samples."""
    return float(scales[-1])


def find_unseen(predictor: ScalePredictor, calibration: OutcomeTable) -> NDArray[np.bool_]:
    """Return the mask `[num_samples]` of the samples on which the predictor's calibrator was not fitted."""
    if predictor.calibrator is None:
        return np.ones(len(calibration), dtype=bool)
    return ~calibrator_half(calibration.cluster_id)


def find_guarantee(
    estimates: ArrayLike,
    calibration: OutcomeTable,
    *,
    alpha: float,
    delta: float,
    num_joint: int = 1,
    most_questions: int | None = None,
) -> Guarantee:
    """Return the cheapest price certified on calibration samples, from `[num_samples, num_scales]` estimates.

    `num_joint` guarantees made with the same `num_joint` hold together with probability 1 - `delta`. One
    image counts for at most `most_questions` questions; None stands for the largest number that any
    calibration image has. The order of the samples does not matter: images are tested in the order of a hash
    of their ids. Raises ValueError for `alpha` or `delta` outside (0, 1) and for counts below 1.
    """
    for name, level in (("alpha", alpha), ("delta", delta)):
        if not 0 < level < 1:
            raise ValueError(f"guarantee.{name} must lie between 0 and 1, got {level}")
    if num_joint < 1:
        raise ValueError(f"the number of joint guarantees must be at least 1, got {num_joint}")
    if most_questions is not None and most_questions < 1:
        raise ValueError(f"guarantee.most_questions must be null or at least 1, got {most_questions}")
    unit = find_nominal_unit(calibration.scales)
    if not len(calibration):
        return Guarantee(alpha, delta, num_joint, most_questions or 1, None, unit, 0, None, None, None)
    sums = ImageSums.at_prices(estimates, calibration, most_questions)
    values = sums.to_values(alpha)[:, order_images(calibration.cluster_id)]
    num_certified = _count_to_first_failure(certify(values, alpha, delta / num_joint))
    row = max(num_certified - 1, 0)
    num_needed = None if num_certified else find_num_needed(values[0], alpha, delta / num_joint)
    return Guarantee(
        alpha=alpha,
        delta=delta,
        num_joint=num_joint,
        most_questions=sums.most_questions,
        price=float(PRICES[row]) if num_certified else None,
        unit=unit,
        num_images=len(sums.counts),
        num_needed=num_needed,
        cost=float(sums.mean_tokens[row]),
        drop=float(sums.mean_drops[row]),
    )


def order_images(cluster_id: ArrayLike) -> NDArray[np.int64]:
    """Return the image numbers of `number_images`, sorted by the SHA-256 digest of the ids, `[num_images]`.

    The order is the same in every run: there is no seed that could be varied until a price is certified.
    """
    ids = np.asarray(cluster_id, dtype=object)
    names = dict(zip(number_images(ids).tolist(), ids, strict=True))
    digests = [hashlib.sha256(str(names[number]).encode()).digest() for number in range(len(names))]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ImageSums:
    """Drops and visual tokens `[num_choices, num_images]`, summed over the questions of each image.

    `counts` `[num_images]` are numbers of questions. All three are weighted so that an image with more than
    `most_questions` questions counts as `most_questions`; `num_large` images have more.
    """

    drops: Floats
    tokens: Floats
    counts: Floats
    most_questions: int
    num_large: int

    @classmethod
    def of_choices(
        cls, choices: NDArray[np.integer], table: OutcomeTable, most_questions: int | None
    ) -> "ImageSums":
        """Return the sums for each row of `choices` `[num_choices, num_samples]`: columns of scales."""
        tokens, score = table.cost, table.score.astype(np.float64)
        image, rows = number_images(table.cluster_id), np.arange(len(table))
        num_questions = np.bincount(image)
        most = most_questions or int(num_questions.max())
        weights = np.minimum(1.0, most / num_questions)

        def add_up(values: Floats) -> Floats:
            return np.array([weights * np.bincount(image, values[rows, choice]) for choice in choices])

        num_large = int((num_questions > most).sum())
        return cls(add_up(score[:, -1:] - score), add_up(tokens), weights * num_questions, most, num_large)

    @classmethod
    def at_prices(cls, estimates: ArrayLike, table: OutcomeTable, most_questions: int | None) -> "ImageSums":
        """Return the sums at every price of `PRICES`."""
        unit = find_nominal_unit(table.scales)
        choices = choose_at_prices(estimates, table.visual_tokens, PRICES, unit=unit)
        return cls.of_choices(choices, table, most_questions)

    def to_values(self, alpha: float) -> Floats:
        """Return x (see the module's docstring) for each choice and image, `[num_choices, num_images]`."""
        return (alpha * self.counts - self.drops) / self.most_questions

    @property
    def mean_drops(self) -> Floats:
        return np.asarray(self.drops.sum(axis=1) / self.counts.sum(), dtype=np.float64)

    @property
    def mean_tokens(self) -> Floats:
        return np.asarray(self.tokens.sum(axis=1) / self.counts.sum(), dtype=np.float64)


def _count_to_first_failure(passed: NDArray[np.bool_]) -> int:
    """Return the number of leading True values of `passed` `[num_prices]`."""
    return len(passed) if passed.all() else int(passed.argmin())


def apply_guarantee(
    guarantee: Guarantee, estimates: ArrayLike, test: OutcomeTable, bootstrap: Bootstrap
) -> RealizedLoss:
    """Return tokens and drop on the test samples at the certified price, or else at the finest scale."""
    if guarantee.price is None:
        choice = np.full(len(test), len(test.scales) - 1)
    else:
        choice = choose(estimates, test.visual_tokens, guarantee.price, unit=guarantee.unit)
    return measure_loss(choice, test, guarantee.most_questions, bootstrap)


def measure_loss(
    choice: NDArray[np.integer],
    test: OutcomeTable,
    most_questions: int | None,
    bootstrap: Bootstrap,
) -> RealizedLoss:
    """Return tokens and drop on samples of which `choice` `[num_samples]` are the columns of the scales."""
    sums = ImageSums.of_choices(choice[None], test, most_questions)

    def measure(weights: NDArray[np.generic]) -> dict[str, Floats]:
        image_weights = weights.astype(np.float64)
        num_questions = image_weights @ sums.counts
        return {
            "cost": image_weights @ sums.tokens[0] / num_questions,
            "drop": image_weights @ sums.drops[0] / num_questions,
        }

    resampled = bootstrap.resample(measure, len(sums.counts))
    cost, drop = (resampled[metric].estimate(bootstrap.confidence) for metric in ("cost", "drop"))
    return RealizedLoss(cost, drop, resampled["drop"].resamples, bootstrap.confidence, sums.num_large)


def check_guarantee(
    guarantee: Guarantee,
    estimates: ArrayLike,
    test: OutcomeTable,
    *,
    num_resplits: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ResplitCheck | None:
    """Certify again on images sampled with replacement from `test`, and count how often the guarantee fails.

    `estimates` `[num_samples, num_scales]` must come from a predictor that was not fitted on these images.
    Images are tested in the order in which they are sampled. Guarantees with the same number of images and
    the same `seed` use the same samples. Returns None if `num_resplits` or the number of calibration images
    is 0.
    """
    if not (num_resplits and guarantee.num_images):
        return None
    sums = ImageSums.at_prices(estimates, test, guarantee.most_questions)
    values, num_population = sums.to_values(guarantee.alpha), len(sums.counts)
    rng = np.random.default_rng(seed)
    num_at_once = max(1, min(_NUM_AT_ONCE, _MOST_VALUES // (len(PRICES) * guarantee.num_images)))
    num_certified = np.zeros(num_resplits, dtype=np.int64)
    for start in range(0, num_resplits, num_at_once):
        size = min(num_at_once, num_resplits - start)
        images = rng.integers(num_population, size=(size, guarantee.num_images))
        # Images are first in memory, [num_images, size, num_prices]: `certify` iterates over them.
        sampled_values = np.moveaxis(values.T[images.T], 0, -1)
        for position, passed in enumerate(certify(sampled_values, guarantee.alpha, guarantee.level)):
            num_certified[start + position] = _count_to_first_failure(passed)
    is_certified, rows = num_certified > 0, np.maximum(num_certified - 1, 0)
    # Tolerance for rounding: a mean drop of exactly alpha is within the bound.
    failures = is_certified & (sums.mean_drops[rows] > guarantee.alpha + 1e-12)
    return ResplitCheck(
        failures=failures,
        num_images=guarantee.num_images,
        num_population=num_population,
        num_certified=int(is_certified.sum()),
        cost=float(sums.mean_tokens[rows[is_certified]].mean()) if is_certified.any() else None,
        confidence=confidence,
    )


def join_checks(checks: Sequence[ResplitCheck]) -> ResplitCheck | None:
    """Return the joint check of several guarantees: a replicate fails if any of the guarantees fails.

    Returns None if the checks did not sample the same images in each replicate.
    """
    first, *others = checks
    if any(
        (check.num_images, check.num_resplits) != (first.num_images, first.num_resplits) for check in others
    ):
        return None
    failures = np.any([check.failures for check in checks], axis=0)
    return replace(first, failures=failures, num_certified=0, cost=None)
