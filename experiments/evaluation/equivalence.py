"""Equivalence of two policies, by two one-sided tests on paired resamples of the test images.

Two policies are equivalent within a margin at level alpha if the interval of their difference with
confidence 1 - 2 alpha lies inside plus and minus the margin (Schuirmann 1987). A difference that is not
significant is no evidence of equivalence. Intervals are over test images; the models are held fixed.
"""

from dataclasses import dataclass

from experiments.evaluation.comparison import Comparison, compare_policies
from experiments.evaluation.metric_table import Key, Metric
from experiments.evaluation.metrics import mean_gap_share, mean_to_mix
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.scale_classifier import ALL, FACTS, SEEN, NothingToTell, ScoreRegressions
from experiments.evaluation.statistics import Bootstrapped, Estimate, adjust_p_values
from experiments.tasks.sizes import allows_interval
from m3_backbone.outcomes.labels import Labels

LEVEL = 0.05
# On fewer images an interval over images means nothing.
LEAST_IMAGES = 30
# Policies that know facts; each is compared with the policy that has the inputs of a predictor.
TOLD = (ALL, FACTS)


@dataclass(frozen=True, eq=False)
class Equivalence:
    """Policy `first` minus `second`: points above the mix and shares of the gap, both at matched cost.

    Both are averaged over log-spaced budgets, with intervals of confidence `1 - 2 * LEVEL`. `p_value` tests
    that the scores do not differ, with Holm's correction for all differences tested together. `share` is None
    if one of the policies has no share of the gap.
    """

    first: str
    second: str
    difference: Estimate
    share: Estimate | None
    p_value: float
    margin: float
    num_images: int

    @property
    def verdict(self) -> str:
        """Conclusion from the interval and the p-value."""
        if self.num_images < LEAST_IMAGES:
            return "too few images to tell"
        if -self.margin <= self.difference.low and self.difference.high <= self.margin:
            return "equivalent"
        return "differs" if self.p_value < LEVEL else "not shown to be equivalent"


def check_margin(margin: float) -> None:
    """Raise ValueError unless the margin of equivalence lies in (0, 1)."""
    if not 0 < margin < 1:
        raise ValueError(
            f"equivalence_margin={margin:g} is not a share of the score in (0, 1): 0.005 is half a point"
        )


def compare_known(
    regressions: ScoreRegressions,
    calibration: Labels,
    test: Labels,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Comparison:
    """Compare policies by what they know: prices from calibration samples, metrics from test samples.

    The first policy has the inputs of a predictor. Raises NothingToTell if mix and oracle have no gap.
    """
    on_calibration, on_test = (regressions.predict(labels) for labels in (calibration, test))
    names = sorted(regressions.columns.names, key=lambda name: name != SEEN)
    comparison = compare_policies(
        calibration.outcomes,
        test.outcomes,
        [PredictorPolicy(name, on_calibration[name], on_test[name]) for name in names],
        reference=None,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )
    if not comparison.oracle_gap.value > 0:
        raise NothingToTell("mix and oracle have no gap at any budget: there is nothing to recover")
    return comparison


def find_equivalences(comparison: Comparison, margin: float) -> list[Equivalence]:
    """Policies that know facts minus the policy that has question and image, on the same resamples."""
    check_margin(margin)
    names = {result.name for result in comparison.policies}
    pairs = [(name, SEEN) for name in TOLD if name in names]
    differences = [_subtract(comparison, *pair, mean_to_mix) for pair in pairs]
    scores = [difference for difference in differences if difference is not None]
    p_values = adjust_p_values([float(score.p_value()) for score in scores])
    return [
        Equivalence(
            *pair,
            score.estimate(1 - 2 * LEVEL),
            _subtract_shares(comparison, *pair),
            float(p_value),
            margin,
            comparison.num_images,
        )
        for pair, score, p_value in zip(pairs, scores, p_values, strict=True)
    ]


def _subtract(comparison: Comparison, first: str, second: str, metric: Metric) -> Bootstrapped | None:
    """The difference of two policies in a metric; None where one does not have it."""
    results = [comparison.find(name) for name in (first, second)]
    keys = [Key(result.key, metric) for result in results]
    if any(key not in comparison.metrics.resamples for key in keys):
        return None
    value, other_value = (comparison.metrics[key].value for key in keys)
    resamples, other_resamples = (comparison.metrics.resamples[key] for key in keys)
    has_interval = allows_interval(comparison.num_images)
    return Bootstrapped(value - other_value, resamples - other_resamples, has_interval)


def _subtract_shares(comparison: Comparison, first: str, second: str) -> Estimate | None:
    difference = _subtract(comparison, first, second, mean_gap_share)
    return None if difference is None else difference.estimate(1 - 2 * LEVEL)
