"""Ensembles of networks with their objectives."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from predictor.batches import Batch, Target
from predictor.networks.base import Network
from predictor.objectives.base import Objective


class Member(nn.Module):
    """A network with its objective. Parameters of the objective, if any, are trained too."""

    def __init__(self, network: Network, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def compute_loss(self, batch: Batch, target: Target, token_embeddings: Tensor) -> Tensor:
        return self.objective.compute_loss(self.network, batch, target, token_embeddings)

    def forward(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Return estimates `[batch, num_scales]` in [0, 1]."""
        return self.objective.compute_estimates(self.network, batch, token_embeddings)


class Ensemble(nn.ModuleList):
    """Members that are trained together. The output is the mean of their estimates."""

    def __init__(self, members: Iterable[Member]) -> None:
        super().__init__(members)

    def __iter__(self) -> Iterator[Member]:
        for member in super().__iter__():
            assert isinstance(member, Member)
            yield member

    def forward(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Return mean estimates `[batch, num_scales]` in [0, 1]."""
        return torch.stack([member(batch, token_embeddings) for member in self]).float().mean(dim=0)
