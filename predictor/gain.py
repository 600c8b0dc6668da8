"""What one scale more is expected to gain, in the light of the answer at this one."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from predictor.policy import Floats


@dataclass(frozen=True, eq=False)
class ExpectedGain:
    """Score to be gained by one scale more: the chance that the next answer is right, less that of this one.

    `here` and `beyond` `[num_scales - 1, num_scales + 2]` are logistic regressions on the logits of the
    confidence at this scale and of the estimates for all scales; the last column is the intercept.
    """

    here: Floats
    beyond: Floats

    @classmethod
    def fit(cls, confidence: ArrayLike, score: ArrayLike, estimates: ArrayLike) -> Self:
        """From calibration samples, each `[num_samples, num_scales]`."""
        scores = np.asarray(score, dtype=np.float64)
        weights = [
            [_fit_logistic(features, scores[:, column + step]) for step in (0, 1)]
            for column, features in enumerate(cls._make_features(confidence, estimates))
        ]
        here, beyond = np.array(weights).reshape(-1, 2, scores.shape[1] + 2).swapaxes(0, 1)
        return cls(here, beyond)

    def __call__(self, confidence: ArrayLike, estimates: ArrayLike) -> Floats:
        """`[num_samples, num_scales]`; 0 at the finest scale. Each reads the confidence of its own scale."""
        gains = np.zeros(np.shape(confidence))
        for column, features in enumerate(self._make_features(confidence, estimates)):
            gains[:, column] = expit(features @ self.beyond[column]) - expit(features @ self.here[column])
        return gains

    @staticmethod
    def _make_features(confidence: ArrayLike, estimates: ArrayLike) -> list[Floats]:
        sure, chance = (logit(np.clip(values, 1e-4, 1 - 1e-4)) for values in (confidence, estimates))
        constant = np.ones((len(sure), 1))
        return [np.hstack([sure[:, [column]], chance, constant]) for column in range(sure.shape[1] - 1)]


def _fit_logistic(features: Floats, score: Floats) -> Floats:
    """Weights of one logistic regression, the intercept last; `features` end in a column of ones.

    Features are standardised and the intercept is not penalised, so that the penalty neither depends on
    their units nor pulls every probability towards one half; the returned weights are for features that are
    not standardised. A fractional score enters as a right and a wrong sample with fractional weights.
    """
    # Fitting alone needs it: whoever uses a saved model should not wait for it.
    from sklearn.linear_model import LogisticRegression

    features = features[:, :-1]
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    standard = (features - mean) / scale
    # A right and a wrong sample at the mean, each with weight 0.5, in case all samples are right or wrong.
    both = np.zeros((2, standard.shape[1]))
    model = LogisticRegression(max_iter=1000)
    model.fit(
        np.concatenate([standard, standard, both]),
        np.repeat([1, 0, 1, 0], [len(score), len(score), 1, 1]),
        sample_weight=np.concatenate([score, 1 - score, [0.5, 0.5]]),
    )
    weights = model.coef_[0] / scale
    intercept = model.intercept_[0] - weights @ mean
    return np.append(weights, intercept).astype(np.float64)
