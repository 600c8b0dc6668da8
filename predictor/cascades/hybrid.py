"""Hybrids: a predictor chooses the scale at which a cascade starts.

A hybrid starts at the scale that `policy.choose` gives for the estimates at a starting price. After an
answer, its confidence is known in addition to the estimates for all scales. The hybrid escalates while the
expected score gain of the next finer scale is worth its cost at an escalation price. Costs include every
scale that is tried, and the last answer is returned. Weighing expected score against cost before and after an
answer is the idea of cascade routing (Dekoninck, Baader and Vechev, arXiv 2410.10347), which may also skip
scales. Coinciding scales count as one: the gain is that of the next scale that does not coincide.

`confidence`, `score`, `cost`, `first_cost` and `estimates` are `[num_samples, num_scales]` over one ladder,
coarsest scale first. `first_cost` is the cost of a scale at which a path starts: `cost`, by default, and what
the predictor needs in that case, such as the prefill of the coarsest scale for the decoder's state.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from m3_backbone.ladder import find_coarsest, find_repeats
from predictor.cascades.cascade import Columns, find_further_cost, find_prices, pick_hull, space_prices
from predictor.files import damaged, get_array, read_arrays, write_arrays
from predictor.policy.front import Floats, check_price, choose_at_prices, find_unit
from predictor.policy.pricing import check_numbers, find_default, find_within


@dataclass(frozen=True, eq=False)
class ExpectedGain:
    """Expected score gain of the next finer scale, given the confidence of the current answer.

    It is the probability that the next answer is correct minus the probability that the current one is. Both
    are logistic regressions on the logits of the confidence at the current scale and of the estimates for all
    scales. Their weights `next` and `current` are `[num_scales - 1, num_scales + 2]`, with the intercept in
    the last column.
    """

    current: Floats
    next: Floats

    @classmethod
    def fit(
        cls,
        confidence: ArrayLike,
        score: ArrayLike,
        estimates: ArrayLike,
        repeats: ArrayLike | None = None,
    ) -> Self:
        """Fit to calibration samples; each array is `[num_samples, num_scales]`.

        `repeats` says where a scale coincides with the next coarser one. The gain of a scale is fitted to the
        samples on which it does not, or to all if there are none.
        """
        scores = np.asarray(score, dtype=np.float64)
        is_new = np.ones(scores.shape, dtype=bool) if repeats is None else ~np.asarray(repeats)
        is_new |= ~is_new.any(axis=0)
        weights = [
            [
                _fit_logistic(features[is_new[:, column + 1]], scores[is_new[:, column + 1], column + step])
                for step in (0, 1)
            ]
            for column, features in enumerate(cls._make_features(confidence, estimates))
        ]
        current, following = np.array(weights).reshape(-1, 2, scores.shape[1] + 2).swapaxes(0, 1)
        return cls(current, following)

    def __call__(self, confidence: ArrayLike, estimates: ArrayLike) -> Floats:
        """Expected gains `[num_samples, num_scales]`; 0 at the finest scale.

        The gain of a column uses only the confidence of that column. Arrays are `[num_samples, num_scales]`.
        """
        gains = np.zeros(np.shape(confidence))
        for column, features in enumerate(self._make_features(confidence, estimates)):
            gains[:, column] = expit(features @ self.next[column]) - expit(features @ self.current[column])
        return gains

    @staticmethod
    def _make_features(confidence: ArrayLike, estimates: ArrayLike) -> list[Floats]:
        confidence_logits, estimate_logits = (
            logit(np.clip(values, 1e-4, 1 - 1e-4)) for values in (confidence, estimates)
        )
        constant = np.ones((len(confidence_logits), 1))
        return [
            np.hstack([confidence_logits[:, [column]], estimate_logits, constant])
            for column in range(confidence_logits.shape[1] - 1)
        ]


def _fit_logistic(features: Floats, score: Floats) -> Floats:
    """Return the weights of a logistic regression, intercept last; `features` end in a column of ones.

    Features are standardised and the intercept is not penalised, so that the penalty does not depend on units
    and does not pull probabilities towards one half. The returned weights are for features that are not
    standardised. Fractional scores are fitted as in `tabular.fit_fractional`.
    """
    # Imported here, since only fitting needs scikit-learn, which loads slowly.
    from sklearn.linear_model import LogisticRegression

    from predictor.classical.tabular import fit_fractional

    features = features[:, :-1]
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    standard = (features - mean) / scale
    # One sample of score 1/2 at the mean of the features is added for the case that all scores are equal.
    at_mean = np.zeros((1, standard.shape[1]))
    model = LogisticRegression(max_iter=1000)
    fit_fractional(model, np.concatenate([standard, at_mean]), np.append(score, 0.5))
    weights = model.coef_[0] / scale
    intercept = model.intercept_[0] - weights @ mean
    return np.append(weights, intercept).astype(np.float64)


HYBRID = "hybrid.safetensors"
_ROWS = ("price", "cost", "score", "starting_price", "escalation_price")
_NUM_STARTING_PRICES = _NUM_ESCALATION_PRICES = 48


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Fitted hybrids, one per price: the vertices of their hull on calibration, by decreasing cost.

    `price` `[num_prices]`, ascending from 0, is the price per `unit` of cost at which each hybrid becomes the
    best one on the calibration samples; `cost` and `score` are its mean cost, with what the predictor needs,
    and its mean score on them. A hybrid starts at the scale that `policy.choose` gives for the estimates and
    `first_cost` at `starting_price`, and escalates while `gain` is more than `escalation_price` times the
    cost of the next scale, both prices per `unit`. These two prices apply to all scales, whereas a cascade
    has a threshold per scale, and therefore overfit the calibration samples less. `default` is the default
    row.
    """

    price: Floats
    cost: Floats
    score: Floats
    starting_price: Floats
    escalation_price: Floats
    unit: float
    gain: ExpectedGain
    default: int = 0

    @classmethod
    def fit(
        cls,
        confidence: ArrayLike,
        score: ArrayLike,
        cost: ArrayLike,
        estimates: ArrayLike | None,
        num_prices: int = 128,
        *,
        first_cost: ArrayLike | None = None,
    ) -> Self:
        """Find the best hybrids on calibration samples; each array is `[num_samples, num_scales]`.

        The predictor of the estimates must not have been trained on these samples. At most `num_prices`
        hybrids on the upper concave hull of (mean cost, mean score) are kept, at log-spaced costs. Raises
        ValueError without estimates.
        """
        estimate_array = _require(estimates)
        scores, costs = np.asarray(score, dtype=np.float64), np.asarray(cost, dtype=np.float64)
        unit = find_unit(costs)
        gain = ExpectedGain.fit(confidence, scores, estimate_array, find_repeats(costs))
        highest_price = _find_highest_prices(gain(confidence, estimate_array), costs, unit)
        escalation_price = _space_escalation_prices(highest_price)
        start_cost, overhead = _find_start_cost(costs, first_cost)
        starting_price = space_prices(estimate_array, start_cost, unit, _NUM_STARTING_PRICES)
        firsts = choose_at_prices(estimate_array, start_cost, starting_price, unit=unit).astype(np.int64)
        traces = [
            _trace(highest_price, scores, costs, start_cost, first, escalation_price) for first in firsts
        ]
        mean_cost, mean_score = np.array(traces).swapaxes(0, 1).reshape(2, -1)
        hull = pick_hull(mean_cost, mean_score, num_prices)
        return cls(
            price=find_prices(mean_cost[hull], mean_score[hull]) * unit,
            cost=mean_cost[hull] + overhead,
            score=mean_score[hull],
            starting_price=starting_price[hull // len(escalation_price)],
            escalation_price=escalation_price[hull % len(escalation_price)],
            unit=unit,
            gain=gain,
        )

    def escalate(
        self,
        confidence: ArrayLike,
        cost: ArrayLike,
        estimates: ArrayLike | None,
        *,
        first_cost: ArrayLike | None = None,
    ) -> tuple[Columns, Columns]:
        """First and last column tried, each `[num_prices, num_samples]`.

        Only the confidences at scales from the first to the last tried are read. Of coinciding scales, the
        coarsest is returned and its confidence is read.
        """
        estimate_array, costs = _require(estimates), np.asarray(cost, dtype=np.float64)
        coarsest = find_coarsest(costs)
        confidences = np.take_along_axis(np.asarray(confidence, dtype=np.float64), coarsest, axis=1)
        start_cost, _ = _find_start_cost(costs, first_cost)
        first = choose_at_prices(estimate_array, start_cost, self.starting_price, unit=self.unit)
        first = first.astype(np.int64)
        highest_price = _find_highest_prices(self.gain(confidences, estimate_array), costs, self.unit)
        last = np.stack(
            [
                _escalate(highest_price, start, price)
                for start, price in zip(first, self.escalation_price, strict=True)
            ]
        )
        rows = np.arange(len(costs))
        return coarsest[rows, first], coarsest[rows, last]

    @property
    def num_scales(self) -> int:
        """Number of scales of the ladder of the calibration samples."""
        return len(self.gain.current) + 1

    def with_default(self, best_fixed: float, budget: float | None = None, tolerance: float = 0.0) -> Self:
        """Return a copy whose default row is that of `pricing.find_default`."""
        return replace(self, default=find_default(self.cost, self.score, best_fixed, budget, tolerance))

    def find(self, *, price: float | None = None, budget: float | None = None) -> int:
        """Return the row for a price per `unit` or a budget of mean cost; the default row without either.

        Raises ValueError for both, for a negative price, and for a budget below every mean cost.
        """
        if price is not None and budget is not None:
            raise ValueError("give a price or a budget, not both")
        check_numbers(price=price, budget=budget)
        if price is not None:
            check_price(price)
            return int(np.flatnonzero(self.price <= price)[-1])
        return self.default if budget is None else find_within(self.cost, budget)

    def at(self, row: int) -> Self:
        """Return the hybrid of a single row."""
        rows = {name: getattr(self, name)[[row]] for name in _ROWS}
        return replace(self, **rows, default=0)

    def save(self, folder: Path) -> None:
        """Write `hybrid.safetensors` atomically."""
        arrays = {name: getattr(self, name) for name in _ROWS}
        arrays |= {"here": self.gain.current, "beyond": self.gain.next}
        arrays |= {"unit": np.array([self.unit]), "default": np.array([self.default])}
        write_arrays(folder / HYBRID, arrays)

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Self | None:
        """Load a saved hybrid; None if absent (trained by an older version).

        `root` is as in `files.check_file`. Raises FolderError for a damaged file.
        """
        path = folder / HYBRID
        if not path.exists() and not path.is_symlink():
            return None
        arrays = read_arrays(path, root)
        if "climbing_price" in arrays:  # former name of the array
            arrays["escalation_price"] = arrays.pop("climbing_price")
        try:
            if unknown := arrays.keys() - {*_ROWS, "here", "beyond", "unit", "default"}:
                raise ValueError(f"unknown array {min(unknown)!r}")
            gain = ExpectedGain(*(get_array(arrays, name, None, None) for name in ("here", "beyond")))
            unit = get_array(arrays, "unit", 1).item()
            default = get_array(arrays, "default", 1, kinds="iuf").item()
            rows = {name: get_array(arrays, name, None) for name in _ROWS}
            hybrid = cls(**rows, unit=unit, gain=gain, default=default)
            hybrid._check()
        except ValueError as error:
            raise damaged(path, error) from error
        return hybrid

    def _check(self) -> None:
        """Raise ValueError for values that no fit gives."""
        rows = [getattr(self, name) for name in _ROWS]
        if self.price.ndim != 1 or not self.price.size or any(row.shape != self.price.shape for row in rows):
            raise ValueError(f"the rows have shapes {[row.shape for row in rows]}")
        if self.price[0] != 0 or not (np.diff(self.price) > 0).all() or not (np.diff(self.cost) < 0).all():
            raise ValueError("prices do not increase from 0, or costs do not decrease")
        shape = (self.num_scales - 1, self.num_scales + 2)
        if self.gain.current.shape != shape or self.gain.next.shape != shape:
            raise ValueError(f"regressions have shapes {self.gain.current.shape} and {self.gain.next.shape}")
        if not (self.cost > 0).all() or not ((self.score >= -1e-6) & (self.score <= 1 + 1e-6)).all():
            raise ValueError("costs or scores are out of range")
        numbers = [self.price, self.cost, self.score, self.gain.current, self.gain.next, np.array(self.unit)]
        if not all(np.isfinite(array).all() for array in numbers) or np.isnan(rows[3:]).any():
            raise ValueError("numbers are not finite")
        if not self.unit > 0 or not (isinstance(self.default, int) and 0 <= self.default < len(self.price)):
            raise ValueError(f"invalid unit {self.unit} or default row {self.default} of {len(self.price)}")


def _require(estimates: ArrayLike | None) -> Floats:
    if estimates is None:
        raise ValueError("a hybrid needs a predictor for its starting scale: give the predictor's estimates")
    return np.asarray(estimates, dtype=np.float64)


def _find_start_cost(cost: Floats, first_cost: ArrayLike | None) -> tuple[Floats, float]:
    """Return `first_cost` without the part that is paid at all scales, and the mean of that part."""
    if first_cost is None:
        return cost, 0.0
    first_costs = np.asarray(first_cost, dtype=np.float64)
    overhead = first_costs[:, :1] - cost[:, :1]
    return first_costs - overhead, float(overhead.mean())


def _find_highest_prices(gain: Floats, cost: Floats, unit: float) -> Floats:
    """Highest prices `[num_samples, num_scales - 1]` at which a sample escalates from each scale.

    They are infinite where the next scale coincides, which costs nothing.
    """
    further_cost = find_further_cost(cost)[:, 1:]
    prices = np.full(further_cost.shape, np.inf)
    np.divide(gain[:, :-1], further_cost, out=prices, where=further_cost > 0)
    return prices * unit


def _space_escalation_prices(highest_price: Floats) -> Floats:
    """Escalation prices from -inf (always escalate) to inf (never), at quantiles of `highest_price`."""
    positive = highest_price[(highest_price > 0) & np.isfinite(highest_price)]
    levels = np.linspace(0, 1, _NUM_ESCALATION_PRICES)
    quantiles = np.quantile(positive, levels, method="higher") if positive.size else np.empty(0)
    return np.unique([-np.inf, 0.0, *quantiles, np.inf])


def _trace(
    highest_price: Floats,
    score: Floats,
    cost: Floats,
    start_cost: Floats,
    first: Columns,
    escalation_price: Floats,
) -> tuple[Floats, Floats]:
    """Mean cost and mean score at each escalation price of samples that start at columns `first`."""
    rows, num_prices = np.arange(len(first)), len(escalation_price)
    totals = [np.full(num_prices, values[rows, first].sum()) for values in (start_cost, score)]
    further_cost = find_further_cost(cost)
    lowest = np.full(len(first), np.inf)  # lowest of the highest prices so far
    for column in range(highest_price.shape[1]):
        started = first <= column
        lowest[started] = np.minimum(lowest[started], highest_price[started, column])
        # Number of escalation prices at which a sample escalates from this scale: these are the lowest ones.
        number = np.searchsorted(escalation_price, lowest[started])
        changes = further_cost[started, column + 1], score[started, column + 1] - score[started, column]
        for total, change in zip(totals, changes, strict=True):
            total += change.sum() - np.cumsum(np.bincount(number, change, num_prices + 1))[:-1]
    return totals[0] / len(first), totals[1] / len(first)


def _escalate(highest_price: Floats, first: Columns, price: float) -> Columns:
    """Last column tried by each sample that starts at column `first`."""
    last = first.copy()
    for column in range(highest_price.shape[1]):
        last[(last == column) & (highest_price[:, column] > price)] += 1
    return last
