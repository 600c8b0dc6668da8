"""What questions need: the smallest scale that is nearly as good as the best, per kind and per attribute.

The paper's second contribution (Cai et al., arXiv 2405.17430, section 4.3) is that data sets differ in the
granularity they ask for. Here it is measured within one, on whatever its samples say of themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from m3_backbone.outcomes.table import OutcomeTable

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
    return [_measure(name, table, rows, margin) for name, rows in _group(table).items()]


def _group(table: OutcomeTable) -> dict[str, np.ndarray]:
    kinds = split_by_type(table)
    return {name_total("all questions", kinds): np.ones(len(table), bool), **kinds}


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
    """Needs per kind and bin of an attribute; what is no positive number is "does not apply".

    Bins hold about as many questions, kinds together; cells with less than `least` are left empty, kinds
    without any cell left out. ValueError where the attribute has no two values.
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
    """A map of the first few attributes that vary and have a cell with enough questions."""
    names = dict.fromkeys(name for row in table.attributes for name in row)
    varying = [name for name in names if len(_find_edges(_read_attribute(table, name), NUM_BINS)) > 1]
    maps = [map_needs(table, name, margin=margin) for name in varying]
    return [found for found in maps if found.needs][:MAX_ATTRIBUTES]


def _read_attribute(table: OutcomeTable, name: str) -> np.ndarray:
    """Its positive numbers, `[num_samples]`; 0 for everything else."""
    values = np.zeros(len(table))
    for index, row in enumerate(table.attributes):
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf:
            values[index] = value
    return values


def _find_edges(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Upper ends of the bins of what is positive, values that occur; a single one where nothing varies."""
    known = values[values > 0]
    if not known.size:
        return known
    inner = np.quantile(known, np.linspace(0, 1, num_bins + 1)[1:-1], method="inverted_cdf")
    # Quantiles that coincide make one bin of two; where all are the largest value, the rest is the other bin.
    edges = np.unique([*inner, known.max()])
    below = known[known < edges[-1]]
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


def describe_left_out(num_types: int, rest: str = "", most: int = MOST_SHOWN) -> str:
    """Return the sentence that says how many question types are shown; empty where all are.

    `rest` says where to find the others.
    """
    if num_types <= most:
        return ""
    return f"The {most} most frequent of {num_types:,} question types are shown{rest and f'; {rest}'}."


def name_total(label: str, types: Iterable[str]) -> str:
    """Return the name of the row of all question types; it differs from the names of all types."""
    taken = set(types)
    while label in taken:
        label = f"{label} (total)"
    return label


def split_by_type(table: OutcomeTable) -> dict[str, np.ndarray]:
    """Return masks of the samples of each question type, by name in alphabetical order."""
    types = list_types(table)
    return {str(name): types == name for name in np.unique(types)}


def list_types(table: OutcomeTable) -> np.ndarray:
    """Return the type of each question, `[num_samples]`; the name of the task where a question has none."""
    return np.array([kind or task for kind, task in zip(table.kind, table.task, strict=True)], dtype=str)
