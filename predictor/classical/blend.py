"""Meta-estimator: weighted mean of the estimates of two predictors."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from annotated_types import Len

from m3_backbone.arguments import ClosedFraction, checked
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.base import FitContext, PredictorState, ScalePredictor
from predictor.features import Features
from predictor.files import add_prefix, select_arrays
from predictor.policy.front import Floats, policy_value


class Blend(ScalePredictor):
    """Weighted mean of the estimates of two predictors (linear pooling of forecasts, Stone 1961).

    Networks and trees make errors on different samples, so that their mean has a smaller error than either.
    `first()` and `second()` return the predictors. Each is fitted separately; then the weight of the first is
    the value in `shares` with the highest `policy_value` on validation. With a weight of 0 or 1, only one
    predictor is computed and counted.
    """

    @checked
    def __init__(
        self,
        *,
        first: Callable[[], ScalePredictor],
        second: Callable[[], ScalePredictor],
        shares: Annotated[tuple[ClosedFraction, ...], Len(1)] = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0),
        name: str = "blend",
    ) -> None:
        self.first, self.second, self.shares, self.name = first, second, shares, name
        self._parts = {"first": first(), "second": second()}
        self._set_share(0.5)

    @property
    def reads_backbone(self) -> bool:
        return any(part.reads_backbone for part, _ in self._weighted)

    @property
    def num_parameters(self) -> int:
        return 1 + sum(part.num_parameters for part in self._parts.values())

    def count_own_flops(self, inputs: Inputs) -> float:
        """Operations of the parts with a positive share."""
        return sum(part.count_own_flops(inputs) for part, _ in self._weighted)

    @property
    def _weighted(self) -> list[tuple[ScalePredictor, float]]:
        """The parts with a positive share, each with its share."""
        shares = (self._share, 1 - self._share)
        return [(part, share) for part, share in zip(self._parts.values(), shares, strict=True) if share > 0]

    def _set_share(self, share: float) -> None:
        self._share = share
        self.features = Features.union(*(part.features for part, _ in self._weighted))

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        for key, part in self._parts.items():
            folder = context.folder / key if context.folder else None
            part.fit(train, validation, FitContext(folder, context.make_trainer))
        first, second = (part.predict(validation.inputs) for part in self._parts.values())
        cost, score = self.features.count_paid_tokens(validation.inputs), validation.outcomes.score
        values = [policy_value(share * first + (1 - share) * second, cost, score) for share in self.shares]
        self._set_share(self.shares[int(np.argmax(values))])

    def _predict(self, inputs: Inputs) -> Floats:
        estimates = [share * part.predict(inputs) for part, share in self._weighted]
        return np.sum(estimates, axis=0)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        state: dict[str, Any] = {"share": self._share}
        for key, part in self._parts.items():
            part_state = part.state_dict()
            state[key] = part_state["state"]
            arrays |= add_prefix(part_state["arrays"], f"{key}.")
        return arrays, state

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        share = state["share"]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"a share must be a number from 0 to 1, not {share!r}")
        assert self.scales is not None and self.fingerprints is not None
        for key, part in self._parts.items():
            part_state = PredictorState(
                scales=list(self.scales),
                fingerprints=dict(self.fingerprints),
                state=state[key],
                arrays=select_arrays(arrays, f"{key}."),
            )
            part.load_state_dict(part_state)
        self._set_share(share)
