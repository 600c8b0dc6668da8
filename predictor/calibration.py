"""Calibrators of estimates: one map per scale, fitted on the calibration split."""

from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from predictor.files import get_array
from predictor.folder import Buildable
from predictor.policy.front import Floats

_EPSILON = 1e-6
# Estimates are rounded before an isotonic map, so that rounding errors do not affect their order.
_DECIMALS = 9


class Calibrator(Buildable, ABC):
    """Map of estimates to probabilities, fitted on estimates and scores `[num_samples, num_scales]`.

    Scores in [0, 1] may be fractional.
    """

    @abstractmethod
    def fit(self, estimates: Floats, score: np.ndarray) -> Self: ...

    @abstractmethod
    def apply(self, estimates: Floats) -> Floats:
        """Return calibrated estimates in [0, 1]. The order within each scale is preserved."""

    @abstractmethod
    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the fitted values as arrays."""

    @abstractmethod
    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Restore values of `state_dict`. Raises ValueError for values that no fit gives."""


class Temperature(Calibrator):
    """Temperature scaling: division of logits by one temperature per scale that minimises cross-entropy.

    Source: Guo et al., On calibration of modern neural networks (ICML 2017).
    """

    def fit(self, estimates: Floats, score: np.ndarray) -> Self:
        logits = _to_logits(estimates)

        def loss(log_temperature: float, column: int) -> float:
            scaled = logits[:, column] * np.exp(-log_temperature)
            return float((np.logaddexp(0, scaled) - score[:, column] * scaled).mean())

        log_temperatures = [
            minimize_scalar(loss, bounds=(-4, 4), args=(c,), method="bounded").x
            for c in range(logits.shape[1])
        ]
        self.temperature = np.exp(np.array(log_temperatures))
        return self

    def apply(self, estimates: Floats) -> Floats:
        calibrated: Floats = expit(_to_logits(estimates) / self.temperature)
        return calibrated

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"temperature": self.temperature}

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        self.temperature = get_array(arrays, "temperature", None)
        if not (np.isfinite(self.temperature) & (self.temperature > 0)).all():
            raise ValueError("a temperature must be positive and finite")


class Isotonic(Calibrator):
    """Isotonic regression: an increasing, piecewise linear map per scale (Zadrozny and Elkan, KDD 2002).

    It maps some different estimates to the same probability, which removes points from the front. Use it for
    estimates that are read as probabilities rather than for choosing scales.
    """

    def fit(self, estimates: Floats, score: np.ndarray) -> Self:
        from sklearn.isotonic import IsotonicRegression

        self.knots = []
        for column in range(estimates.shape[1]):
            model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
            model.fit(np.round(estimates[:, column], _DECIMALS), score[:, column].astype(np.float64))
            self.knots.append(np.stack([model.X_thresholds_, model.y_thresholds_]))
        return self

    def apply(self, estimates: Floats) -> Floats:
        columns = [
            np.interp(np.round(estimates[:, c], _DECIMALS), *self.knots[c]) for c in range(estimates.shape[1])
        ]
        return np.stack(columns, axis=1)

    def state_dict(self) -> dict[str, np.ndarray]:
        return {f"knots.{column}": knots for column, knots in enumerate(self.knots)}

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        self.knots = [get_array(arrays, f"knots.{column}", 2, None) for column in range(len(arrays))]
        for estimates, probabilities in self.knots:
            if not estimates.size or (np.diff(estimates) < 0).any() or (np.diff(probabilities) < 0).any():
                raise ValueError("a map of an isotonic calibrator is not increasing")
            if probabilities[0] < 0 or probabilities[-1] > 1:
                raise ValueError("a map of an isotonic calibrator has values outside [0, 1]")


def _to_logits(estimates: Floats) -> Floats:
    clipped = np.clip(estimates, _EPSILON, 1 - _EPSILON)
    return np.log(clipped / (1 - clipped))
