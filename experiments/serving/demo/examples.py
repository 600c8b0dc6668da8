"""Pictures that the demo offers, with questions: training samples of the task."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from PIL import Image

from experiments.tasks.base import Sample, Task
from m3_backbone.images import UnreadableImage

log = logging.getLogger(__name__)

_MAX_SAMPLES = 400  # that are read in search of question types


@dataclass(frozen=True, eq=False)
class Example:
    """A picture with a question about it."""

    image: Image.Image
    question: str


@dataclass(frozen=True, eq=False)
class Offer:
    """Examples, and one question of each question type by the name of the type."""

    examples: tuple[Example, ...] = ()
    questions: Mapping[str, str] = field(default_factory=dict)


def find_offer(task: Task, num_examples: int) -> Offer:
    """Return pictures of the training split, whose questions are of as many types as possible.

    Test pictures are never offered, so that nobody gets to know them. Pictures that cannot be read are left
    out.
    """
    samples = list(itertools.islice(task.samples("train"), _MAX_SAMPLES))
    examples = tuple(itertools.islice(_pick(task, samples), num_examples))
    questions: dict[str, str] = {}
    for sample in samples:
        questions.setdefault(_type_of(sample), sample.question)
    return Offer(examples, dict(sorted(questions.items())))


def _pick(task: Task, samples: list[Sample]) -> Iterator[Example]:
    """Yield one question about each image, of the question type with the fewest so far."""
    counts: Counter[str] = Counter()
    for image_id, of_image in itertools.groupby(samples, lambda sample: sample.image_id):
        sample = min(of_image, key=lambda sample: counts[_type_of(sample)])
        try:
            image = task.image(image_id)
        except UnreadableImage as error:
            log.warning("not offered: %s", error)
            continue
        counts[_type_of(sample)] += 1
        yield Example(image, sample.question)


def _type_of(sample: Sample) -> str:
    return str(sample.attributes.get("kind") or "questions")
