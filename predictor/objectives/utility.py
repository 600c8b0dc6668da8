"""Objective of expected utility at a price that is an input: one network for the whole front."""

import math

import torch
from torch import Tensor

from m3_backbone.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, checked
from m3_backbone.outcomes.labels import Labels
from predictor.batches import Batch, Target
from predictor.networks.base import Network
from predictor.objectives.base import Objective


class ExpectedUtility(Objective):
    """Softmax over scales, trained for the expected score minus the price of the choice.

    For each sample and step a log-uniform price from `lowest` to `highest` (per answer at the finest scale,
    as in `predictor.policy.front`) is drawn and given to the network after the statistics. The loss is minus
    the expectation of `score - price * cost / unit` under the softmax, minus `temperature` times its entropy
    (Williams and Peng 1991). Without the entropy, the softmax saturates on one scale before it has learned to
    tell samples apart, and its gradient vanishes.

    Estimates are built from the choices at `num_prices` fixed prices (`build_estimates`).
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
        """The fixed prices `[num_prices]`, rising."""
        return torch.logspace(math.log10(self.lowest), math.log10(self.highest), self.num_prices)

    def prepare(self, train: Labels) -> None:
        self.unit = torch.tensor(float(train.inputs.visual_tokens[:, -1].mean()))

    def compute_loss(
        self, network: Network, batch: Batch, target: Target, token_embeddings: Tensor
    ) -> Tensor:
        uniform = torch.rand(len(batch.cost), device=batch.cost.device)
        price = self.lowest * (self.highest / self.lowest) ** uniform
        outputs = self._read_at(network, network.encode(batch, token_embeddings), batch, price)
        return self.expect(outputs, target.score - price[:, None] * batch.cost / self.unit)

    def compute_estimates(self, network: Network, batch: Batch, token_embeddings: Tensor) -> Tensor:
        codes = network.encode(batch, token_embeddings)
        choices = [
            self._read_at(network, codes, batch, price.expand(len(codes))).argmax(dim=1)
            for price in self.prices.to(codes)
        ]
        return build_estimates(torch.stack(choices, dim=1), batch.cost / self.unit, self.prices.to(codes))

    def expect(self, outputs: Tensor, utility: Tensor) -> Tensor:
        """Minus the mean of expected utility plus weighted entropy, from `[batch, num_scales]` each."""
        surprise = -outputs.log_softmax(dim=1)
        return -(outputs.softmax(dim=1) * (utility + self.temperature * surprise)).sum(dim=1).mean()

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        """The loss at price 0."""
        return self.expect(outputs, target.score)

    def estimate(self, outputs: Tensor) -> Tensor:
        """The network's choice at one price; the front needs `compute_estimates`."""
        return outputs.softmax(dim=1)

    def _read_at(self, network: Network, codes: Tensor, batch: Batch, price: Tensor) -> Tensor:
        """Outputs at a price `[batch]`; the network reads its logarithm, scaled to -1 .. 1."""
        middle, half = math.log(self.lowest * self.highest) / 2, math.log(self.highest / self.lowest) / 2
        price_input = ((price.log() - middle) / half)[:, None]
        return network.read_off(codes, torch.cat([batch.statistics, price_input], dim=1))


def build_estimates(choices: Tensor, cost: Tensor, prices: Tensor) -> Tensor:
    """Estimates `[batch, num_scales]` in [0, 1] whose policy makes these choices at these prices.

    `choices` `[batch, num_prices]` are positions on the ladder, `cost` `[batch, num_scales]` is rising and in
    units of the price, `prices` `[num_prices]` are rising. From one price to the next a choice may only
    become coarser; otherwise the previous one is kept. The estimate of the first choice is 1. Where a choice
    changes, the estimate falls by the geometric mean of the two prices times the saved cost, so that the
    upper hull of (cost, estimate) has these slopes. A scale that is never chosen gets the estimate of the
    next coarser scale that is chosen.

    Some choices correspond to no estimates in [0, 1], as their estimates would fall below 0. If the current
    choice could then not be left at the next switching price, the finest scale that can be left is taken.
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
        # At the first price no estimate has fallen yet.
        slope = 0.0 if column == 0 else switch[column - 1].double()
        saved = (cost[rows, current][:, None] - cost).double()
        reached = level[:, None] - slope * saved
        allowed = (position <= torch.minimum(choices[:, column], current)[:, None]) & (
            reached >= switch[column].double() * above_coarsest
        )
        # The coarsest scale is always allowed, whatever rounding says.
        allowed[:, 0] = True
        new = (allowed * (position + 1)).argmax(dim=1)
        level = torch.where(new == current, level, reached[rows, new]).clamp(min=0)
        below = position < current[:, None]
        estimates = torch.where(below, level[:, None], estimates)
        current = new
    return torch.where(position < current[:, None], 0.0, estimates).clamp(0, 1)
