"""Objectives that predict the smallest sufficient scale: as classes, as an order, and as in CARES.

With fractional scores, each scale has the probability of being the smallest one whose score reaches a uniform
random threshold: scores of 1/3 at scale 9 and 1 at scale 36 make it 9 with weight 1/3 and 36 with weight 2/3.
Scores of 0 and 1 give one scale with weight 1.
"""

import torch
from torch import Tensor, nn

from m3_backbone.arguments import ClosedFraction, checked
from predictor.batches import Target
from predictor.objectives.base import Objective


def weigh_smallest(score: Tensor) -> Tensor:
    """Weights `[batch, num_scales + 1]` of each scale to be the smallest sufficient one; the last of none."""
    reached = score.cummax(dim=1).values
    zero, one = torch.zeros_like(reached[:, :1]), torch.ones_like(reached[:, :1])
    return torch.diff(torch.cat([zero, reached, one], dim=1), dim=1)


class MinimumScaleClasses(Objective):
    """Cross-entropy on the smallest sufficient scale, with one more class for none.

    The estimate of a scale is the probability that it or a coarser one is the smallest sufficient one: it
    assumes that an answer that is correct stays correct at all finer scales.
    """

    @property
    def num_outputs(self) -> int:
        return self.num_scales + 1

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        return nn.functional.cross_entropy(outputs, weigh_smallest(target.score))

    def estimate(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=1).cumsum(dim=1)[:, :-1].clamp(max=1)


class MinimumScaleOrdinal(Objective):
    """Ordinal regression of the smallest sufficient scale: one output and a threshold per scale (CORAL).

    Source: Cao, Mirjalili and Raschka, Rank consistent ordinal regression for neural networks (Pattern
    Recognition Letters 2020); the loss is their package's.
    """

    def __init__(self, num_scales: int) -> None:
        super().__init__(num_scales)
        # As in their CoralLayer: falling from 1, as the probability of exceeding a scale does.
        self.thresholds = nn.Parameter(torch.arange(num_scales, 0, -1) / num_scales)

    @property
    def num_outputs(self) -> int:
        return 1

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        from coral_pytorch.losses import coral_loss

        exceeds = 1 - target.score.cummax(dim=1).values
        return coral_loss(outputs + self.thresholds, exceeds)

    def estimate(self, outputs: Tensor) -> Tensor:
        # Thresholds are ordered only at the optimum; sorting makes estimates rise with the scale.
        return 1 - (outputs + self.thresholds.sort(descending=True).values).sigmoid()


class SmallestSufficientScale(Objective):
    """CARES (arXiv 2510.19496): cross-entropy on the smallest sufficient scale; the expected one is deployed.

    A scale is sufficient if its score reaches `least` and no finer scale gains more than `gain`; if there is
    none, the finest is the target. With p the softmax, CARES deploys the expected position on the ladder,
    x = sum of p_k * k: estimates rise from 0 to 1 between x - 1 and x. At small prices the first scale at or
    beyond x is therefore chosen, and at higher prices the one before it.
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
