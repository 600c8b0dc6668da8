"""`scenes`: procedural images and questions that need different scales.

Pooling loses images with many small items. The images therefore range from 1 to 40 objects and from 4 to
144 characters in a table (four times as many on images of 384 pixels), with signs and real handwritten
digits (scikit-learn's) of all sizes down to a few pixels. Crowded images have easy questions too, and
sparse images hard ones. A question does not reveal how crowded its image is: it names cells by their
position from an edge, and signs by their color.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import PIL
from PIL import Image

from experiments.tasks.base import SPLITS, Sample, Split, Task, digest_content
from experiments.tasks.images import UnreadableImage
from experiments.tasks.scenes.corruption import CORRUPTIONS, corrupt
from experiments.tasks.scenes.layout import LAYOUTS, compose, restyle
from experiments.tasks.scenes.questions import KINDS, Question, ask
from experiments.tasks.scenes.render import draw, handwriting_of
from experiments.tasks.scenes.scene import LOOKS, Scene
from experiments.tasks.scenes.wordings import WORDINGS
from m3_backbone.arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, checked

# Increased whenever the same arguments give another image or question.
VERSION = 1
# Arguments that change the questions' words or the images, but no sample id and no reference.
VARIATIONS = ("wording", "rendering", "corruption", "strength")


class Scenes(Task):
    """Unlimited seeded data set: image `i` of a split depends on (seed, split, i) only.

    Args:
        seed: seed of the data set. The embedded backbone is trained on the train split of seed 0.
        num_images: number of images per split.
        questions_per_image: largest number of questions per image; some images have fewer.
        image_size: side of the square images in pixels, at least 64.
        layouts: relative frequency of each layout; 0 for those left out.
        kinds: relative frequency of question types, where it differs from `KINDS`.
        look: `plain`, or `shifted`: other colors, fonts, textures, sizes and wordings, not used in training.
        wording: the same questions in other words: `plain`, `varied` (three wordings) or `shifted`; None for
            that of the look.
        rendering: the same scenes drawn in another look, for the same questions; None for `look`.
        corruption: what the images are corrupted with: `noise`, `blur` or `jpeg`; None for nothing.
        strength: standard deviation of the noise on values of 0 to 255 or of the blur in pixels, or quality
            of the JPEG; None for that of `CORRUPTIONS`.

    Samples that differ in the last four only have equal ids and references. Raises ValueError for unknown
    splits, layouts, question types, looks, wordings or corruptions, and for smaller images.
    """

    @checked
    def __init__(
        self,
        seed: int = 1,
        num_images: Mapping[str, NonNegativeInt] | None = None,
        questions_per_image: PositiveInt = 8,
        image_size: int = 192,
        name: str = "scenes",
        layouts: Mapping[str, NonNegativeFloat] = LAYOUTS,
        kinds: Mapping[str, NonNegativeFloat] | None = None,
        look: str = "plain",
        wording: str | None = None,
        rendering: str | None = None,
        corruption: str | None = None,
        strength: PositiveFloat | None = None,
    ) -> None:
        self.num_images = dict(num_images or {"train": 1000, "calibration": 250, "test": 500})
        if unknown := set(self.num_images) - set(SPLITS):
            raise ValueError(
                f"num_images names unknown splits {sorted(unknown)}: splits are {', '.join(SPLITS)}"
            )
        if image_size < 64:
            raise ValueError(f"image_size={image_size} is too small for tables and crowds: give 64 or more")
        if unknown := set(layouts) - set(LAYOUTS):
            raise ValueError(f"unknown layouts {sorted(unknown)}: layouts are {', '.join(LAYOUTS)}")
        if unknown := set(kinds or {}) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}: question types are {', '.join(KINDS)}")
        choices = (
            ("look", look, LOOKS),
            ("wording", wording, WORDINGS),
            ("rendering", rendering, LOOKS),
            ("corruption", corruption, CORRUPTIONS),
        )
        for argument, value, known in choices:
            if value is not None and value not in known:
                raise ValueError(f"unknown {argument} {value!r}: {argument}s are {', '.join(known)}")
        if strength is not None and corruption is None:
            raise ValueError(f"strength={strength} is that of a corruption: give corruption, or no strength")
        if corruption == "jpeg" and strength is not None and not 1 <= strength <= 95:
            raise ValueError(f"strength={strength} is no quality of a JPEG: give 1 to 95")
        self.look = look
        self.wording, self.rendering, self.corruption = wording, rendering, corruption
        self.strength = strength or (CORRUPTIONS[corruption] if corruption else None)
        self.name = name
        self.layouts = dict(layouts)
        self.kinds = {**KINDS, **(kinds or {})}
        self.seed = seed
        self.questions_per_image = questions_per_image
        self.image_size = image_size
        self.skipped: list[dict[str, Any]] = []

    @property
    def fingerprint(self) -> str:
        """Hex digest of the arguments that change a sample, and of the version of Pillow."""
        return digest_content(self.content)

    @property
    def content(self) -> dict[str, Any]:
        """JSON object that determines the samples."""
        return {
            "name": self.name,
            "seed": self.seed,
            "questions_per_image": self.questions_per_image,
            "image_size": self.image_size,
            "layouts": list(self.layouts.items()),
            "kinds": list(self.kinds.items()),
            "look": self.look,
            "version": VERSION,
            "pillow": PIL.__version__,
            # Left out where they are None, as in labels that were made before they existed.
            **{name: getattr(self, name) for name in VARIATIONS if getattr(self, name) is not None},
        }

    @property
    def division(self) -> dict[str, Any]:
        """JSON object with the number of images per split."""
        return {"num_images": self.num_images}

    @property
    def image_set(self) -> str:
        """Name of the collection of images; another seed, size or look gives other images."""
        return f"{self.name} seed={self.seed} image_size={self.image_size} look={self.look}"

    def scene(self, split: Split, index: int) -> tuple[Scene, list[Question]]:
        """Return the scene of image `index` of a split, and its questions."""
        rng = random.Random(f"{self.seed}/{split}/{index}")
        handwriting = handwriting_of(split)[1].tolist()
        look = LOOKS[self.look]
        if self.wording is not None:
            look = replace(look, wordings=WORDINGS[self.wording])
        scene = compose(rng, self.image_size, handwriting, self.layouts, look)
        questions = ask(scene, rng, self.questions_per_image, self.kinds)
        return restyle(scene, LOOKS[self.rendering]) if self.rendering else scene, questions

    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield the samples of a split, image by image."""
        for index in range(self.num_images.get(split, 0)):
            scene, questions = self.scene(split, index)
            image_id = f"{split}-{index:06d}"
            for number, question in enumerate(questions):
                yield Sample(
                    sample_id=f"{image_id}-{number}",
                    image_id=image_id,
                    task=self.name,
                    split=split,
                    question=question.text,
                    references=(question.answer,),
                    metric="exact",
                    attributes={
                        "kind": question.kind,
                        "layout": scene.layout,
                        "num_items": len(scene.items),
                        "detail_size": question.detail_size,
                    },
                )

    def image(self, image_id: str) -> Image.Image:
        """Return the image with this id. Raises UnreadableImage for an id of another form."""
        split, _, index = image_id.partition("-")
        if split not in SPLITS or not index.isdecimal():
            raise UnreadableImage(image_id, "no scene has this id: ids look like test-000123")
        scene, _ = self.scene(split, int(index))
        image = draw(scene, split)
        if self.corruption is None:
            return image
        assert self.strength is not None
        return corrupt(image, self.corruption, self.strength, scene.seed)
