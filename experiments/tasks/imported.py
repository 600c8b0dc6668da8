"""`imported`: the task of labels made by `tokenscale import_outcomes`, described by the labels themselves."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from experiments.tasks.base import Sample, Split, Task
from experiments.tasks.images import UnreadableImage, open_image
from m3_backbone.arguments import checked
from m3_backbone.outcomes.manifest import read_manifest

BACKBONE = "imported"


class WithoutImages(UnreadableImage):
    """There are no images: not a problem that a report has to state for every sample."""

    def __str__(self) -> str:
        return ""


class Imported(Task):
    """Task of imported outcomes: their data and division, and the images if a folder is given.

    Args:
        labels: the label folder.
        images: folder of the images that the image ids name, for the gallery of a report; None: none.
    """

    @checked
    def __init__(self, *, name: str, labels: str | Path, images: str | Path | None = None) -> None:
        self.name, self._labels = name, Path(labels)
        self._images = None if images is None else Path(images)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self._labels)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the file of outcomes, as stored with the labels."""
        return str(self._manifest["fingerprints"]["data"])

    @property
    def content(self) -> Mapping[str, Any]:
        """JSON object that determines samples and outcomes, as stored with the labels."""
        return dict(self._manifest["data"])

    @property
    def division(self) -> Mapping[str, Any]:
        """JSON object of the division, as stored with the labels."""
        return dict(self._manifest["division"])

    def samples(self, split: Split) -> Iterator[Sample]:
        """Raise ValueError: nothing can be asked again."""
        refuse_backbone()

    def image(self, image_id: str) -> Image.Image:
        """Return the image of this name in the folder. Raises UnreadableImage."""
        if self._images is None:
            raise WithoutImages(image_id, "these outcomes have no images")
        return open_image(self._images, image_id)


def refuse_backbone(name: str = BACKBONE) -> NoReturn:
    """Raise ValueError: imported outcomes have no backbone that could answer."""
    raise ValueError(
        "imported outcomes have no backbone that could answer: use `tokenscale run experiment=imported "
        "task.name=NAME`, which trains and evaluates"
    )
