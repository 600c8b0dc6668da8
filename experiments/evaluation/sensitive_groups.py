"""Which test questions need resolution, by answers other than those that are scored.

If the scored answers decided, every question of the groups "sensitive" and "insensitive" would be right at
the finest scale by construction, and the finest scale would have no noise where all others have some. So
sampled answers of the same backbone decide, or greedy answers of another backbone. `evaluation.sensitivity`
has the results of each group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.matching import match_samples
from experiments.labels.resampled import Resampled
from m3_backbone.outcomes.table import OutcomeTable

Group = Literal["sensitive", "insensitive", "unanswered"]
GROUPS: tuple[Group, ...] = ("sensitive", "insensitive", "unanswered")
# Without another choice, the downsampled answer has at most this share of the finest scale's visual tokens.
_DOWNSAMPLED = 0.25
# Source of answers: those of `tokenscale resample`. Any other source is the name of a backbone.
SAMPLED = "sampled"


@dataclass(frozen=True, eq=False)
class Membership:
    """The group of each of the test samples `rows` `[num_rows]`, as columns of `GROUPS`.

    `finest` and `downsampled` describe the answers that decide, such as "5 sampled answers at scale 144".
    """

    rows: NDArray[np.int64]
    group: NDArray[np.int64]
    finest: str
    downsampled: str

    def rows_of(self, group: Group) -> NDArray[np.int64]:
        """Return the test samples of a group."""
        return self.rows[self.group == GROUPS.index(group)]


def find_groups(finest: ArrayLike, downsampled: ArrayLike) -> NDArray[np.int64]:
    """Return the group of each sample, `[num_samples]`, from mean scores of the deciding answers.

    `finest` and `downsampled` are `[num_samples]` in [0, 1]; an answer with a mean score of at least one half
    is right.
    """
    is_right, is_right_downsampled = np.asarray(finest) >= 0.5, np.asarray(downsampled) >= 0.5
    return np.where(is_right, np.where(is_right_downsampled, 1, 0), 2)


def find_downsampled(visual_tokens: ArrayLike) -> int:
    """Return the column of the finest scale with at most a quarter of the finest scale's visual tokens.

    `visual_tokens` `[num_samples, num_scales]` are averaged over the samples. If every scale has more, it is
    the coarsest.
    """
    mean = np.asarray(visual_tokens, dtype=np.float64).mean(axis=0)
    return int(np.flatnonzero(np.append(True, mean[1:] <= _DOWNSAMPLED * mean[-1])).max())


@dataclass(frozen=True)
class Deciding:
    """Which answers decide: settings `sensitive` of `evaluate`.

    `finest` and `downsampled` are sources of the answer at the finest scale and of the downsampled one:
    `SAMPLED`, or the name of a backbone with labels of the task. `scale` is the scale of the downsampled
    answer; None: the finest scale with at most a quarter of the visual tokens. With `only`, no other
    questions are evaluated.
    """

    finest: str = SAMPLED
    downsampled: str = SAMPLED
    scale: int | None = None
    only: Group | None = None


@dataclass(frozen=True, eq=False)
class _Answers:
    """Mean scores `[num_rows, num_scales]` of deciding answers to the test samples `rows`."""

    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    visual_tokens: NDArray[np.int32]
    scales: tuple[int, ...]
    text: str

    def describe(self, column: int) -> str:
        return f"{self.text} at scale {self.scales[column]}"


def find_membership(
    test: OutcomeTable,
    resampled: Resampled | None,
    deciding: Deciding,
    read_labels_of: Callable[[str], OutcomeTable],
) -> Membership | None:
    """Return the groups of the test samples that the deciding answers allow.

    `read_labels_of` returns the test outcomes of another backbone by its name. Returns None if sampled
    answers should decide and there are none. Raises ValueError for a scale that is not on the ladder, and
    for answers that are those that are scored.
    """
    sources = dict.fromkeys((deciding.finest, deciding.downsampled))
    answers = {}
    for source in sources:
        if source != SAMPLED:
            answers[source] = _match(test, read_labels_of(source), source)
        elif resampled is None:
            if deciding.only is None:
                return None
            raise ValueError(describe_unsampled(deciding.only))
        else:
            answers[source] = _Answers(
                resampled.rows,
                resampled.score.mean(axis=0),
                test.visual_tokens[resampled.rows],
                test.scales,
                f"{len(resampled.score)} sampled answers",
            )
    finest, downsampled = answers[deciding.finest], answers[deciding.downsampled]
    own = test.score[finest.rows, -1]
    if deciding.finest != SAMPLED and len(own) and (finest.score[:, -1] == own).all():
        raise ValueError(
            f"sensitive.finest={deciding.finest}: it scores as this backbone does on every question at its "
            "finest scale, so the answers that are scored would decide: give sampled, or another backbone"
        )
    column = _find_column(downsampled, deciding.scale)
    rows = np.intersect1d(finest.rows, downsampled.rows)
    if not len(rows):
        raise ValueError("no test question has both deciding answers: label or resample the same images")
    position_of = [
        {row: position for position, row in enumerate(source.rows)} for source in (finest, downsampled)
    ]
    at = [[positions[row] for row in rows] for positions in position_of]
    group = find_groups(finest.score[at[0], -1], downsampled.score[at[1], column])
    last = len(finest.scales) - 1
    return Membership(rows, group, finest.describe(last), downsampled.describe(column))


def _match(test: OutcomeTable, other: OutcomeTable, name: str) -> _Answers:
    """Return the answers of another backbone to the test samples that it answered."""
    rows, matched = match_samples(test, other, name)
    return _Answers(rows, matched.score.astype(np.float64), matched.visual_tokens, matched.scales, name)


def _find_column(answers: _Answers, scale: int | None) -> int:
    check_downsampled_scale(scale, answers.scales)
    return find_downsampled(answers.visual_tokens) if scale is None else answers.scales.index(scale)


def check_downsampled_scale(scale: int | None, scales: Sequence[int]) -> None:
    """Raise ValueError unless `scale`, if given, is below the finest of at least two `scales`."""
    if len(scales) < 2:
        raise ValueError("a sensitive split needs two scales at least, and these answers have one")
    if scale is not None and scale not in scales[:-1]:
        coarser = ", ".join(map(str, scales[:-1]))
        raise ValueError(f"sensitive.scale={scale}: give one of {coarser}, the scales below the finest")


def describe_unsampled(group: Group) -> str:
    """Return an error message for a group that sampled answers should decide about, where there are none."""
    return (
        f"sensitive.only={group}: there are no sampled answers to decide: run `tokenscale resample`, or name "
        "a backbone with labels of this task in sensitive.finest and sensitive.downsampled"
    )
