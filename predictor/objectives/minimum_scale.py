"""The smallest scale that suffices, as classes, as an order, and as CARES asks for it.

A score in [0, 1] says of every threshold in [0, 1] whether the answer passes it. So scores say with which
weight each scale is the smallest one that passes a threshold drawn at random: `1/3` at scale 9 and `1` at 36
make it 9 with weight 1/3 and 36 with weight 2/3. Nothing is rounded, and scores of 0 and 1 give one scale.
"""

import torch
from coral_pytorch.losses import coral_loss
from torch import Tensor, nn

from m3_backbone.arguments import ClosedFraction, checked
from predictor.batches import Target
from predictor.objectives.base import Objective


def weigh_smallest(score: Tensor) -> Tensor:
    """Weights `[batch, num_scales + 1]` of each scale being the smallest sufficient one; last, of none."""
    reached = score.cummax(dim=1).values
    zero, one = torch.zeros_like(reached[:, :1]), torch.ones_like(reached[:, :1])
    return torch.diff(torch.cat([zero, reached, one], dim=1), dim=1)


class MinimumScaleClasses(Objective):
    """Cross-entropy on the smallest sufficient scale, `none` being one more class.

    The estimate of a scale is the chance that it or a coarser one is the smallest sufficient one: as if an
    answer, once right, stayed right at every finer scale.
    """

    @property
    def num_outputs(self) -> int:
        return self.num_scales + 1

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        return nn.functional.cross_entropy(outputs, weigh_smallest(target.score))

    def estimate(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=1).cumsum(dim=1)[:, :-1].clamp(max=1)


class MinimumScaleOrdinal(Objective):
    """The same classes as an order: one output, and a threshold per scale that is learned along (CORAL).

    Source: Cao, Mirjalili and Raschka, Rank consistent ordinal regression for neural networks (Pattern
    Recognition Letters 2020); the loss is their package's.
    """

    def __init__(self, num_scales: int) -> None:
        super().__init__(num_scales)
        # As in their CoralLayer: falling from 1, so that chances of exceeding a scale fall with it.
        self.thresholds = nn.Parameter(torch.arange(num_scales, 0, -1) / num_scales)

    @property
    def num_outputs(self) -> int:
        return 1

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        exceeds = 1 - target.score.cummax(dim=1).values
        return coral_loss(outputs + self.thresholds, exceeds)

    def estimate(self, outputs: Tensor) -> Tensor:
        # Thresholds are in order at the optimum only; sorting keeps estimates from falling with the scale.
        return 1 - (outputs + self.thresholds.sort(descending=True).values).sigmoid()


class SmallestSufficientScale(Objective):
    """CARES (arXiv 2510.19496): cross-entropy on the smallest sufficient scale, the expected one is deployed.

    A scale is sufficient when its score reaches `least` and no finer one gains more than `gain`; where none
    is, the finest is the target. With p the softmax, the expected position on the ladder, x = sum of p_k * k,
    is what CARES deploys: estimates rise from 0 to 1 between x - 1 and x. So at small prices the first scale
    at or beyond x is chosen, and as the price rises the one before.
    """

    @checked
    def __init__(self, num_scales: int, *, least: ClosedFraction = 0.5, gain: ClosedFraction = 0.1) -> None:
        super().__init__(num_scales)
        self.least, self.gain = least, gain

    def find_target(self, score: Tensor) -> Tensor:
        """Position `[batch]` on the ladder of the smallest sufficient scale."""
        best_from_here = score.flip(1).cummax(dim=1).values.flip(1)
        sufficient = (score >= self.least) & (best_from_here - score <= self.gain + 1e-6)
        sufficient[:, -1] = True
        return sufficient.int().argmax(dim=1)

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        return nn.functional.cross_entropy(outputs, self.find_target(target.score))

    def estimate(self, outputs: Tensor) -> Tensor:
        position = torch.arange(self.num_scales, device=outputs.device)
        expected = (outputs.softmax(dim=1) * position).sum(dim=1, keepdim=True)
        return (position - expected + 1).clamp(0, 1)
