"""Objective of expected utility with the price as an input: one network for the whole front."""

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

    For each sample and step, a log-uniform random price from `lowest` to `highest` (per answer at the finest
    scale, as in `predictor.policy.front`) is given to the network after the statistics. The loss is minus the
    expectation of `score - price * cost / unit` under the softmax, minus `temperature` times its entropy
    (Williams and Peng 1991). Without the entropy, the softmax saturates at one scale early in training, and
    its gradient vanishes.

    Estimates are computed from the choices at `num_prices` fixed prices (`build_estimates`).
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
            raise ValueError(
                f"lowest={lowest}, highest={highest}, num_prices={num_prices}: give 0 < lowest < highest and "
                "2 to 1000 prices"
            )
        self.lowest, self.highest, self.num_prices = lowest, highest, num_prices
        self.temperature = temperature
        self.register_buffer("unit", torch.ones(()))

    @property
    def prices(self) -> Tensor:
        """Fixed prices `[num_prices]`, increasing."""
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
        """Minus the mean of expected utility plus weighted entropy; arguments are `[batch, num_scales]`."""
        surprise = -outputs.log_softmax(dim=1)
        return -(outputs.softmax(dim=1) * (utility + self.temperature * surprise)).sum(dim=1).mean()

    def forward(self, outputs: Tensor, target: Target) -> Tensor:
        """Loss at price 0."""
        return self.expect(outputs, target.score)

    def estimate(self, outputs: Tensor) -> Tensor:
        """Return the softmax at one price; the whole front needs `compute_estimates`."""
        return outputs.softmax(dim=1)

    def _read_at(self, network: Network, codes: Tensor, batch: Batch, price: Tensor) -> Tensor:
        """Outputs at a price `[batch]`. The network gets the logarithm of the price, scaled to -1 .. 1."""
        middle, half = math.log(self.lowest * self.highest) / 2, math.log(self.highest / self.lowest) / 2
        price_input = ((price.log() - middle) / half)[:, None]
        return network.read_off(codes, torch.cat([batch.statistics, price_input], dim=1))


def build_estimates(choices: Tensor, cost: Tensor, prices: Tensor) -> Tensor:
    """Estimates `[batch, num_scales]` in [0, 1] whose policy makes these choices at these prices.

    `choices` `[batch, num_prices]` are positions on the ladder. `cost` `[batch, num_scales]`, in units of the
    price, and `prices` `[num_prices]` are increasing. From one price to the next a choice may only become
    coarser; otherwise the previous one is kept. The estimate of the first choice is 1. Where a choice
    changes, the estimate decreases by the geometric mean of the two prices times the saved cost, so that the
    upper hull of (cost, estimate) has these slopes. A scale that is never chosen gets the estimate of the
    next coarser scale that is chosen.

    Some choices have no estimates in [0, 1], because an estimate would be negative. If a policy could then
    not switch away from a choice at the next switching price, the finest scale that allows this switch is
    used.
    """
    num_scales = cost.shape[1]
    rows = torch.arange(len(choices), device=choices.device)
    # Switching prices: between adjacent prices, and beyond the last one.
    ratio = prices[-1] / prices[-2]
    switch = torch.cat([(prices[1:] * prices[:-1]).sqrt(), (prices[-1] * prices[-1] * ratio).sqrt()[None]])
    above_coarsest = (cost - cost[:, :1]).double()
    position = torch.arange(num_scales, device=choices.device)

    current_estimate = torch.ones(len(choices), dtype=torch.float64, device=choices.device)
    current = torch.full_like(choices[:, 0], num_scales - 1)
    estimates = torch.ones(len(choices), num_scales, dtype=torch.float64, device=choices.device)
    for column in range(len(prices)):
        # At the first price no estimate has decreased yet.
        slope = 0.0 if column == 0 else switch[column - 1].double()
        saved = (cost[rows, current][:, None] - cost).double()
        reached = current_estimate[:, None] - slope * saved
        allowed = (position <= torch.minimum(choices[:, column], current)[:, None]) & (
            reached >= switch[column].double() * above_coarsest
        )
        # The coarsest scale is always allowed, also with rounding errors.
        allowed[:, 0] = True
        new = (allowed * (position + 1)).argmax(dim=1)
        current_estimate = torch.where(new == current, current_estimate, reached[rows, new]).clamp(min=0)
        is_coarser = position < current[:, None]
        estimates = torch.where(is_coarser, current_estimate[:, None], estimates)
        current = new
    return torch.where(position < current[:, None], 0.0, estimates).clamp(0, 1)
