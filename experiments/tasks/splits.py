"""Division of a task into train, calibration and test by image.

The division follows from a hash of the images' ids: it is the same on every machine and in every process and,
as the task's name is no part of it, the same for tasks that share a folder. From `FEW_IMAGES` images on each
image is assigned alone, so that images added later move no other. Of fewer images the fractions are rounded
to counts, as a small split would often be empty if images were assigned one by one.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

from experiments.tasks.base import SPLITS, Split
from predictor.splitting import FEW_IMAGES, apportion


def draw_uniform(image_id: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed}\0{image_id}".encode("utf-8", "surrogatepass")).digest()
    # 53 bits are what a float holds: with more, a hash near the top would round to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def divide_images(
    image_ids: Iterable[str], fractions: Mapping[Split, float], seed: int = 0
) -> dict[str, Split]:
    """Return the split of each image, in the order of `order_images`; each split holds its fraction of them.

    Of fewer than `FEW_IMAGES` images the counts are rounded by largest remainders, and every split with a
    positive fraction gets at least one image where there are as many images as such splits. `fractions` are
    those of all splits (see `check_fractions`).
    """
    ordered = order_images(image_ids, seed)
    if len(ordered) >= FEW_IMAGES:
        return {image_id: assign_split(image_id, fractions, seed) for image_id in ordered}
    counts = apportion(len(ordered), [fractions[split] for split in SPLITS])
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(ordered, splits, strict=True))


def assign_split(image_id: str, fractions: Mapping[Split, float], seed: int = 0) -> Split:
    """The split of an image from its hash alone, for a division of many images."""
    place = draw_uniform(image_id, seed)
    shares = [(split, fractions[split]) for split in SPLITS if fractions[split] > 0]
    for split, share in shares:
        place -= share
        if place < 0:
            return split
    return shares[-1][0]  # fractions sum to 1 but for rounding


def carve_calibration(image_ids: Iterable[str], fraction: float, seed: int = 0) -> dict[str, Split]:
    """Divide the images of a train set without a calibration split into train and calibration."""
    return divide_images(image_ids, {"train": 1 - fraction, "calibration": fraction, "test": 0.0}, seed)


def check_fractions(fractions: Mapping[str, float]) -> dict[Split, float]:
    """Fractions of all three splits, missing ones zero. Raises ValueError unless they sum to 1."""
    complete: dict[Split, float] = dict.fromkeys(SPLITS, 0.0)
    complete |= {check_split(split): float(fraction) for split, fraction in fractions.items()}
    if min(complete.values()) < 0 or not math.isclose(sum(complete.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions must not be negative and must sum to 1, not {dict(fractions)}")
    return complete


def check_split(split: str) -> Split:
    """The split of this name. Raises ValueError, naming the splits there are, for any other."""
    for known in SPLITS:
        if known == split:
            return known
    raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")


def order_images(image_ids: Iterable[str], seed: int = 0) -> list[str]:
    """The distinct images in the order of their hash: any first few of them are an even choice of all."""
    return sorted(set(image_ids), key=lambda image_id: (draw_uniform(image_id, seed), image_id))
