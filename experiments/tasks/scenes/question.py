"""One question about a scene, and what the functions that ask share."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from experiments.tasks.scenes.scene import Item


@dataclass(frozen=True, slots=True)
class Question:
    """`detail_size`: height in pixels of what has to be made out; 0 when that is the picture as a whole."""

    kind: str
    text: str
    answer: str
    detail_size: int = 0


def unique(items: list[Item], key: Callable[[Item], object]) -> list[Item]:
    """The items whose key no other one has."""
    counts = Counter(key(item) for item in items)
    return [item for item in items if counts[key(item)] == 1]


def smallest(items: list[Item]) -> int:
    """Height in pixels of the smallest item; 0 without any."""
    return min((item.height for item in items), default=0)
