"""Training objectives: a loss, and the map from a network's outputs to one estimate per scale."""

from predictor.objectives.base import Correctness, Objective
from predictor.objectives.likelihood import LikelihoodDistillation, LikelihoodRanking
from predictor.objectives.minimum_scale import (
    MinimumScaleClasses,
    MinimumScaleOrdinal,
    SmallestSufficientScale,
)
from predictor.objectives.utility import ExpectedUtility

__all__ = [
    "Correctness",
    "ExpectedUtility",
    "LikelihoodDistillation",
    "LikelihoodRanking",
    "MinimumScaleClasses",
    "MinimumScaleOrdinal",
    "Objective",
    "SmallestSufficientScale",
]
