"""Smallest scale that is nearly as good as the best, per question type and per attribute.

The M3 paper (Cai et al., arXiv 2405.17430, section 4.3) shows that data sets differ in the granularity they
need. Here the same is measured within one data set, over the question types and attributes of its samples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from m3_backbone.outcomes.table import CLUSTER, OutcomeTable

# A scale is sufficient if its mean score is at most this much below the best scale's.
MARGIN = 0.01
NUM_BINS = 5
# With fewer questions a mean is too noisy: one answer of 25 is worth four points.
LEAST_SAMPLES = 25
MAX_ATTRIBUTES = 3


@dataclass(frozen=True, eq=False)
class Need:
    """A group of questions: their number, mean score per scale, column of the smallest sufficient scale."""

    name: str
    num_samples: int
    scores: tuple[float, ...]
    column: int


@dataclass(frozen=True, eq=False)
class NeedMap:
    """Needs by question type and bin of one attribute, `needs[type][bin]`; None if questions are too few."""

    attribute: str
    bins: tuple[str, ...]
    needs: Mapping[str, tuple[Need | None, ...]]


def find_needed_column(scores: ArrayLike, margin: float = MARGIN) -> int:
    """Return the column of the smallest scale within `margin` of the best of `scores` `[num_scales]`."""
    means = np.asarray(scores, dtype=np.float64)
    return int(np.argmax(means >= means.max() - margin - 1e-12))


def tabulate_needs(table: OutcomeTable, margin: float = MARGIN) -> list[Need]:
    """Return the needs of all questions, then of each question type."""
    return [_measure(name, table, rows, margin) for name, rows in _group(table).items()]


def _group(table: OutcomeTable) -> dict[str, np.ndarray]:
    by_type = split_by_type(table)
    return {name_total("all questions", by_type): np.ones(len(table), bool), **by_type}


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
    """Return the needs per question type and bin of an attribute; values must be positive numbers.

    Questions without a positive number are in no bin. Bins hold about equally many questions, over all types
    together. Cells with fewer than `least` questions are None, and types without any cell are left out.
    Raises ValueError if the attribute does not vary.
    """
    values = _read_attribute(table, attribute)
    edges = _find_edges(values, num_bins)
    if len(edges) < 2:
        raise ValueError(f"attribute {attribute!r} does not vary over these samples")
    number = np.where(values > 0, np.searchsorted(edges, values), -1)
    needs = {}
    for name, rows in _group(table).items():
        cells = [rows & (number == index) for index in range(len(edges))]
        needs[name] = tuple(
            _measure(name, table, cell, margin) if cell.sum() >= least else None for cell in cells
        )
    shown = {name: row for name, row in needs.items() if any(row)}
    return NeedMap(attribute, _name_bins(values[values > 0].min(), edges), shown)


def map_attributes(table: OutcomeTable, margin: float = MARGIN) -> list[NeedMap]:
    """Return maps of the first attributes that vary and have a cell with enough questions."""
    names = dict.fromkeys(name for attributes in table.attributes for name in attributes if name != CLUSTER)
    varying = [name for name in names if len(_find_edges(_read_attribute(table, name), NUM_BINS)) > 1]
    maps = [map_needs(table, name, margin=margin) for name in varying]
    return [need_map for need_map in maps if need_map.needs][:MAX_ATTRIBUTES]


def _read_attribute(table: OutcomeTable, name: str) -> np.ndarray:
    """Return the positive numbers of an attribute, `[num_samples]`; 0 for other values."""
    values = np.zeros(len(table))
    for index, attributes in enumerate(table.attributes):
        value = attributes.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf:
            values[index] = value
    return values


def _find_edges(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Return the upper ends of the bins of positive values; each end is a value that occurs."""
    positive = values[values > 0]
    if not positive.size:
        return positive
    inner = np.quantile(positive, np.linspace(0, 1, num_bins + 1)[1:-1], method="inverted_cdf")
    # Equal quantiles merge bins. If all equal the largest value, the smaller values form a second bin.
    edges = np.unique([*inner, positive.max()])
    below = positive[positive < edges[-1]]
    return np.array([below.max(), edges[-1]]) if len(edges) == 1 and below.size else edges


def _name_bins(least: float, edges: np.ndarray) -> tuple[str, ...]:
    first = f"{least:,.6g} to {edges[0]:,.6g}" if least < edges[0] else f"{edges[0]:,.6g}"
    return (first, *(f"to {high:,.6g}" for _, high in pairwise(edges)))


# Largest number of rows of a table or heat map.
MOST_SHOWN = 50


def pick_frequent(counts: Mapping[str, int], most: int = MOST_SHOWN) -> list[str]:
    """Return the question types with the highest counts, at most `most`, in the order of `counts`.

    Ties are broken by the order of `counts`.
    """
    if len(counts) <= most:
        return list(counts)
    ranked = sorted(counts, key=lambda name: -counts[name])
    frequent = set(ranked[:most])
    return [name for name in counts if name in frequent]


def describe_left_out(num_types: int, rest: str = "") -> str:
    """Return a sentence that says how many question types are shown; empty if all are.

    `rest` is a clause that says where to find the others.
    """
    if num_types <= MOST_SHOWN:
        return ""
    return f"The {MOST_SHOWN} most frequent of {num_types:,} question types are shown{rest and f'; {rest}'}."


def name_total(label: str, types: Iterable[str]) -> str:
    """Return `label`, extended if necessary to differ from the names of all question types."""
    taken = set(types)
    while label in taken:
        label = f"{label} (total)"
    return label


def split_by_type(table: OutcomeTable) -> dict[str, np.ndarray]:
    """Return masks of the samples of each question type, by name in alphabetical order."""
    types = list_types(table)
    return {str(name): types == name for name in np.unique(types)}


def list_types(table: OutcomeTable) -> np.ndarray:
    """Return the type of each question, `[num_samples]`; the name of its task if it has none."""
    return np.array([kind or task for kind, task in zip(table.kind, table.task, strict=True)], dtype=str)
