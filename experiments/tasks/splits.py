"""Division of a task into train, calibration and test by image.

A split is drawn from a hash of the image's id alone: the same on every machine and in every process, unmoved
by images added later, and, as the task's name is no part of it, the same for tasks that share a folder.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

from experiments.tasks.base import SPLITS, Split


def draw_uniform(image_id: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed}\0{image_id}".encode("utf-8", "surrogatepass")).digest()
    # 53 bits are what a float holds: with more, a hash near the top would round to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign_split(image_id: str, fractions: Mapping[Split, float], seed: int = 0) -> Split:
    """The split of an image when each holds its fraction of the images (see `check_fractions`)."""
    place = draw_uniform(image_id, seed)
    shares = [(split, fractions[split]) for split in SPLITS if fractions[split] > 0]
    for split, share in shares:
        place -= share
        if place < 0:
            return split
    return shares[-1][0]  # fractions sum to 1 but for rounding


def carve_calibration(image_id: str, fraction: float, seed: int = 0) -> Split:
    """The calibration split for this fraction of the images of a train set that comes without one."""
    return assign_split(image_id, {"train": 1 - fraction, "calibration": fraction, "test": 0.0}, seed)


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
