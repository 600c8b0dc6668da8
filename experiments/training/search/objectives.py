"""What the trials of a search are measured by, all of it on validation samples."""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.training.search.study import Direction


@dataclass(frozen=True)
class Objective:
    """One figure of a trial, and which way it should go."""

    direction: Direction
    label: str


OBJECTIVES: Mapping[str, Objective] = {
    "recovered": Objective("maximize", "part of the mix-to-oracle gap recovered on validation"),
    "tokens": Objective("minimize", "mean visual tokens at the default price, validation"),
    "flops": Objective("minimize", "the predictor's own FLOPs per question"),
    "parameters": Objective("minimize", "parameters"),
}
