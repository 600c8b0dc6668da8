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
# Estimates are rounded before an isotonic map, so that rounding errors do not order them.
_DECIMALS = 9


class Calibrator(Buildable, ABC):
    """Map of estimates to probabilities, fitted on estimates and scores `[num_samples, num_scales]`.

    Scores may be fractional.
    """

    @abstractmethod
    def fit(self, estimates: Floats, score: np.ndarray) -> Self: ...

    @abstractmethod
    def apply(self, estimates: Floats) -> Floats:
        """Calibrated estimates in [0, 1]; within each scale their order stays."""

    @abstractmethod
    def state_dict(self) -> dict[str, np.ndarray]:
        """What was fitted, as arrays."""

    @abstractmethod
    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """The reverse of `state_dict`. ValueError for what no fit gives."""


class Temperature(Calibrator):
    """Temperature scaling: logits divided by one temperature per scale, which minimises cross-entropy.

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
            raise ValueError("a temperature is positive and finite")


class Isotonic(Calibrator):
    """Isotonic regression: a rising, piecewise linear map per scale (Zadrozny and Elkan, KDD 2002).

    It maps some different estimates to one probability, which removes points from the front: use it for
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
        for estimates, chances in self.knots:
            if not estimates.size or (np.diff(estimates) < 0).any() or (np.diff(chances) < 0).any():
                raise ValueError("a map of an isotonic calibrator does not rise")
            if chances[0] < 0 or chances[-1] > 1:
                raise ValueError("a map of an isotonic calibrator leaves [0, 1]")


def _to_logits(estimates: Floats) -> Floats:
    inside = np.clip(estimates, _EPSILON, 1 - _EPSILON)
    return np.log(inside / (1 - inside))
