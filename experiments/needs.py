"""What questions need: the smallest scale that is nearly as good as the best, per kind and per attribute.

The paper's second contribution (Cai et al., arXiv 2405.17430, section 4.3) is that data sets differ in the
granularity they ask for. Here it is measured within one, on whatever its samples say of themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from experiments.metrics import split_kinds
from m3_backbone.outcomes import OutcomeTable

# A mean score within this of the best scale's is as good.
MARGIN = 0.01
NUM_BINS = 5
# Below so many questions a mean is noise: a single answer of 25 is four points.
LEAST_SAMPLES = 25
MAX_ATTRIBUTES = 3


@dataclass(frozen=True, eq=False)
class Need:
    """Some questions: their number, mean score per scale, and the column of the smallest sufficient scale."""

    name: str
    num_samples: int
    scores: tuple[float, ...]
    column: int


@dataclass(frozen=True, eq=False)
class NeedMap:
    """`needs[kind][bin]` over bins of one attribute; None where there are too few questions."""

    attribute: str
    bins: tuple[str, ...]
    needs: Mapping[str, tuple[Need | None, ...]]


def find_needed_column(scores: ArrayLike, margin: float = MARGIN) -> int:
    """Column of the smallest scale whose score is within `margin` of the best of `scores [num_scales]`."""
    means = np.asarray(scores, dtype=np.float64)
    return int(np.argmax(means >= means.max() - margin - 1e-12))


def tabulate_needs(table: OutcomeTable, margin: float = MARGIN) -> list[Need]:
    """All questions, then each kind."""
    groups = {"all questions": np.ones(len(table), bool), **split_kinds(table)}
    return [_measure(name, table, rows, margin) for name, rows in groups.items()]


def _measure(name: str, table: OutcomeTable, rows: np.ndarray, margin: float) -> Need:
    means = table.score[rows].mean(axis=0, dtype=np.float64)
    return Need(name, int(rows.sum()), tuple(means.tolist()), find_needed_column(means, margin))


def map_needs(
    table: OutcomeTable,
    attribute: str,
    *,
    margin: float = MARGIN,
    num_bins: int = NUM_BINS,
    least: int = LEAST_SAMPLES,
) -> NeedMap:
    """Needs per kind and bin of a numeric attribute, where 0 is "does not apply".

    Bins hold about as many questions, kinds together, and cells with less than `least` are left empty.

    ValueError where the attribute has no two values.
    """
    values = np.array([row.get(attribute) or 0 for row in table.attributes], dtype=np.float64)
    known = values[values > 0]
    # Bins are (low, high] between values that occur; quantiles that coincide make one bin of two.
    inner = known
    if known.size:
        inner = np.quantile(known, np.linspace(0, 1, num_bins + 1)[1:-1], method="inverted_cdf")
    edges = np.unique(np.concatenate([inner, known.max(initial=0.0, keepdims=True)]))
    if len(edges) < 2:
        raise ValueError(f"attribute {attribute!r} does not vary over these samples")
    number = np.where(values > 0, np.searchsorted(edges, values), -1)
    needs = {}
    for need in tabulate_needs(table, margin):
        rows = split_kinds(table).get(need.name, np.ones(len(table), bool))
        cells = [rows & (number == index) for index in range(len(edges))]
        needs[need.name] = tuple(
            _measure(need.name, table, cell, margin) if cell.sum() >= least else None for cell in cells
        )
    shown = {name: row for name, row in needs.items() if any(row)}
    return NeedMap(attribute, _name_bins(known.min(), edges), shown)


def map_attributes(table: OutcomeTable, margin: float = MARGIN) -> list[NeedMap]:
    """A map of every numeric attribute that varies, the first few of them."""
    names = dict.fromkeys(
        name
        for row in table.attributes
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    maps: list[NeedMap] = []
    for name in names:
        values = {row.get(name) for row in table.attributes if row.get(name)}
        if len(values) > 1 and len(maps) < MAX_ATTRIBUTES:
            maps.append(map_needs(table, name, margin=margin))
    return maps


def _name_bins(least: float, edges: np.ndarray) -> tuple[str, ...]:
    first = f"{least:.3g} to {edges[0]:.3g}" if least < edges[0] else f"{edges[0]:.3g}"
    return (first, *(f"to {high:.3g}" for _, high in pairwise(edges)))
