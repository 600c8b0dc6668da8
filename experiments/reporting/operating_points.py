"""Operating points of the policies of an evaluation: what a reader gets for a budget of mean cost.

The slider of the report chooses among these points and shows their numbers. It computes none of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from experiments.evaluation.comparison import PolicyResult
from experiments.evaluation.fronts import Floats
from experiments.evaluation.metrics import point_cost, point_score
from experiments.evaluation.statistics import Estimate
from experiments.reporting.findings import Findings
from experiments.reporting.numbers import MISSING, format_score, format_tokens
from experiments.reporting.tables import Table

Prices = TypeVar("Prices", float, Floats)

# Decimals of a price, as in metrics.json.
_DECIMALS = 6


@dataclass(frozen=True, eq=False)
class PointRow:
    """One operating point: chosen on the calibration samples, measured on the test samples.

    `budget` is its mean cost on calibration, the smallest budget that allows it. `options` are those of
    `answer` and `serve` that use it; empty for a policy that these commands do not have. `saved` is the mean
    cost below that of the finest scale.
    """

    policy: str
    budget: float
    options: str
    cost: Estimate
    score: Estimate
    saved: float
    saved_share: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells of the table of operating points, without the policy."""
        return (
            format_tokens(self.budget),
            format_tokens(self.cost.value),
            format_score(self.score),
            f"{format_tokens(self.saved)} ({self.saved_share:.0%})",
            self.options or MISSING,
        )


def list_points(findings: Findings) -> list[PointRow]:
    """Return the operating points of every policy, from cheap to expensive, in the order of the policies."""
    return [row for result in findings.comparison.policies for row in _list_points(result, findings)]


def _list_points(result: PolicyResult, findings: Findings) -> list[PointRow]:
    finest = float(findings.comparison.fixed_cost.value[-1])
    cost, score = result[point_cost], result[point_score]
    return [
        PointRow(
            result.name,
            float(budget),
            write_options(result, float(price), findings),
            cost[number],
            score[number],
            saved=finest - float(cost.value[number]),
            saved_share=1 - float(cost.value[number]) / finest,
        )
        for number, (budget, price) in enumerate(zip(result.policy.cost, result.policy.price, strict=True))
    ]


def find_default_budget(result: PolicyResult, findings: Findings) -> float:
    """Return the budget of the operating point with the price nearest to the default price."""
    prices = result.policy.price
    if result.name in findings.units:
        prices = _convert_prices(prices, result, findings)
    return float(result.policy.cost[abs(prices - result.default.price).argmin()])


def write_options(result: PolicyResult, price: float, findings: Findings) -> str:
    """Return the options with which `answer` and `serve` use a policy at a price; empty if they cannot.

    They have predictors, with prices per the `units` of training, and the hybrid that starts from one.
    """
    if result.name in findings.units:
        return f"price={write_price(_convert_prices(price, result, findings))}"
    if findings.starts_from.get(result.name) is not None:
        return f"escalate=true price={write_price(price)}"
    return ""


def _convert_prices(prices: Prices, result: PolicyResult, findings: Findings) -> Prices:
    """Convert prices of a policy, per its unit of cost, to prices per the unit of training.

    The latter is a number of stored units of cost; imported costs are stored as whole numbers of a unit.
    """
    return prices * (findings.units[result.name] * findings.stored_unit / result.policy.unit)


def write_price(price: float) -> str:
    """Return a price with six decimals, rounded up: a lower price could choose a finer scale."""
    rounded = math.ceil(price * 10**_DECIMALS - 1e-9) / 10**_DECIMALS
    return f"{rounded:.{_DECIMALS}f}".rstrip("0").rstrip(".")


def tabulate_points(rows: Sequence[PointRow], findings: Findings) -> Table:
    """Tabulate operating points: budget, realized cost and score, savings, options of `answer`."""
    comparison = findings.comparison
    caption = (
        f"Operating points: chosen on {comparison.num_calibration_samples:,} calibration samples, where "
        f"their mean cost is the budget, and measured on {comparison.num_samples:,} test samples with "
        f"{comparison.confidence:.0%} intervals; saved: mean {comparison.measure.noun} below the finest scale"
    )
    header = ("policy", "budget", comparison.measure.noun, "score", "saved", "options")
    return Table(caption, header, tuple((row.policy, *row.cells) for row in rows), name="points")
