"""Numbers of images that a split needs: below limits it is refused, or results get a banner or a note.

Calibration and test are counted in images, the independent units, as answers to questions about one image
depend on each other. Training is counted in samples.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from experiments.tasks.base import SPLITS, Split, Task
from m3_backbone.outcomes.table import find_cluster
from predictor.splitting import apportion

# Splits with fewer images are refused unless `allow_small=true`; fewer test images give no interval.
LEAST_IMAGES = 8
# Splits with fewer images are always refused; train needs a second image for validation.
VERY_LEAST: Mapping[Split, int] = {"train": 2, "calibration": 1, "test": 1}
# Below FEW a banner says that results are meaningless; from FEW to MANY a note says that they are coarse.
FEW, MANY = 30, 100
# Divisions for few images; the first that fits is suggested.
_SUGGESTED: tuple[dict[Split, float], ...] = (
    {"train": 0.4, "calibration": 0.3, "test": 0.3},
    {"train": 0.34, "calibration": 0.33, "test": 0.33},
)

Count = Literal["test images", "calibration images", "training samples"]
_FEW_MEAN: Mapping[Count, str] = {
    "test images": "intervals and differences mean nothing",
    "calibration images": "prices, default choices and guarantees mean nothing",
    "training samples": "what a predictor learns from them is chance",
}
_NO_INTERVAL = f"fewer than {LEAST_IMAGES} give no interval, and differences mean nothing"
_SOME_MEAN: Mapping[Count, str] = {
    "test images": "intervals are wide, and too narrow where few questions decide",
    "calibration images": "prices are coarse, and a guarantee is hardly ever certified",
    "training samples": "predictors that learn from more will be better",
}


@dataclass(frozen=True)
class Banner:
    """A warning about a small number of images or samples; `is_loud` if results are meaningless."""

    text: str
    is_loud: bool


def find_banners(
    *,
    test_images: int | None = None,
    calibration_images: int | None = None,
    training_samples: int | None = None,
    task: str = "",
) -> list[Banner]:
    """Return the banners for these numbers of images and samples, loud ones first.

    None leaves a count out; `task` names the task if there are several.
    """
    counts: dict[Count, int | None] = {
        "test images": test_images,
        "calibration images": calibration_images,
        "training samples": training_samples,
    }
    banners = []
    for name, number in counts.items():
        if number is None or number >= MANY:
            continue
        counted = f"{number} {name if number != 1 else name[:-1]}{task and f' of {task}'}"
        if name == "test images" and number < LEAST_IMAGES:
            banners.append(Banner(f"Only {counted}: {_NO_INTERVAL}.", is_loud=True))
        elif number < FEW:
            banners.append(Banner(f"Only {counted}: {_FEW_MEAN[name]}.", is_loud=True))
        else:
            banners.append(Banner(f"{counted}: {_SOME_MEAN[name]}.", is_loud=False))
    return sorted(banners, key=lambda banner: not banner.is_loud)


def allows_interval(num_images: int) -> bool:
    """Whether there are enough test images for an interval."""
    return num_images >= LEAST_IMAGES


def is_too_few(num_images: int) -> bool:
    """Whether there are too few images to state a finding."""
    return num_images < FEW


def frame_banners(banners: Iterable[Banner]) -> str:
    """Return the banners as lines for a terminal, loud ones in a frame; empty for none."""
    listed = list(banners)
    loud = [f"! WARNING: {banner.text}" for banner in listed if banner.is_loud]
    if loud:
        width = max(map(len, loud))
        rule = "!" * (width + 2)
        loud = [rule, *(f"{line:<{width}} !" for line in loud), rule]
    return "\n".join([*loud, *(f"note: {banner.text}" for banner in listed if not banner.is_loud)])


def check_sizes(
    num_images: Mapping[Split, int], what: str, way_out: str, *, allow_small: bool, unit: str = ""
) -> None:
    """Raise ValueError if a split has fewer than `LEAST_IMAGES` images.

    `num_images` has all splits that will be used. With `allow_small` the limit is `VERY_LEAST`. `what` begins
    the message ("12 images give"), `unit` follows the numbers, `way_out` says what to do besides
    `allow_small=true`.
    """
    if not _is_small(num_images, allow_small):
        return
    numbers = " / ".join(f"{number:,} {split}" for split, number in num_images.items()) + unit
    if allow_small:
        least = " / ".join(f"{VERY_LEAST[split]} {split}" for split in num_images)
        raise ValueError(f"{what} {numbers}; even with allow_small=true {least} are needed: {way_out}")
    of_each = "of each are needed" if len(num_images) > 1 else "are needed"
    # `allow_small=true` is suggested only if it would be accepted.
    go_on = "" if _is_small(num_images, allow_small=True) else ", or go on with allow_small=true"
    raise ValueError(f"{what} {numbers}; at least {LEAST_IMAGES} {of_each}: {way_out}{go_on}")


def check_task(
    task: Task,
    limit: Mapping[str, int | None],
    *,
    needed: Iterable[Split] | None = None,
    allow_small: bool = False,
) -> None:
    """Raise ValueError for a task with too few images in a split (`check_sizes`), before labelling.

    `needed` are the splits that will be used; None means all splits with an image within the limits, as a
    split may be left out on purpose. Counts no more images than necessary.
    """
    splits = [split for split in SPLITS if needed is None or split in set(needed)]
    counts = {split: count_images(task, split, limit.get(split), LEAST_IMAGES) for split in splits}
    if needed is None:
        counts = {split: number for split, number in counts.items() if number}
    if not _is_small(counts, allow_small):
        return
    counts = {split: count_images(task, split, limit.get(split)) for split in counts}
    cut = [
        f"limit.{split}"
        for split, number in counts.items()
        if number < LEAST_IMAGES and limit.get(split) == number
    ]
    total = sum(counts.values())
    if cut:
        way_out = f"raise {' and '.join(cut)}"
    elif task.divided_by is None or len(counts) < len(SPLITS):
        way_out = "bring more images"
    else:
        way_out = _suggest_fractions(total, f"task.{task.divided_by}")
    what = "1 image gives" if total == 1 else f"{total:,} images give"
    check_sizes(counts, what, way_out, allow_small=allow_small)


def _is_small(num_images: Mapping[Split, int], allow_small: bool) -> bool:
    return any(
        number < (VERY_LEAST[split] if allow_small else LEAST_IMAGES) for split, number in num_images.items()
    )


def _suggest_fractions(total: int, divided_by: str) -> str:
    """Return advice: fractions that give each split `LEAST_IMAGES` images, or the number of images needed."""
    for fractions in _SUGGESTED:
        if min(apportion(total, list(fractions.values()))) >= LEAST_IMAGES:
            return f"set {_write_fractions(divided_by, fractions)} or bring more images"
    fractions = _SUGGESTED[0]
    number = next(
        number
        for number in itertools.count(total)
        if min(apportion(number, list(fractions.values()))) >= LEAST_IMAGES
    )
    return f"bring at least {number} images and set {_write_fractions(divided_by, fractions)}"


def _write_fractions(divided_by: str, fractions: Mapping[Split, float]) -> str:
    text = ", ".join(f"{split}: {fraction:g}" for split, fraction in fractions.items())
    return f"{divided_by}='{{{text}}}'"


def count_images(task: Task, split: Split, limit: int | None = None, most: int | None = None) -> int:
    """Return the number of images in the first `limit` of a split; counting stops at `most`.

    Images of one cluster, as parts of a video, count as one.
    """
    images = itertools.groupby(task.samples(split), key=lambda sample: sample.image_id)
    clusters: set[str] = set()
    for image_id, samples in itertools.islice(images, limit):
        if most is not None and len(clusters) >= most:
            break
        clusters.add(find_cluster(image_id, next(samples).attributes))
    return len(clusters)
