"""Guarantee on the score: the cheapest price whose mean loss is at most `alpha`, except with chance `delta`.

The loss of a sample is its **drop**, the finest scale's score less that of the chosen scale, in [-1, 1]; what
is bounded is its mean over questions. Images are the independent unit. An image with `m` questions of drops
`d` enters as

    x = weight * sum(alpha - d) / most_questions        weight = min(1, most_questions / m)

which lies in [alpha - 1, alpha + 1]. E[x] > 0 says that the mean drop is below `alpha`, however the questions
about one image depend on each other. An image with more than `most_questions` questions counts as that many;
if no image has more, the mean is the plain mean over questions.

A price is certified if E[x] <= 0 is rejected at level `delta` (`evaluation.betting`). Prices are tested from
safe to risky until the first that fails (fixed-sequence testing; Bauer, Statistics in Medicine 1991), so no
correction for their number is due. Neither the grid of prices nor the order in which images are bet on
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
from experiments.evaluation.statistics import Estimate, number_images, resample
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import ScalePredictor
from predictor.policy.front import choose, choose_at_prices
from predictor.splitting import calibrator_half

# Per `find_nominal_unit`: from "the scale that is most likely correct" to "as good as always the coarsest".
PRICES: Floats = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 81)])
# Largest numbers of re-split replicates (processor cache) and of values (memory) that are tested at once.
_NUM_AT_ONCE, _MOST_VALUES = 128, 2**24


@dataclass(frozen=True)
class Guarantee:
    """With probability 1 - `level` over calibration images, the mean drop at `price` is at most `alpha`.

    `level` is `delta` divided by `num_joint`: so many guarantees, each certified like this one, hold together
    with probability 1 - `delta`. `most_questions` is the number of questions that one image counts for at
    most. `price` is per `unit` visual tokens (`predictor.policy.front`), None if `num_images` are too few to
    certify any price; only the finest scale then meets the bound for certain. `num_needed` estimates how many
    images would certify the safest price; None if a price is certified, or if there is no such estimate
    (`betting.find_num_needed`). `cost` (visual tokens) and `drop` are means on the calibration samples at
    that price, or at the safest; None if there are no calibration samples.
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
        """The same price, per another unit of cost."""
        return None if self.price is None else self.price * unit / self.unit


@dataclass(frozen=True, eq=False)
class RealizedLoss:
    """Mean visual tokens and drop on the test samples at a certified price, with intervals.

    `drawn_drop` `[num_resamples]` is the drop on every resample. `num_large` of the test images have more
    questions than `most_questions`, and count as that many.
    """

    cost: Estimate
    drop: Estimate
    drawn_drop: Floats
    confidence: float
    num_large: int


@dataclass(frozen=True, eq=False)
class ResplitCheck:
    """How often a guarantee fails if it is certified on other calibration images, by simulation.

    Each replicate draws `num_images` images, as many as the guarantee rests on, with replacement from the
    `num_population` test images and certifies on them. The test images are the population that is drawn from,
    so the mean over all of them is known exactly: `failures` `[num_resplits]` are the replicates whose
    certified price drops more than `alpha` there. The guarantee says that their share is at most its `level`.
    `num_certified` replicates certified a price; `cost` is the mean number of visual tokens over all test
    images at those prices, None if there are none.

    The check holds for a population that is distributed like these test images, and `interval` covers the
    noise of the simulation alone: other test images have another share. It says nothing about calibration
    images that differ from test images in kind.
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


def find_nominal_unit(scales: tuple[int, ...]) -> float:
    """The nominal number of tokens of the finest scale: a unit that does not depend on samples."""
    return float(scales[-1])


def find_unseen(predictor: ScalePredictor, calibration: OutcomeTable) -> NDArray[np.bool_]:
    """Mask `[num_samples]` of the samples that the calibrator of the predictor was not fitted on."""
    if predictor.calibrator is None:
        return np.ones(len(calibration), dtype=bool)
    return ~calibrator_half(calibration.image_id)


def find_guarantee(
    estimates: ArrayLike,
    calibration: OutcomeTable,
    *,
    alpha: float,
    delta: float,
    num_joint: int = 1,
    most_questions: int | None = None,
) -> Guarantee:
    """The cheapest price certified from estimates `[num_samples, num_scales]` on calibration samples.

    `num_joint` guarantees that are all made like this hold together with probability 1 - `delta`.
    `most_questions` is the number of questions that one image counts for at most; None: the most that any
    calibration image has. The order of the samples does not matter: images are bet on in the order of a hash
    of their ids. Raises ValueError for `alpha` or `delta` outside (0, 1) and for counts below 1.
    """
    for name, level in (("alpha", alpha), ("delta", delta)):
        if not 0 < level < 1:
            raise ValueError(f"guarantee.{name} lies between 0 and 1, got {level}")
    if num_joint < 1:
        raise ValueError(f"the number of joint guarantees is at least 1, got {num_joint}")
    if most_questions is not None and most_questions < 1:
        raise ValueError(f"guarantee.most_questions is at least 1, or null, got {most_questions}")
    unit = find_nominal_unit(calibration.scales)
    if not len(calibration):
        return Guarantee(alpha, delta, num_joint, most_questions or 1, None, unit, 0, None, None, None)
    sums = _ImageSums.at_prices(estimates, calibration, most_questions)
    values = sums.to_values(alpha)[:, order_images(calibration.image_id)]
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


def order_images(image_id: ArrayLike) -> NDArray[np.int64]:
    """Order `[num_images]` of the numbers of `number_images`, by the SHA-256 digest of the image ids.

    It is the same in every run: there is no seed that could be varied until a price is certified.
    """
    ids = np.asarray(image_id, dtype=object)
    names = dict(zip(number_images(ids).tolist(), ids, strict=True))
    digests = [hashlib.sha256(str(names[number]).encode()).digest() for number in range(len(names))]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _ImageSums:
    """Drops and visual tokens `[num_choices, num_images]`, summed over the questions of each image.

    `counts` `[num_images]` are numbers of questions. All three are weighted: an image with more than
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
    ) -> "_ImageSums":
        """Sums for each row of `choices` `[num_choices, num_samples]`, columns of the chosen scales."""
        tokens, score = table.visual_tokens.astype(np.float64), table.score.astype(np.float64)
        image, rows = number_images(table.image_id), np.arange(len(table))
        num_questions = np.bincount(image)
        most = most_questions or int(num_questions.max())
        weights = np.minimum(1.0, most / num_questions)

        def add_up(values: Floats) -> Floats:
            return np.array([weights * np.bincount(image, values[rows, choice]) for choice in choices])

        num_large = int((num_questions > most).sum())
        return cls(add_up(score[:, -1:] - score), add_up(tokens), weights * num_questions, most, num_large)

    @classmethod
    def at_prices(cls, estimates: ArrayLike, table: OutcomeTable, most_questions: int | None) -> "_ImageSums":
        """Sums at every price of `PRICES`."""
        unit = find_nominal_unit(table.scales)
        choices = choose_at_prices(estimates, table.visual_tokens, PRICES, unit=unit)
        return cls.of_choices(choices, table, most_questions)

    def to_values(self, alpha: float) -> Floats:
        """x of every image for each choice (see the docstring of this module)."""
        return (alpha * self.counts - self.drops) / self.most_questions

    @property
    def mean_drops(self) -> Floats:
        return np.asarray(self.drops.sum(axis=1) / self.counts.sum(), dtype=np.float64)

    @property
    def mean_tokens(self) -> Floats:
        return np.asarray(self.tokens.sum(axis=1) / self.counts.sum(), dtype=np.float64)


def _count_to_first_failure(passed: NDArray[np.bool_]) -> int:
    """Number of prices that pass before the first that fails, of `passed` `[num_prices]`."""
    return len(passed) if passed.all() else int(passed.argmin())


def apply_guarantee(
    guarantee: Guarantee,
    estimates: ArrayLike,
    test: OutcomeTable,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> RealizedLoss:
    """Tokens and drop on the test samples at the certified price, or at the finest scale without one."""
    if guarantee.price is None:
        choice = np.full(len(test), len(test.scales) - 1)
    else:
        choice = choose(estimates, test.visual_tokens, guarantee.price, unit=guarantee.unit)
    sums = _ImageSums.of_choices(choice[None], test, guarantee.most_questions)

    def measure(weights: NDArray[np.generic]) -> dict[str, Floats]:
        image_weights = weights.astype(np.float64)
        num_questions = image_weights @ sums.counts
        return {
            "cost": image_weights @ sums.tokens[0] / num_questions,
            "drop": image_weights @ sums.drops[0] / num_questions,
        }

    drawn = resample(measure, len(sums.counts), num_resamples=num_resamples, seed=seed)
    cost, drop = (drawn[metric].estimate(confidence) for metric in ("cost", "drop"))
    return RealizedLoss(cost, drop, drawn["drop"].resamples, confidence, sums.num_large)


def check_guarantee(
    guarantee: Guarantee,
    estimates: ArrayLike,
    test: OutcomeTable,
    *,
    num_resplits: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ResplitCheck | None:
    """Certify again on images drawn with replacement from `test`, and count how often the guarantee fails.

    `estimates` `[num_samples, num_scales]` must come from a predictor that was not fitted on these images.
    Drawn images are bet on in the order in which they are drawn. Guarantees on equally many images and with
    one `seed` draw the same ones. None without replicates, or without calibration images.
    """
    if not (num_resplits and guarantee.num_images):
        return None
    sums = _ImageSums.at_prices(estimates, test, guarantee.most_questions)
    values, num_population = sums.to_values(guarantee.alpha), len(sums.counts)
    rng = np.random.default_rng(seed)
    num_at_once = max(1, min(_NUM_AT_ONCE, _MOST_VALUES // (len(PRICES) * guarantee.num_images)))
    num_certified = np.zeros(num_resplits, dtype=np.int64)
    for start in range(0, num_resplits, num_at_once):
        size = min(num_at_once, num_resplits - start)
        drawn = rng.integers(num_population, size=(size, guarantee.num_images))
        # Images first, [num_images, size, num_prices]: the order in which `certify` runs through memory.
        drawn_values = np.moveaxis(values.T[drawn.T], 0, -1)
        for position, passed in enumerate(certify(drawn_values, guarantee.alpha, guarantee.level)):
            num_certified[start + position] = _count_to_first_failure(passed)
    is_certified, rows = num_certified > 0, np.maximum(num_certified - 1, 0)
    # A mean drop of exactly alpha is within the bound, however its sum was rounded.
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
    """The check of several guarantees together, which fail where any of them fails.

    None if replicates of one number are not the same draw of images for all of them.
    """
    first, *others = checks
    if any(
        (check.num_images, check.num_resplits) != (first.num_images, first.num_resplits) for check in others
    ):
        return None
    failures = np.any([check.failures for check in checks], axis=0)
    return replace(first, failures=failures, num_certified=0, cost=None)
