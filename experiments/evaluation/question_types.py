"""Which question types are shown where there are thousands, as where a `category` is an id."""

from collections.abc import Iterable, Mapping

# Rows of a table, or of a heat map, that can be read and drawn.
MOST_SHOWN = 50


def pick_frequent(counts: Mapping[str, int], most: int = MOST_SHOWN) -> list[str]:
    """Return the question types with the highest counts, at most `most`, in the order of `counts`.

    Of types with equal counts those that come first are taken.
    """
    if len(counts) <= most:
        return list(counts)
    ranked = sorted(counts, key=lambda name: -counts[name])
    frequent = set(ranked[:most])
    return [name for name in counts if name in frequent]


def describe_left_out(num_types: int, rest: str = "", most: int = MOST_SHOWN) -> str:
    """Return the sentence that says how many question types are shown; empty where all are.

    `rest` says where the others are, if anywhere.
    """
    if num_types <= most:
        return ""
    return f"The {most} most frequent of {num_types:,} question types are shown{rest and f'; {rest}'}."


def name_total(label: str, types: Iterable[str]) -> str:
    """Return the name of the row of all question types, told apart from a type that is called so."""
    taken = set(types)
    while label in taken:
        label = f"{label} (total)"
    return label
