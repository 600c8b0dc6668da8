"""What training reads of a label folder.

Apart from `train`: the jobs of a sweep take along, by value, what is defined in the command that they run,
and a `cached_property` of Python 3.11 holds a lock, which cannot be taken along.
"""

from functools import cached_property
from pathlib import Path

from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.manifest import read_manifest
from predictor.splitting import carve_validation


class LabelSource:
    """The splits of a label folder that training reads: each once, and only when something is trained."""

    def __init__(self, folder: Path, validation_fraction: float, seed: int) -> None:
        self.folder, self.validation_fraction, self.seed = folder, validation_fraction, seed
        self.manifest = read_manifest(folder)

    @cached_property
    def parts(self) -> tuple[Labels, Labels]:
        """(train, validation)"""
        return carve_validation(read_labels(self.folder, "train"), self.validation_fraction, self.seed)

    @cached_property
    def calibration(self) -> Labels:
        return read_labels(self.folder, "calibration")
