"""How pictures look and how questions are worded, apart from what is shown and asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from experiments.tasks.scenes.vocabulary import COLORS

_PLAIN_WORDING = {
    "background": "What color is the background?",
    "dominant": "What color are most {noun}?",
    "existence": "Is there {thing}?",
    "existence_half": "Is there {thing} in the {half} half?",
    "count": "How many {noun} are there?",
    "count_half": "How many {noun} are in the {half} half?",
    "shape": "What shape is the {color} object?",
    "color": "What color is the {shape}?",
    "position": "Where is the {name}?",
    "neighbor_color": "What color is the object {relation} the {name}?",
    "neighbor_shape": "What shape is the object {relation} the {name}?",
    "cell": "What character is in {row}, {column}?",
    "sign": "What {what} is on the {color} sign?",
    "sign_color": "What color is the sign that says {text}?",
    "digit": "What digit is handwritten?",
    "digit_color": "What digit is handwritten in {color}?",
}


@dataclass(frozen=True)
class Look:
    """Style of a data set.

    Args:
        palette: RGB of every color that questions name.
        fonts: files that matplotlib ships, so that a picture is the same on every machine.
        textures: of the ground; each is drawn equally often, twice where it is named twice.
        size: of the items, relative to those of the plain look.
        wording: questions by their form; in braces what they are about.
    """

    palette: Mapping[str, tuple[int, int, int]] = field(default_factory=lambda: COLORS)
    fonts: tuple[str, ...] = ("DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif-Bold.ttf")
    textures: tuple[str, ...] = ("plain", "plain", "noise", "stripes", "checker", "gradient")
    size: float = 1.0
    wording: Mapping[str, str] = field(default_factory=lambda: _PLAIN_WORDING)

    def say(self, form: str, **about: object) -> str:
        """A question, as `say("sign", what="word", color="red")`."""
        return self.wording[form].format(**about)


PLAIN = Look()

# No palette, font, texture or wording of it was seen in training. The wordings keep to the words of `scenes`
# and `easy_vqa`, in another order: new words would ask for a dictionary, not for a look at the picture.
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
    wording={
        "background": "what is the color of the background?",
        "dominant": "what is the color of most {noun}?",
        "existence": "does the image contain {thing}?",
        "existence_half": "does the {half} half of the image contain {thing}?",
        "count": "how many {noun} are in the image?",
        "count_half": "how many {noun} are in the {half} half of the image?",
        "shape": "what is the shape of the {color} object?",
        "color": "what is the color of the {shape}?",
        "position": "where is the {name} in the image?",
        "neighbor_color": "what is the color of the object {relation} the {name}?",
        "neighbor_shape": "what is the shape of the object {relation} the {name}?",
        "cell": "what character does {row}, {column} contain?",
        "sign": "what {what} does the {color} sign contain?",
        "sign_color": "what is the color of the sign that says {text}?",
        "digit": "what handwritten digit is present?",
        "digit_color": "what is the digit handwritten in {color}?",
    },
)
LOOKS = {"plain": PLAIN, "shifted": SHIFTED}
