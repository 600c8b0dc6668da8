"""Objectives that use the likelihood of the reference instead of the score of the answer."""

import torch
from torch import Tensor, nn

from m3_backbone.arguments import NonNegativeFloat, checked
from m3_backbone.outcomes.labels import Labels
from predictor.batches import Target
from predictor.objectives.base import Objective


class LikelihoodRanking(Objective):
    """Ranking of the scales by NLL, and cross-entropy on the scale with the lowest NLL (AVG-LLaVA).

    In the order of increasing NLL, the log-probabilities of the scales should decrease by a margin: for two
    scales j positions apart, `margin` * j * (difference of their NLL). The hinge losses of all pairs j
    positions apart are averaged, and the averages are summed over j. The estimate is the softmax; the authors
    deploy its argmax. Source: Lan et al., arXiv 2410.02745.
    """

    @checked
    def __init__(
        self,
        num_scales: int,
        *,
        margin: NonNegativeFloat = 0.1,
        rank_weight: NonNegativeFloat = 1.0,
        cross_entropy_weight: NonNegativeFloat = 0.1,
    ) -> None:
        super().__init__(num_scales)
        self.margin, self.rank_weight, self.cross_entropy_weight = margin, rank_weight, cross_entropy_weight

    def prepare(self, train: Labels) -> None:
        """Raise ValueError for labels without likelihoods."""
        _check_likelihoods(train)

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        cross_entropy = nn.functional.cross_entropy(outputs, target.nll.argmin(dim=1))
        rank = rank_by_likelihood(outputs, target.nll, self.margin)
        return self.rank_weight * rank + self.cross_entropy_weight * cross_entropy

    def estimate(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=1)


def rank_by_likelihood(outputs: Tensor, nll: Tensor, margin: float) -> Tensor:
    """Adaptive ranking loss of AVG-LLaVA for outputs and NLL, both `[batch, num_scales]`; a scalar."""
    nll, order = nll.sort(dim=1, stable=True)
    log_probs = outputs.log_softmax(dim=1).gather(1, order)
    loss = outputs.new_zeros(())
    for distance in range(1, outputs.shape[1]):
        margins = margin * distance * (nll[:, distance:] - nll[:, :-distance])
        loss = loss + (log_probs[:, distance:] - log_probs[:, :-distance] + margins).clamp(min=0).mean()
    return loss


class LikelihoodDistillation(Objective):
    """Regression of the reference's likelihood per token, exp(-NLL), at each scale.

    The loss is binary cross-entropy, whose optimum is the mean likelihood. Unlike a score, a likelihood does
    not depend on a single answer, so that the target has less outcome noise. The estimate is the likelihood.
    """

    def prepare(self, train: Labels) -> None:
        """Raise ValueError for labels without likelihoods."""
        _check_likelihoods(train)

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, torch.exp(-target.nll))

    def estimate(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()


def _check_likelihoods(train: Labels) -> None:
    if train.outcomes.options is not None:
        raise ValueError(
            "this objective is trained on the likelihood of the references, which imported outcomes lack: "
            "choose another predictor, such as question_only or linear"
        )
