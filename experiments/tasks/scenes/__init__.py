"""`scenes`: procedural pictures and questions whose needed scale truly varies.

What pooling destroys is many things at once, so pictures run from one object to crowds of 40, from four
characters to tables of 144 (on pictures of 384 pixels, four times as many), with signs and real handwritten
digits (scikit-learn's) at sizes from huge to a few pixels; easy questions are asked of crowded pictures,
hard ones of sparse ones. Nor does a question say how crowded its picture is: cells are asked for by their
place from an edge, signs by their color.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import PIL
from PIL import Image

from experiments.tasks.base import SPLITS, Sample, Split, Task, digest_content
from experiments.tasks.images import UnreadableImage
from experiments.tasks.scenes.layout import LAYOUTS, compose
from experiments.tasks.scenes.questions import KINDS, Question, ask
from experiments.tasks.scenes.render import draw, handwriting_of
from experiments.tasks.scenes.scene import LOOKS, Scene
from m3_backbone.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt, checked

# Raised whenever another picture or question comes of the same arguments.
VERSION = 1


class Scenes(Task):
    """Seeded, endless: picture number `i` of a split depends on nothing but (seed, split, i).

    Args:
        seed: another seed is another data set. The embedded backbone is trained on seed 0's train split.
        num_images: pictures per split.
        questions_per_image: at most so many questions on a picture; some pictures answer fewer.
        image_size: side of the square pictures in pixels.
        layouts: how often each layout is drawn, relative to the others; those left out are not drawn.
        kinds: how often kinds of questions are tried, where that is not as in `KINDS`.
        look: `plain`, or `shifted`: other colors, fonts, textures, sizes and wordings, never trained on.
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
    ) -> None:
        self.num_images = dict(num_images or {"train": 1000, "calibration": 250, "test": 500})
        if unknown := set(self.num_images) - set(SPLITS):
            raise ValueError(
                f"num_images names unknown splits {sorted(unknown)}: splits are {', '.join(SPLITS)}"
            )
        if image_size < 64:
            raise ValueError(f"image_size={image_size} leaves no room for tables and crowds: use 64 or more")
        if unknown := set(layouts) - set(LAYOUTS):
            raise ValueError(f"unknown layouts {sorted(unknown)}: layouts are {', '.join(LAYOUTS)}")
        if unknown := set(kinds or {}) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}: kinds are {', '.join(KINDS)}")
        if look not in LOOKS:
            raise ValueError(f"unknown look {look!r}: looks are {', '.join(LOOKS)}")
        self.look = look
        self.name = name
        self.layouts = dict(layouts)
        self.kinds = {**KINDS, **(kinds or {})}
        self.seed = seed
        self.questions_per_image = questions_per_image
        self.image_size = image_size
        self.set_aside: list[dict[str, Any]] = []

    @property
    def fingerprint(self) -> str:
        """Of the arguments that change a sample, and of what decides on its pixels."""
        return digest_content(self.content)

    @property
    def content(self) -> dict[str, Any]:
        """What the samples are made of."""
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
        }

    @property
    def division(self) -> dict[str, Any]:
        """How many pictures each split has."""
        return {"num_images": self.num_images}

    @property
    def image_set(self) -> str:
        """Pictures of another seed, size or look are other pictures with the same ids."""
        return f"{self.name} seed={self.seed} image_size={self.image_size} look={self.look}"

    def scene(self, split: Split, index: int) -> tuple[Scene, list[Question]]:
        """Picture number `index` of a split before it is drawn, with its questions."""
        rng = random.Random(f"{self.seed}/{split}/{index}")
        handwriting = handwriting_of(split)[1].tolist()
        scene = compose(rng, self.image_size, handwriting, self.layouts, LOOKS[self.look])
        return scene, ask(scene, rng, self.questions_per_image, self.kinds)

    def samples(self, split: Split) -> Iterator[Sample]:
        """The samples of a split, picture by picture."""
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
        """The picture of an `image_id` that `samples` gave."""
        split, _, index = image_id.partition("-")
        if split not in SPLITS or not index.isdecimal():
            raise UnreadableImage(image_id, "no scene has this id: ids look like test-000123")
        return draw(self.scene(split, int(index))[0], split)
