"""Right or wrong at each scale."""

from torch import Tensor, nn

from predictor.batches import Target
from predictor.objectives.base import Objective


class Correctness(Objective):
    """Binary cross-entropy per scale against the score, which may be fractional (a soft target)."""

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, target.score)

    def estimate(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()
