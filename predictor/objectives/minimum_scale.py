"""Objectives that predict the smallest sufficient scale: as classes, as ordered classes, and as in CARES.

With fractional scores, the target weight of a scale is the probability that it is the smallest scale whose
score reaches a uniform random threshold: scores of 1/3 at scale 9 and 1 at scale 36 give the weights 1/3 and
2/3. With scores of 0 and 1, one scale has weight 1.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from m3_backbone.arguments import ClosedFraction, checked
from predictor.batches import Batch, Target
from predictor.networks.base import Network
from predictor.objectives.base import Objective


def weigh_smallest(score: Tensor) -> Tensor:
    """Weights `[batch, num_scales + 1]` of each scale as the smallest sufficient one; last: no scale."""
    reached = score.cummax(dim=1).values
    zero, one = torch.zeros_like(reached[:, :1]), torch.ones_like(reached[:, :1])
    return torch.diff(torch.cat([zero, reached, one], dim=1), dim=1)


class MinimumScaleClasses(Objective):
    """Cross-entropy on the smallest sufficient scale, with an additional class for no scale.

    The estimate of a scale is the probability that it or a coarser scale is the smallest sufficient one. This
    assumes that a correct answer stays correct at all finer scales.
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
    Recognition Letters 2020). The loss is that of their package.
    """

    def __init__(self, num_scales: int) -> None:
        super().__init__(num_scales)
        # As in their CoralLayer: decreasing from 1, like the probability of exceeding a scale.
        self.thresholds = nn.Parameter(torch.tensor([rank / num_scales for rank in range(num_scales, 0, -1)]))

    @property
    def num_outputs(self) -> int:
        return 1

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        from coral_pytorch.losses import coral_loss

        exceeds = 1 - target.score.cummax(dim=1).values
        return coral_loss(outputs + self.thresholds, exceeds)

    def estimate(self, outputs: Tensor) -> Tensor:
        # Thresholds are ordered only at the optimum; sorting makes estimates increase with the scale.
        return 1 - (outputs + self.thresholds.sort(descending=True).values).sigmoid()


class SmallestSufficientScale(Objective):
    """Cross-entropy on the smallest sufficient scale; the expected scale is deployed (CARES).

    A scale is sufficient if its score reaches `least` and no finer scale gains more than `gain`; if there is
    none, the finest scale is the target. With p the softmax, CARES deploys the expected resolution, the sum
    of p_k * r_k, rounded up to a scale of the ladder. `resolution` says what r_k is: the position k on the
    ladder, or the side of the picture in tokens, the square root of their number. With x the expected
    resolution as a position, by linear interpolation between two scales, estimates increase from 0 to 1
    between x - 1 and x, so that low prices choose the first scale at or beyond x, and higher prices the scale
    before it. Source: arXiv 2510.19496.
    """

    @checked
    def __init__(
        self,
        num_scales: int,
        *,
        least: ClosedFraction = 0.5,
        gain: ClosedFraction = 0.1,
        resolution: Literal["position", "side"] = "position",
    ) -> None:
        super().__init__(num_scales)
        self.least, self.gain, self.resolution = least, gain, resolution

    def find_target(self, score: Tensor) -> Tensor:
        """Position `[batch]` on the ladder of the smallest sufficient scale."""
        best_finer = score.flip(1).cummax(dim=1).values.flip(1)  # best score at this or a finer scale
        sufficient = (score >= self.least) & (best_finer - score <= self.gain + 1e-6)
        sufficient[:, -1] = True
        return sufficient.int().argmax(dim=1)

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        return nn.functional.cross_entropy(outputs, self.find_target(target.score))

    def compute_estimates(self, network: Network, batch: Batch, token_embeddings: Tensor) -> Tensor:
        outputs = network(batch, token_embeddings).float()
        if self.resolution == "position":
            return self.estimate(outputs)
        return self.estimate_by_side(outputs, batch.cost)

    def estimate(self, outputs: Tensor) -> Tensor:
        position = torch.arange(self.num_scales, device=outputs.device)
        return self._rise((outputs.softmax(dim=1) * position).sum(dim=1, keepdim=True))

    def estimate_by_side(self, outputs: Tensor, num_tokens: Tensor) -> Tensor:
        """Estimates by the expected side; outputs and visual tokens are `[batch, num_scales]`."""
        side = num_tokens.sqrt()
        expected = (outputs.softmax(dim=1) * side).sum(dim=1, keepdim=True)
        # Steps from scale to scale are covered up to the expected side; scales that coincide have no step.
        step = side.diff(dim=1)
        covered = ((expected - side[:, :-1]) / step.clamp(min=1e-6)).clamp(0, 1)
        return self._rise(torch.where(step > 0, covered, 0.0).sum(dim=1, keepdim=True))

    def _rise(self, expected: Tensor) -> Tensor:
        """Estimates that rise to 1 at the expected position `[batch, 1]`."""
        position = torch.arange(self.num_scales, device=expected.device)
        return (position - expected + 1).clamp(0, 1)
