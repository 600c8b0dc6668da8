"""`easy_vqa`: 48,248 questions with 13 answers about coloured shapes (Victor Zhou; PyPI, MIT).

The division of the package is kept, 4,000 train and 1,000 test images; calibration is taken out of train.
"""

import importlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.tasks.base import (
    Sample,
    Split,
    Task,
    carve_calibration,
    check_split,
    order_images,
)
from experiments.tasks.images import UnreadableImage, open_image
from m3_backbone.arguments import PromptText, checked
from m3_backbone.outcomes.shards import digest_file

SHAPES = ("circle", "rectangle", "triangle")
OWN_SPLITS = ("train", "test")


class EasyVqa(Task):
    """easy-VQA as installed from PyPI.

    Args:
        suffix: end of every question; LLaVA's is "\\nAnswer the question using a single word or phrase.".
        calibration_fraction: fraction of the train images that becomes the calibration split.
        seed: seed of the choice of these images.
    """

    @checked
    def __init__(
        self,
        *,
        suffix: PromptText = "",
        calibration_fraction: float = 0.1,
        seed: int = 0,
        name: str = "easy_vqa",
    ) -> None:
        if not 0 <= calibration_fraction < 1:
            raise ValueError(f"calibration_fraction={calibration_fraction}: give at least 0 and below 1")
        self.name = name
        self.suffix = suffix
        self.calibration_fraction = calibration_fraction
        self.seed = seed
        self.skipped: list[dict[str, Any]] = []  # the package has no bad rows
        self._folder = _find_data()

    @property
    def content(self) -> dict[str, Any]:
        """JSON object that determines the samples."""
        digests = {split: digest_file(self._questions_file(split))[:16] for split in OWN_SPLITS}
        return {"name": self.name, "suffix": self.suffix, "questions": digests}

    @property
    def division(self) -> dict[str, Any]:
        """JSON object of the settings that divide the images."""
        return {"calibration_fraction": self.calibration_fraction, "seed": self.seed}

    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield all questions of a split; those about one image are consecutive."""
        check_split(split)
        own_split = "test" if split == "test" else "train"
        by_image: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for question, answer, number in json.loads(
            self._questions_file(own_split).read_text(encoding="utf-8")
        ):
            by_image[f"{own_split}/{number}"].append((question, answer))
        split_of: dict[str, Split] = dict.fromkeys(by_image, split)
        if own_split == "train":
            split_of = carve_calibration(by_image, self.calibration_fraction, self.seed)
        for image_id in order_images(by_image):
            if split_of[image_id] != split:
                continue
            for position, (question, answer) in enumerate(by_image[image_id]):
                yield Sample(
                    sample_id=f"{self.name}/{image_id}/{position}",
                    image_id=image_id,
                    task=self.name,
                    split=split,
                    question=question + self.suffix,
                    references=(answer,),
                    metric="exact",
                    attributes={"kind": classify(question)},
                )

    def image(self, image_id: str) -> Image.Image:
        """Return the 64 x 64 image `train/NUMBER` or `test/NUMBER`. Raises UnreadableImage."""
        own_split, _, number = image_id.partition("/")
        if own_split not in OWN_SPLITS or not number.isdecimal():
            raise UnreadableImage(image_id, "easy-VQA's images are train/NUMBER and test/NUMBER")
        return open_image(self._folder, f"{own_split}/images/{number}.png")

    def _questions_file(self, own_split: str) -> Path:
        return self._folder / own_split / "questions.json"


def classify(question: str) -> str:
    """Return the question type: the attribute asked for, or the one said to be present or absent."""
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    about = "shape" if any(shape in words for shape in SHAPES) else "color"
    return f"{about} is absent" if {"no", "not"} & set(words) else f"{about} is present"


def _find_data() -> Path:
    try:
        package = importlib.import_module("easy_vqa")
    except ModuleNotFoundError as error:
        raise ValueError("the task easy_vqa needs the package of that name: pip install easy-vqa") from error
    return Path(str(package.__file__)).parent / "data"
