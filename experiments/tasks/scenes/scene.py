"""The closed vocabulary of the pictures: colors, shapes, characters, words."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from experiments.tasks.scenes.render import PLAIN, Look

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 220, 50),
    "green": (44, 160, 60),
    "blue": (35, 85, 200),
    "purple": (130, 60, 175),
    "pink": (245, 140, 190),
    "brown": (125, 75, 40),
    "gray": (128, 128, 128),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
# I, O, Q and Z are left out of tables: at a few pixels they are 1, 0, 0 and 2 to any reader.
CHARACTERS = "0123456789ABCDEFGHJKLMNPRSTUVWXY"
# What a patch of the picture can show of a glyph: table characters, letters of words, handwritten digits.
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# fmt: off
WORDS = (
    "BANK", "BOOK", "BUS", "CAFE", "CITY", "DOCK", "DOOR", "EAST", "EXIT", "FARM", "FISH", "FOOD", "FUEL",
    "GATE", "GOLF", "HALL", "HELP", "HILL", "HOME", "INN", "JAZZ", "KIDS", "KING", "LAKE", "LIFT", "LOST",
    "MAIL", "MENU", "MILK", "NEWS", "NORTH", "OPEN", "PARK", "PIER", "POOL", "PORT", "QUIZ", "REST", "ROAD",
    "SALE", "SHOP", "SLOW", "SOUP", "STOP", "TAXI", "TEAM", "TOWN", "TRAM", "WALK", "WEST", "YARD", "ZOO",
)
# fmt: on
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# Halves of the picture: which coordinate of a center (0: across, 1: down) lies on which side of the middle.
HALVES = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}
# Of the largest pictures: one character to a patch on a grid of 24 x 24.
MAX_TABLE_SIDE = 24


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
