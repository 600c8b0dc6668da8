"""Expected utility at a price that the network is told: one network for the whole front."""

import math

import torch
from torch import Tensor

from m3_backbone.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, checked
from m3_backbone.outcomes.labels import Labels
from predictor.batches import Batch, Target
from predictor.networks.base import Network
from predictor.objectives.base import Objective


class ExpectedUtility(Objective):
    """The network chooses: softmax over scales, trained for the expected score less what the choice costs.

    A price per sample and step is drawn evenly in the logarithm from `lowest` to `highest` (per answer at
    the finest scale, as in `predictor.policy.front`) and given to the network beside the statistics. The loss
    is minus the expectation of `score - price * cost / unit` under the softmax, less `temperature` times its
    entropy (Williams and Peng 1991): without it the softmax saturates on one scale before it has learned to
    tell samples apart, and its gradient vanishes.

    Estimates come from the choices at `num_prices` fixed prices: `build_estimates`.
    """

    num_inputs = 1
    unit: Tensor

    @checked
    def __init__(
        self,
        num_scales: int,
        *,
        lowest: PositiveFloat = 0.01,
        highest: PositiveFloat = 10.0,
        num_prices: PositiveInt = 24,
        temperature: NonNegativeFloat = 0.05,
    ) -> None:
        super().__init__(num_scales)
        if not 0 < lowest < highest or not 2 <= num_prices <= 1000:
            raise ValueError(f"prices go from lowest {lowest} > 0 to highest {highest}, 2 to 1000 of them")
        self.lowest, self.highest, self.num_prices = lowest, highest, num_prices
        self.temperature = temperature
        self.register_buffer("unit", torch.ones(()))

    @property
    def prices(self) -> Tensor:
        """The grid `[num_prices]`, rising."""
        return torch.logspace(math.log10(self.lowest), math.log10(self.highest), self.num_prices)

    def prepare(self, train: Labels) -> None:
        self.unit = torch.tensor(float(train.inputs.visual_tokens[:, -1].mean()))

    def compute_loss(
        self, network: Network, batch: Batch, target: Target, token_embeddings: Tensor
    ) -> Tensor:
        drawn = torch.rand(len(batch.cost), device=batch.cost.device)
        price = self.lowest * (self.highest / self.lowest) ** drawn
        outputs = self._ask(network, network.encode(batch, token_embeddings), batch, price)
        return self.expect(outputs, target.score - price[:, None] * batch.cost / self.unit)

    def compute_estimates(self, network: Network, batch: Batch, token_embeddings: Tensor) -> Tensor:
        codes = network.encode(batch, token_embeddings)
        choices = [
            self._ask(network, codes, batch, price.expand(len(codes))).argmax(dim=1)
            for price in self.prices.to(codes)
        ]
        return build_estimates(torch.stack(choices, dim=1), batch.cost / self.unit, self.prices.to(codes))

    def expect(self, outputs: Tensor, utility: Tensor) -> Tensor:
        """Minus the mean of expected utility and weighted entropy, of `[batch, num_scales]` each."""
        surprise = -outputs.log_softmax(dim=1)
        return -(outputs.softmax(dim=1) * (utility + self.temperature * surprise)).sum(dim=1).mean()

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        """The loss at price 0."""
        return self.expect(outputs, target.score)

    def estimate(self, outputs: Tensor) -> Tensor:
        """The network's choice at one price; the front needs `compute_estimates`."""
        return outputs.softmax(dim=1)

    def _ask(self, network: Network, codes: Tensor, batch: Batch, price: Tensor) -> Tensor:
        """Outputs at a price `[batch]`, which the network sees in the logarithm, from -1 to 1."""
        middle, half = math.log(self.lowest * self.highest) / 2, math.log(self.highest / self.lowest) / 2
        told = ((price.log() - middle) / half)[:, None]
        return network.read_off(codes, torch.cat([batch.statistics, told], dim=1))


def build_estimates(choices: Tensor, cost: Tensor, prices: Tensor) -> Tensor:
    """Estimates `[batch, num_scales]` in [0, 1] whose policy makes these choices at these prices.

    `choices` `[batch, num_prices]` are positions on the ladder, `cost` `[batch, num_scales]` rising and in
    units of the price, `prices` `[num_prices]` rising. From one price to the next a choice may only become
    coarser: where it would not, the one before is kept. The estimate of the first choice is 1; where a choice
    changes, it falls by the geometric mean of the two prices times the cost that is saved, so that the upper
    hull of (cost, estimate) has its slopes there. A scale that is never chosen gets the estimate of the
    next coarser one that is.

    Choices that no estimates in [0, 1] explain give up more score than there is: whenever the present choice
    could no longer be left at the next switching price, the finest scale for which that holds is taken.
    """
    num_scales = cost.shape[1]
    rows = torch.arange(len(choices), device=choices.device)
    # Switching prices: before the first price, between neighbours, behind the last.
    ratio = prices[-1] / prices[-2]
    switch = torch.cat([(prices[1:] * prices[:-1]).sqrt(), (prices[-1] * prices[-1] * ratio).sqrt()[None]])
    above_coarsest = (cost - cost[:, :1]).double()
    position = torch.arange(num_scales, device=choices.device)

    level = torch.ones(len(choices), dtype=torch.float64, device=choices.device)
    current = torch.full_like(choices[:, 0], num_scales - 1)
    estimates = torch.ones(len(choices), num_scales, dtype=torch.float64, device=choices.device)
    for column in range(len(prices)):
        # At the first price nothing has been given up yet.
        slope = 0.0 if column == 0 else switch[column - 1].double()
        saved = (cost[rows, current][:, None] - cost).double()
        reached = level[:, None] - slope * saved
        allowed = (position <= torch.minimum(choices[:, column], current)[:, None]) & (
            reached >= switch[column].double() * above_coarsest
        )
        # The coarsest is always allowed: rounding must not forbid it.
        allowed[:, 0] = True
        new = (allowed * (position + 1)).argmax(dim=1)
        level = torch.where(new == current, level, reached[rows, new]).clamp(min=0)
        below = position < current[:, None]
        estimates = torch.where(below, level[:, None], estimates)
        current = new
    return torch.where(position < current[:, None], 0.0, estimates).clamp(0, 1)
