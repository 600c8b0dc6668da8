"""Data classes of scenes, items, looks and questions, and their vocabulary."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from zlib import crc32

from experiments.tasks.scenes.wordings import WORDINGS, Wording

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
# Tables have no I, O, Q and Z: at a few pixels they look like 1, 0, 0 and 2.
CHARACTERS = "0123456789ABCDEFGHJKLMNPRSTUVWXY"
# Glyphs that a patch can show: table characters, letters of words, handwritten digits.
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
# Halves of the image: (axis of the center: 0 across, 1 down; whether it is beyond the middle).
HALVES = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}
# On the largest images: one character per patch of a 24 x 24 grid.
MAX_TABLE_SIDE = 24


Box = tuple[int, int, int, int]
# (rows down, columns right) from an item to its neighbor.
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True)
class Look:
    """Style of a data set.

    Args:
        palette: RGB (0 to 255) of every color that questions name.
        fonts: font files of matplotlib, so that an image is the same on every machine.
        textures: textures of the ground, chosen uniformly; a texture may be listed several times.
        size: size of the items, relative to the plain look.
        wordings: wordings of the questions, of which each question gets one.
    """

    palette: Mapping[str, tuple[int, int, int]] = field(default_factory=lambda: COLORS)
    fonts: tuple[str, ...] = ("DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif-Bold.ttf")
    textures: tuple[str, ...] = ("plain", "plain", "noise", "stripes", "checker", "gradient")
    size: float = 1.0
    wordings: tuple[Wording, ...] = WORDINGS["plain"]


PLAIN = Look()

# Palette, fonts, textures and wordings that are not used in training.
SHIFTED = Look(
    palette={
        "red": (168, 22, 44),
        "orange": (240, 118, 50),
        "yellow": (255, 238, 120),
        "green": (108, 190, 70),
        "blue": (70, 140, 235),
        "purple": (160, 90, 210),
        "pink": (255, 105, 165),
        "brown": (96, 60, 38),
        "gray": (112, 118, 124),
        "white": (255, 252, 240),
        "black": (40, 36, 34),
    },
    fonts=("STIXGeneralBol.ttf", "cmb10.ttf", "DejaVuSans-BoldOblique.ttf"),
    textures=("dots", "waves", "blotches"),
    size=0.85,
    wordings=WORDINGS["shifted"],
)
LOOKS = {"plain": PLAIN, "shifted": SHIFTED}


@dataclass(frozen=True, slots=True)
class Item:
    """An item of an image. `box` is (left, top, right, bottom) in pixels; row and column count from 1."""

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
    """Description of an image, `size` pixels square, before it is drawn."""

    layout: str
    size: int
    ground: str
    texture: str
    seed: int
    items: list[Item] = field(default_factory=list)
    num_rows: int = 0
    num_columns: int = 0
    look: Look = PLAIN

    def say(self, form: str, **about: object) -> str:
        """Return the text of a question, as `say("sign", what="word", color="red")`.

        A hash of scene and question chooses among several wordings, so that they leave `rng` unchanged.
        """
        wordings = self.look.wordings
        number = crc32(f"{self.seed} {form} {about}".encode()) % len(wordings)
        return wordings[number][form].format(**about)

    def of_type(self, type: str) -> list[Item]:
        return [item for item in self.items if item.type == type]

    @cached_property
    def _by_cell(self) -> dict[tuple[int, int], Item]:
        return {(item.row, item.column): item for item in self.items}

    def beside(self, item: Item, relation: str) -> Item | None:
        """Return the item in the adjacent cell, as in `beside(item, "left of")`, or None."""
        down, right = STEPS[relation]
        return self._by_cell.get((item.row + down, item.column + right))


@dataclass(frozen=True, slots=True)
class Question:
    """Question about a scene.

    `detail_size` is the height in pixels of the smallest item that has to be recognised; 0 for the whole
    image.
    """

    kind: str
    text: str
    answer: str
    detail_size: int = 0


def unique(items: list[Item], key: Callable[[Item], object]) -> list[Item]:
    """Return the items with a key that no other item has."""
    counts = Counter(key(item) for item in items)
    return [item for item in items if counts[key(item)] == 1]


def smallest(items: list[Item]) -> int:
    """Return the height in pixels of the smallest item; 0 if there is none."""
    return min((item.height for item in items), default=0)
