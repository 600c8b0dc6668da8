"""Prices for use, chosen on the calibration split, with their mean cost and score there."""

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
# A mean of scores that are stored in single precision may exceed 1 by a rounding error.
_ROUNDING = 1e-6
NUM_POINTS = 100


@dataclass(frozen=True)
class OperatingPoint:
    """A price per `unit` of cost (see `policy`), and its mean cost and score on the calibration split."""

    price: float
    unit: float
    cost: float
    score: float


@dataclass(frozen=True)
class PriceList:
    """Operating points of one predictor from dear to cheap, and the default one.

    `named` are points that were chosen by another rule, such as `guarantee`, whose mean loss is certified.
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
        """Points at log-spaced budgets; the default point is that of `choose_price`."""
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
        """The operating point of a price, a budget or a name; without any of them the default point.

        `price` is per answer at the finest scale, `budget` a limit of the mean visual tokens on calibration,
        `name` is `default` or one of `named`. ValueError for several of them, or if there is no such point.
        """
        if sum(given is not None for given in (price, budget, name)) > 1:
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
        """The dearest listed point whose mean cost on calibration is within `budget`."""
        return self.points[find_within([point.cost for point in self.points], budget)]

    def at_price(self, price: float) -> OperatingPoint:
        """This price, with cost and score of the listed point with the next lower price."""
        check_price(price)
        below = [point for point in self.points if point.price <= price]
        return replace(below[-1] if below else self.points[0], price=price)

    def save(self, folder: Path) -> None:
        """Write `prices.json` atomically."""
        write_json(folder / PRICES, asdict(self))

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Self:
        """Read what `save` wrote.

        Raises FileNotFoundError if there are no prices, FolderError if one of them is out of range. `root` is
        as in `files.check_file`.
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
            raise damaged(path, "the named operating points are no JSON object")
        points = tuple(_read_point(path, f"point {number}", row) for number, row in enumerate(rows))
        for dear, cheap in itertools.pairwise(points):
            if cheap.price < dear.price or cheap.cost > dear.cost or cheap.unit != dear.unit:
                raise damaged(path, "the operating points do not run from dear to cheap in one unit")
        named = {
            _FORMER_NAMES.get(name) or name: _read_point(path, shorten(name, 40), row)
            for name, row in named_rows.items()
        }
        return cls(_read_point(path, "default", content["default"]), points, named)


def _read_point(path: Path, name: str, content: Any) -> OperatingPoint:
    """An operating point from JSON; FolderError with its name if a number is out of range."""
    numbers = check_keys(path, content, _POINT)
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
            raise damaged(path, f"{key} of {name} is no finite number")
    point = OperatingPoint(**numbers)
    if not point.price >= 0 or not point.unit > 0 or not point.cost > 0:
        raise damaged(path, f"price, unit or cost of {name} is below 0, or a unit or cost is 0")
    if not -_ROUNDING <= point.score <= 1 + _ROUNDING:
        raise damaged(path, f"the score of {name} is not between 0 and 1")
    return point


def check_numbers(**given: Any) -> None:
    """Raise ValueError for a value that is neither None nor a number."""
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number)):
            raise ValueError(f"{name} is a number, and not {value!r}")


def find_within(cost: ArrayLike, budget: float) -> int:
    """Row of the dearest of these mean costs, dear to cheap, within a budget. ValueError if there is none."""
    costs = np.asarray(cost, dtype=np.float64)
    within = np.flatnonzero(costs <= budget)
    if not within.size:
        raise ValueError(f"no price keeps the mean cost within {budget:g}: it is {costs[-1]:.1f} at least")
    return int(within[0])


def find_default(
    cost: ArrayLike, score: ArrayLike, best_fixed: float, budget: float | None = None, tolerance: float = 0.0
) -> int:
    """Default row of mean costs, dear to cheap, and mean scores.

    With a `budget` it is the dearest row within it. Without one, it is the row of least cost whose score is
    at most `tolerance` below `best_fixed`, or if there is none that of the highest score. ValueError for a
    tolerance below 0, or a budget below every cost.
    """
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is at least 0, got {tolerance}")
    if budget is not None:
        return find_within(cost, budget)
    scores = np.asarray(score, dtype=np.float64)
    reaching = scores >= best_fixed - tolerance - 1e-12
    if not reaching.any():
        return int(scores.argmax())
    return int(np.where(reaching, cost, np.inf).argmin())


def choose_price(
    estimates: ArrayLike,
    cost: ArrayLike,
    score: ArrayLike,
    budget: float | None = None,
    tolerance: float = 0.0,
) -> OperatingPoint:
    """Price to deploy, from a split that is neither trained nor tested on.

    With a `budget`, it is the lowest price whose mean cost is within it, whatever the scores. Without one, it
    is the highest price whose mean score is at most `tolerance` below that of the best fixed scale, or if
    there is none the price of the highest mean score. Raises ValueError if even the cheapest scale costs more
    than the budget, or for a tolerance below 0.
    """
    front = sweep(estimates, cost, score)
    best_fixed = float(np.asarray(score, dtype=np.float64).mean(axis=0).max())
    row = find_default(front.cost, front.score, best_fixed, budget, tolerance)
    return OperatingPoint(
        float(front.price[row]), find_unit(cost), float(front.cost[row]), float(front.score[row])
    )
