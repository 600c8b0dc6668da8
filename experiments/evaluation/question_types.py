"""Selection of the question types that are shown: there may be thousands, if a `category` is an id."""

from collections.abc import Iterable, Mapping

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
