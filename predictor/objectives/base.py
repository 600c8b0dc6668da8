"""Interface of training objectives, and the default one, correctness at each scale.

An objective defines the loss and the map from a network's outputs to estimates.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from m3_backbone.arguments import checked
from m3_backbone.outcomes.labels import Labels
from predictor.batches import Batch, Target
from predictor.folder import Buildable
from predictor.networks.base import Network


class Objective(nn.Module, Buildable, ABC):
    """Training objective, constructed as `objective(num_scales)` for each network.

    Its parameters, if any, are trained with those of the network. `num_outputs` is the number of outputs that
    the network must have, `num_inputs` the number of its inputs besides the statistics. `prepare` may store
    values of the training labels in buffers.
    """

    num_inputs = 0

    def __init__(self, num_scales: int) -> None:
        super().__init__()
        self.num_scales = num_scales

    @property
    def num_outputs(self) -> int:
        return self.num_scales

    def prepare(self, train: Labels) -> None:
        """Compute buffers from the training labels before the first step; nothing by default."""
        return

    def compute_loss(
        self, network: Network, batch: Batch, target: Target, token_embeddings: Tensor
    ) -> Tensor:
        """Loss of one training step, a scalar."""
        return self(network(batch, token_embeddings), target)

    def compute_estimates(self, network: Network, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Estimates `[batch, num_scales]` in [0, 1] of a trained network."""
        return self.estimate(network(batch, token_embeddings).float())

    @abstractmethod
    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        """Loss of outputs `[batch, num_outputs]`, a scalar."""

    @abstractmethod
    def estimate(self, outputs: Tensor) -> Tensor:
        """Estimates `[batch, num_scales]` in [0, 1] from outputs `[batch, num_outputs]`."""


class Correctness(Objective):
    """Binary cross-entropy per scale against the score, which may be fractional (a soft target).

    With `consistent_only`, only samples are trained on whose score does not fall from any scale to a finer
    one, the consistency filter of Q-Zoom (arXiv 2604.06912).
    """

    @checked
    def __init__(self, num_scales: int, *, consistent_only: bool = False) -> None:
        super().__init__(num_scales)
        self.consistent_only = consistent_only

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        score = target.score
        if self.consistent_only:
            kept = (score.diff(dim=1) >= 0).all(dim=1)
            if not kept.any():
                return 0.0 * outputs.sum()
            outputs, score = outputs[kept], score[kept]
        return nn.functional.binary_cross_entropy_with_logits(outputs, score)

    def estimate(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()
