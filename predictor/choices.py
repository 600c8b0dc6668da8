"""A scale chosen for a question, and what the choice rests on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_backbone.outcomes.labels import Inputs
from predictor.policy import Floats


@dataclass(frozen=True)
class Choice:
    """A scale chosen before answering, and what the choice rests on: estimates and costs, one per scale."""

    scale: int
    scales: tuple[int, ...]
    estimates: tuple[float, ...]
    visual_tokens: tuple[int, ...]

    @property
    def cost(self) -> int:
        """Visual tokens of the answer."""
        return self.visual_tokens[self.scales.index(self.scale)]


def list_choices(columns: NDArray[np.integer], estimates: Floats, inputs: Inputs) -> list[Choice]:
    """One for each question, of its column of the ladder `[num_questions]`."""
    return [
        Choice(inputs.scales[column], inputs.scales, tuple(row.tolist()), tuple(cost.tolist()))
        for column, row, cost in zip(columns, estimates, inputs.visual_tokens, strict=True)
    ]
