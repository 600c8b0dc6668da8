"""The upper concave hull in the plane of mean cost and mean score."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def upper_hull(cost: ArrayLike, score: ArrayLike) -> NDArray[np.int64]:
    """Indices of the vertices of the upper concave hull of points `[num_points]`, from cheap to dear.

    Cost and score rise strictly from vertex to vertex: a point that costs more and is no better is out, and
    so is one that lies on or below the line between two others. Of equal points the first stays.
    """
    costs, scores = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if costs.ndim != 1 or costs.shape != scores.shape or not costs.size:
        raise ValueError(f"a hull needs points, got {costs.shape} costs and {scores.shape} scores")
    order = np.lexsort((-scores, costs))
    # First all that something cheaper equals: of many points a few are left for the loop.
    best = np.maximum.accumulate(scores[order])
    order = order[np.concatenate([[True], scores[order][1:] > best[:-1]])]
    hull: list[int] = []
    for point in order.tolist():
        while len(hull) > 1:
            first, last = hull[-2:]
            rise = (scores[last] - scores[first]) * (costs[point] - costs[first])
            if rise > (scores[point] - scores[first]) * (costs[last] - costs[first]):
                break
            hull.pop()
        hull.append(point)
    return np.array(hull)
