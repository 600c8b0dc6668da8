"""Cascades as they are asked for in a configuration: fitted where calibration samples are at hand."""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.evaluation.contenders import ClimberFit, Climbing
from experiments.evaluation.fronts import Floats


@dataclass(frozen=True)
class CascadeEntry:
    """A cascade to compare. `predictor` names the trained one whose estimates it starts from, if any."""

    name: str
    fit: ClimberFit
    predictor: str | None = None

    def enter(self, estimates: Mapping[str, tuple[Floats, Floats]]) -> Climbing:
        """The contender, given the estimates of all predictors on (calibration, test)."""
        return Climbing(self.name, self.fit, estimates[self.predictor] if self.predictor else None)
