"""Prices for deployment, chosen on the calibration split, with their mean cost and score on it."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from predictor.files import check_keys, damaged, read_json, shorten, write_json
from predictor.policy.front import check_price, find_unit, space_budgets, sweep

PRICES = "prices.json"
# Former name of an operating point -> name.
_FORMER_NAMES = {"risk": "guarantee"}
_POINT = frozenset({"price", "unit", "cost", "score"})
_OPTIONAL = frozenset({"disagreement"})
# A mean of scores that are stored in single precision may exceed 1 by a rounding error.
_ROUNDING = 1e-6
# Prices that differ by less are one: reports round them to six decimals.
_SAME_PRICE = 1e-6
NUM_POINTS = 100


@dataclass(frozen=True)
class OperatingPoint:
    """A price per `unit` of cost (see `policy`), and its mean cost and score on the calibration split.

    `disagreement` is an upper bound of the share of answers that differ from those at the finest scale
    (`experiments.evaluation.disagreement`); None if it was not stored.
    """

    price: float
    unit: float
    cost: float
    score: float
    disagreement: float | None = None


@dataclass(frozen=True)
class PriceList:
    """Operating points of one predictor by decreasing cost, and the default point.

    `named` are points chosen by other rules, such as `guarantee`, whose mean loss is certified.
    """

    default: OperatingPoint
    points: tuple[OperatingPoint, ...]
    named: Mapping[str, OperatingPoint] = field(default_factory=dict)

    @classmethod
    def from_calibration(
        cls,
        estimates: ArrayLike,
        cost: ArrayLike,
        score: ArrayLike,
        budget: float | None = None,
        tolerance: float = 0.0,
    ) -> Self:
        """Return operating points at log-spaced budgets; the default point is that of `choose_price`.

        `estimates`, `cost` and `score` are `[num_samples, num_scales]`. Raises ValueError as `choose_price`.
        """
        front = sweep(estimates, cost, score)
        unit = find_unit(cost)
        budgets = space_budgets(cost, NUM_POINTS)
        rows = np.unique(np.minimum(np.searchsorted(-front.cost, -budgets), len(front.cost) - 1))
        points = tuple(
            OperatingPoint(float(front.price[i]), unit, float(front.cost[i]), float(front.score[i]))
            for i in rows
        )
        return cls(choose_price(estimates, cost, score, budget, tolerance), points)

    def find(
        self, *, price: float | None = None, budget: float | None = None, name: str | None = None
    ) -> OperatingPoint:
        """Return the operating point of a price, a budget or a name; the default point without any of them.

        `price` is per answer at the finest scale, `budget` is a limit of the mean visual tokens on
        calibration, and `name` is `default` or one of `named`. Raises ValueError for several of them, and if
        there is no such point.
        """
        if sum(choice is not None for choice in (price, budget, name)) > 1:
            raise ValueError("give a price or a budget or the name of an operating point, not several")
        check_numbers(price=price, budget=budget)
        if price is not None:
            return self.at_price(price)
        if budget is not None:
            return self.at_budget(budget)
        if name is None or name == "default":
            return self.default
        if name in _FORMER_NAMES:
            name = _FORMER_NAMES[name]
        if name not in self.named:
            known = ", ".join(["default", *self.named])
            raise ValueError(f"no operating point {name!r} was saved with these prices, only {known}")
        return self.named[name]

    def at_budget(self, budget: float) -> OperatingPoint:
        """Return the most expensive listed point whose mean cost on calibration is within `budget`."""
        return self.points[find_within([point.cost for point in self.points], budget)]

    def at_price(self, price: float) -> OperatingPoint:
        """Return the listed point of this price, or one of it with cost and score of the next lower price.

        Prices count as equal if they differ by the rounding of reports, which print six decimals.
        Only a listed price has a bound of its disagreement: scales between those of two points may disagree
        where both agree.
        """
        check_price(price)
        nearest = min(self.points, key=lambda point: abs(point.price - price))
        if abs(nearest.price - price) <= _SAME_PRICE:
            return nearest
        below = [point for point in self.points if point.price <= price]
        return replace(below[-1] if below else self.points[0], price=price, disagreement=None)

    def save(self, folder: Path) -> None:
        """Write `prices.json` atomically. A point without a bound of its disagreement has no such key."""
        content = asdict(self)
        for point in (content["default"], *content["points"], *content["named"].values()):
            if point["disagreement"] is None:
                del point["disagreement"]
        write_json(folder / PRICES, content)

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Self:
        """Load saved prices. `root` is as in `files.check_file`.

        Raises FileNotFoundError if there are no prices, FolderError if one of them is out of range.
        """
        path = folder / PRICES
        if not path.exists() and not path.is_symlink():
            raise FileNotFoundError(f"no prices in {folder}: train the predictor with `tokenscale train`")
        content = check_keys(
            path, read_json(path, root), frozenset({"default", "points"}), frozenset({"named"})
        )
        rows, named_rows = content["points"], content.get("named", {})
        if not isinstance(rows, list) or not rows:
            raise damaged(path, "a list of at least one operating point is missing")
        if not isinstance(named_rows, dict):
            raise damaged(path, "the named operating points are not a JSON object")
        points = tuple(_read_point(path, f"point {number}", row) for number, row in enumerate(rows))
        for point, cheaper in itertools.pairwise(points):
            if cheaper.price < point.price or cheaper.cost > point.cost or cheaper.unit != point.unit:
                raise damaged(path, "the operating points are not in order of decreasing cost in one unit")
        named = {
            _FORMER_NAMES.get(name) or name: _read_point(path, shorten(name, 40), row)
            for name, row in named_rows.items()
        }
        return cls(_read_point(path, "default", content["default"]), points, named)


def _read_point(path: Path, name: str, content: Any) -> OperatingPoint:
    """Return an operating point from JSON. Raises FolderError with its name if a number is out of range."""
    numbers = check_keys(path, content, _POINT, _OPTIONAL)
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
            raise damaged(path, f"{key} of {name} is not a finite number")
    point = OperatingPoint(**numbers)
    if not point.price >= 0 or not point.unit > 0 or not point.cost > 0:
        raise damaged(path, f"price, unit or cost of {name} is below 0, or a unit or cost is 0")
    if not -_ROUNDING <= point.score <= 1 + _ROUNDING:
        raise damaged(path, f"the score of {name} is not between 0 and 1")
    if not 0 < numbers.get("disagreement", 1) <= 1:
        raise damaged(path, f"the disagreement of {name} is not above 0 and at most 1")
    return point


def check_numbers(**values: Any) -> None:
    """Raise ValueError for a value that is neither None nor a number."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number)):
            raise ValueError(f"{name} must be a number, not {value!r}")


def find_within(cost: ArrayLike, budget: float) -> int:
    """Row of the highest of these mean costs, in decreasing order, within a budget.

    Raises ValueError if there is none.
    """
    costs = np.asarray(cost, dtype=np.float64)
    within = np.flatnonzero(costs <= budget)
    if not within.size:
        raise ValueError(f"no price keeps the mean cost within {budget:g}: it is at least {costs[-1]:.1f}")
    return int(within[0])


def find_default(
    cost: ArrayLike, score: ArrayLike, best_fixed: float, budget: float | None = None, tolerance: float = 0.0
) -> int:
    """Default row of mean costs, in decreasing order, and mean scores.

    With a `budget` it is the most expensive row within it. Otherwise it is the cheapest row whose score is at
    most `tolerance` below `best_fixed`, or the row with the highest score if there is none. Raises ValueError
    for a tolerance below 0, and for a budget below every cost.
    """
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is at least 0, got {tolerance}")
    if budget is not None:
        return find_within(cost, budget)
    scores = np.asarray(score, dtype=np.float64)
    is_good_enough = scores >= best_fixed - tolerance - 1e-12
    if not is_good_enough.any():
        return int(scores.argmax())
    return int(np.where(is_good_enough, cost, np.inf).argmin())


def choose_price(
    estimates: ArrayLike,
    cost: ArrayLike,
    score: ArrayLike,
    budget: float | None = None,
    tolerance: float = 0.0,
) -> OperatingPoint:
    """Choose the price to deploy on a split that is used neither for training nor for testing.

    With a `budget`, it is the lowest price whose mean cost is within the budget, whatever the scores.
    Otherwise it is the highest price whose mean score is at most `tolerance` below that of the best fixed
    scale, or the price with the highest mean score if there is none. Arrays are `[num_samples, num_scales]`.
    Raises ValueError if even the cheapest scale costs more than the budget, and for a tolerance below 0.
    """
    front = sweep(estimates, cost, score)
    best_fixed = float(np.asarray(score, dtype=np.float64).mean(axis=0).max())
    row = find_default(front.cost, front.score, best_fixed, budget, tolerance)
    return OperatingPoint(
        float(front.price[row]), find_unit(cost), float(front.cost[row]), float(front.score[row])
    )
