"""What networks are trained on: logits `[batch, num_scales]`, batch and target in, a scalar loss out."""

from torch import Tensor, nn

from predictor.batches import Batch, Target


class Correctness(nn.Module):
    """Binary cross-entropy per scale against the score, which may be fractional (soft targets)."""

    def forward(self, logits: Tensor, batch: Batch, target: Target) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, target.score)
