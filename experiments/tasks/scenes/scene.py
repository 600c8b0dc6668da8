"""A picture before it is drawn: what lies where."""

from dataclasses import dataclass, field
from functools import cached_property

from experiments.tasks.scenes.looks import PLAIN, Look

Box = tuple[int, int, int, int]
# Rows down and columns right from an item to the one beside it.
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a picture. `box` is (left, top, right, bottom) in pixels; row and column count from 1."""

    type: str  # object | character | sign | digit
    box: Box
    color: str
    shape: str = ""
    text: str = ""
    row: int = 0
    column: int = 0
    style: int = 0  # font of a character or sign, handwriting sample of a digit

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn: `size` pixels square."""

    layout: str
    size: int
    ground: str
    texture: str
    seed: int
    items: list[Item] = field(default_factory=list)
    num_rows: int = 0
    num_columns: int = 0
    look: Look = PLAIN

    def of_type(self, type: str) -> list[Item]:
        return [item for item in self.items if item.type == type]

    @cached_property
    def _by_cell(self) -> dict[tuple[int, int], Item]:
        return {(item.row, item.column): item for item in self.items}

    def beside(self, item: Item, relation: str) -> Item | None:
        """What lies in the next cell, as in `beside(item, "left of")`; None where nothing does."""
        down, right = STEPS[relation]
        return self._by_cell.get((item.row + down, item.column + right))
