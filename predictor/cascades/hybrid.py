"""Hybrids: a predictor says at which scale a cascade starts.

What one scale more is expected to gain, in the light of the answer at this one.

The hybrid of predictor and cascade: where to start is predicted, whether to go on is seen.

A predictor has seen image and question, and says where to start (`policy.choose` at a starting price). Then
the answer itself tells more: the confidence in it, beside all that the predictor thinks. While the score
expected to be gained by the next finer scale is worth what that costs, at a climbing price, the hybrid goes
on; every scale that is tried is paid for, and the last answer stands. To weigh expected score against cost
before an answer and after it alike is the idea of cascade routing (Dekoninck, Baader and Vechev,
arXiv 2410.10347), which may also skip scales.

`confidence`, `score`, `cost` and `estimates` are `[num_samples, num_scales]` over one ladder, coarsest scale
first.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from predictor.cascades.cascade import Columns, find_prices, pick_hull, space_prices
from predictor.files import damaged, get_array, read_arrays, write_arrays
from predictor.policy.front import Floats, check_price, choose_at_prices, find_unit
from predictor.policy.pricing import check_numbers, find_default, find_within


@dataclass(frozen=True, eq=False)
class ExpectedGain:
    """Score to be gained by one scale more: the chance that the next answer is right, less that of this one.

    `here` and `beyond` `[num_scales - 1, num_scales + 2]` are logistic regressions on the logits of the
    confidence at this scale and of the estimates for all scales; the last column is the intercept.
    """

    here: Floats
    beyond: Floats

    @classmethod
    def fit(cls, confidence: ArrayLike, score: ArrayLike, estimates: ArrayLike) -> Self:
        """From calibration samples, each `[num_samples, num_scales]`."""
        scores = np.asarray(score, dtype=np.float64)
        weights = [
            [_fit_logistic(features, scores[:, column + step]) for step in (0, 1)]
            for column, features in enumerate(cls._make_features(confidence, estimates))
        ]
        here, beyond = np.array(weights).reshape(-1, 2, scores.shape[1] + 2).swapaxes(0, 1)
        return cls(here, beyond)

    def __call__(self, confidence: ArrayLike, estimates: ArrayLike) -> Floats:
        """`[num_samples, num_scales]`; 0 at the finest scale. Each reads the confidence of its own scale."""
        gains = np.zeros(np.shape(confidence))
        for column, features in enumerate(self._make_features(confidence, estimates)):
            gains[:, column] = expit(features @ self.beyond[column]) - expit(features @ self.here[column])
        return gains

    @staticmethod
    def _make_features(confidence: ArrayLike, estimates: ArrayLike) -> list[Floats]:
        sure, chance = (logit(np.clip(values, 1e-4, 1 - 1e-4)) for values in (confidence, estimates))
        constant = np.ones((len(sure), 1))
        return [np.hstack([sure[:, [column]], chance, constant]) for column in range(sure.shape[1] - 1)]


def _fit_logistic(features: Floats, score: Floats) -> Floats:
    """Weights of one logistic regression, the intercept last; `features` end in a column of ones.

    Features are standardised and the intercept is not penalised, so that the penalty neither depends on
    their units nor pulls every probability towards one half; the returned weights are for features that are
    not standardised. A fractional score enters as a right and a wrong sample with fractional weights.
    """
    # Only fitting needs scikit-learn: using a saved hybrid does not wait for its import.
    from sklearn.linear_model import LogisticRegression

    from predictor.classical.tabular import fit_fractional

    features = features[:, :-1]
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    standard = (features - mean) / scale
    # A sample of score 1/2 at the mean of the features, in case all samples are right or all are wrong.
    at_mean = np.zeros((1, standard.shape[1]))
    model = LogisticRegression(max_iter=1000)
    fit_fractional(model, np.concatenate([standard, at_mean]), np.append(score, 0.5))
    weights = model.coef_[0] / scale
    intercept = model.intercept_[0] - weights @ mean
    return np.append(weights, intercept).astype(np.float64)


HYBRID = "hybrid.safetensors"
_ROWS = ("price", "cost", "score", "starting_price", "climbing_price")
_NUM_STARTING_PRICES = _NUM_CLIMBING_PRICES = 48


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Fitted hybrids, one per price, from dear to cheap; on calibration no mix of two others beats any.

    `price` `[num_prices]`, ascending from 0, is that per `unit` of cost at which each becomes the best one
    on the calibration samples; `cost` and `score` are its means there. It starts at what `policy.choose`
    gives for the estimates at `starting_price`, and climbs while `gain` is more than `climbing_price` times
    what the next scale costs, both prices per `unit`. Two prices for all scales, where a cascade has a
    threshold for each: there is less that could fit the calibration samples by chance. `default` is the row
    to use unless told otherwise.
    """

    price: Floats
    cost: Floats
    score: Floats
    starting_price: Floats
    climbing_price: Floats
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
    ) -> Self:
        """Search on calibration samples, which the predictor of the estimates has not been trained on (a
        calibrator may have seen them).

        Of the hybrids on the upper concave hull of (mean cost, mean score) at most `num_prices` are kept,
        those whose costs lie most evenly in the logarithm. ValueError without estimates.
        """
        chances = _need(estimates)
        scores, costs = np.asarray(score, dtype=np.float64), np.asarray(cost, dtype=np.float64)
        unit = find_unit(costs)
        gain = ExpectedGain.fit(confidence, scores, chances)
        worth = _find_worth(gain(confidence, chances), costs, unit)
        climbing_price = _space_climbing_prices(worth)
        starting_price = space_prices(chances, costs, unit, _NUM_STARTING_PRICES)
        firsts = choose_at_prices(chances, costs, starting_price, unit=unit).astype(np.int64)
        traces = [_trace(worth, scores, costs, first, climbing_price) for first in firsts]
        mean_cost, mean_score = np.array(traces).swapaxes(0, 1).reshape(2, -1)
        hull = pick_hull(mean_cost, mean_score, num_prices)
        return cls(
            price=find_prices(mean_cost[hull], mean_score[hull]) * unit,
            cost=mean_cost[hull],
            score=mean_score[hull],
            starting_price=starting_price[hull // len(climbing_price)],
            climbing_price=climbing_price[hull % len(climbing_price)],
            unit=unit,
            gain=gain,
        )

    def climb(
        self, confidence: ArrayLike, cost: ArrayLike, estimates: ArrayLike | None
    ) -> tuple[Columns, Columns]:
        """First and last column tried, each `[num_prices, num_samples]`.

        Of the confidences those are looked at that belong to scales from the first to the last tried.
        """
        chances = _need(estimates)
        first = choose_at_prices(chances, cost, self.starting_price, unit=self.unit).astype(np.int64)
        worth = _find_worth(self.gain(confidence, chances), np.asarray(cost, dtype=np.float64), self.unit)
        last = [_climb(worth, *each) for each in zip(first, self.climbing_price, strict=True)]
        return first, np.stack(last)

    @property
    def num_scales(self) -> int:
        """Of the ladder that it was fitted on."""
        return len(self.gain.here) + 1

    def with_default(self, best_fixed: float, budget: float | None = None, tolerance: float = 0.0) -> Self:
        """The same with the default row of `pricing.find_default`."""
        return replace(self, default=find_default(self.cost, self.score, best_fixed, budget, tolerance))

    def find(self, *, price: float | None = None, budget: float | None = None) -> int:
        """The row for a price per `unit`, or within a budget of mean cost; the default one without either.

        ValueError for both, a negative price, or a budget that no row keeps.
        """
        if price is not None and budget is not None:
            raise ValueError("give a price or a budget, not both")
        check_numbers(price=price, budget=budget)
        if price is not None:
            check_price(price)
            return int(np.flatnonzero(self.price <= price)[-1])
        return self.default if budget is None else find_within(self.cost, budget)

    def at(self, row: int) -> Self:
        """The one hybrid of a row."""
        rows = {name: getattr(self, name)[[row]] for name in _ROWS}
        return replace(self, **rows, default=0)

    def save(self, folder: Path) -> None:
        """Write `hybrid.safetensors`, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ROWS}
        arrays |= {"here": self.gain.here, "beyond": self.gain.beyond}
        arrays |= {"unit": np.array([self.unit]), "default": np.array([self.default])}
        write_arrays(folder / HYBRID, arrays)

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Self | None:
        """What `save` wrote; None where there is none, as an earlier version trained it.

        FolderError for a damaged file. `root` is as in `files.check_file`.
        """
        path = folder / HYBRID
        if not path.exists() and not path.is_symlink():
            return None
        arrays = read_arrays(path, root)
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
        """Raise ValueError for what no fit gives."""
        rows = [getattr(self, name) for name in _ROWS]
        if self.price.ndim != 1 or not self.price.size or any(row.shape != self.price.shape for row in rows):
            raise ValueError(f"rows of the shapes {[row.shape for row in rows]}")
        if self.price[0] != 0 or not (np.diff(self.price) > 0).all() or not (np.diff(self.cost) < 0).all():
            raise ValueError("prices that do not rise from 0, or costs that do not fall")
        shape = (self.num_scales - 1, self.num_scales + 2)
        if self.gain.here.shape != shape or self.gain.beyond.shape != shape:
            raise ValueError(f"regressions of the shapes {self.gain.here.shape} and {self.gain.beyond.shape}")
        if not (self.cost > 0).all() or not ((self.score >= -1e-6) & (self.score <= 1 + 1e-6)).all():
            raise ValueError("costs or scores out of range")
        numbers = [self.price, self.cost, self.score, self.gain.here, self.gain.beyond, np.array(self.unit)]
        if not all(np.isfinite(each).all() for each in numbers) or np.isnan(rows[3:]).any():
            raise ValueError("numbers that are not finite")
        if not self.unit > 0 or not (isinstance(self.default, int) and 0 <= self.default < len(self.price)):
            raise ValueError(f"unit {self.unit}, default row {self.default} of {len(self.price)}")


def _need(estimates: ArrayLike | None) -> Floats:
    if estimates is None:
        raise ValueError("a hybrid starts where a predictor says: give its estimates")
    return np.asarray(estimates, dtype=np.float64)


def _find_worth(gain: Floats, cost: Floats, unit: float) -> Floats:
    """The highest climbing prices at which each sample goes on from each scale but the finest."""
    return gain[:, :-1] / cost[:, 1:] * unit


def _space_climbing_prices(worth: Floats) -> Floats:
    """Ascending, from always to never: between two of them lie about as many decisions each."""
    gains = worth[worth > 0]
    levels = np.linspace(0, 1, _NUM_CLIMBING_PRICES)
    between = np.quantile(gains, levels, method="higher") if gains.size else np.empty(0)
    return np.unique([-np.inf, 0.0, *between, np.inf])


def _trace(
    worth: Floats, score: Floats, cost: Floats, first: Columns, climbing_price: Floats
) -> tuple[Floats, Floats]:
    """Mean cost and score at each climbing price of the samples, which start at `first`."""
    rows, num_prices = np.arange(len(first)), len(climbing_price)
    totals = [np.full(num_prices, values[rows, first].sum()) for values in (cost, score)]
    least = np.full(len(first), np.inf)
    for column in range(worth.shape[1]):
        here = first <= column
        least[here] = np.minimum(least[here], worth[here, column])
        # At so many of the prices, the lowest, a sample has come as far as to leave this scale.
        number = np.searchsorted(climbing_price, least[here])
        gains = cost[here, column + 1], score[here, column + 1] - score[here, column]
        for total, gain in zip(totals, gains, strict=True):
            total += gain.sum() - np.cumsum(np.bincount(number, gain, num_prices + 1))[:-1]
    return totals[0] / len(first), totals[1] / len(first)


def _climb(worth: Floats, first: Columns, price: float) -> Columns:
    """Last column tried of each sample that starts at `first`."""
    last = first.copy()
    for column in range(worth.shape[1]):
        last[(last == column) & (worth[:, column] > price)] += 1
    return last
