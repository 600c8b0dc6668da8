"""Mean cost and mean score of policies at their operating points, under weights of the test images.

Visual tokens and FLOPs are known for every sample, and their mean is taken over the samples. Milliseconds are
measured on a few other pictures and are the same for every sample, so a mean cost is the sum over scales of
the share of the samples that try the scale times its mean milliseconds, plus those of the vision pass and the
overhead of the policy. Each resample has its own mean milliseconds, from a draw of the timed pictures.
"""

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.contenders import Ways
from experiments.evaluation.fronts import Floats
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import ImageMeans
from experiments.evaluation.timings import TimingMeans


class PolicyMeans:
    """By key, mean costs and mean scores of policies in each resample.

    `image` `[num_samples]` numbers the images that the samples ask about. With `timed`, mean costs come from
    the milliseconds that are passed to each call, and the costs of samples are not used. Other means are
    added to `images`.
    """

    def __init__(self, image: ArrayLike, *, timed: bool) -> None:
        self.images = ImageMeans(image)
        self._timed = timed
        # Timed policies only: name of the predictor whose overhead they pay.
        self._overhead: dict[Hashable, str | None] = {}
        self._fixed: set[Hashable] = set()

    def add_fixed(self, key: Hashable, cost: Floats, score: Floats) -> None:
        """Add the fixed scales, one point each: `cost` and `score` are `[num_samples, num_scales]`."""
        if self._timed:
            self.images.add_columns(key, score)
            self._fixed.add(key)
        else:
            self.images.add_columns(key, cost, score)

    def add(
        self,
        key: Hashable,
        schedule: Schedule,
        ways: Ways,
        cost: Floats,
        score: Floats,
        name: str | None = None,
    ) -> None:
        """Add a policy that follows `schedule`; `cost` and `score` of its ways are `[num_samples, num_ways]`.

        `cost` includes the cost of choosing; if costs are timed, that is the overhead of `name`.
        """
        if not self._timed:
            self.images.add(key, schedule, cost, score)
            return
        shares = [np.broadcast_to(is_tried, score.shape) for is_tried in ways.tried.T.astype(np.float64)]
        self.images.add(key, schedule, *shares, score)
        self._overhead[key] = name

    def add_point(
        self,
        key: Hashable,
        choice: NDArray[np.integer],
        ways: Ways,
        cost: Floats,
        score: Floats,
        name: str | None = None,
    ) -> None:
        """Add a policy with one operating point, at which it chooses the ways `choice` `[num_samples]`."""
        self.add(key, Schedule.of(choice[None]), ways, cost, score, name)

    def __call__(
        self, weights: NDArray[Any], milliseconds: TimingMeans | None = None
    ) -> dict[Any, tuple[Floats, ...]]:
        """By key (cost, score), each `[num_resamples, num_points]`, and the means added to `images`.

        `weights` of the images are `[num_resamples, num_images]`; `milliseconds` are those of the same
        resamples, needed if costs are timed.
        """
        means = self.images(weights)
        if not self._timed:
            return means
        assert milliseconds is not None, "`resample` is given the timings of the account"
        for key in self._fixed:
            means[key] = (milliseconds.cost, *means[key])
        for key, name in self._overhead.items():
            *tried, score = means[key]
            means[key] = (milliseconds.cost_of_policy(tried, name), score)
        return means
