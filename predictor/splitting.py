"""Splitting of samples by image, so that no image is in both parts."""

import hashlib
from collections.abc import Sequence

import numpy as np

from m3_backbone.outcomes.labels import Labels

# With fewer images, the sizes of parts are rounded counts. If images are assigned one by one, sizes vary: a
# tenth of 200 images is 20 with a standard deviation of 4, but a tenth of 12 images is empty in 28% of cases.
FEW_IMAGES = 200


def split_validation(labels: Labels, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Return (train, validation); validation holds about `fraction` of the images.

    With at least `FEW_IMAGES` images, the part of an image depends only on a hash of its id and the seed, so
    that it does not change when images are added or removed. With fewer images, the first ones in the order
    of this hash are validation: the fraction rounded to a count, with at least one image in each part. Raises
    ValueError for a single image, and if a part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction must lie between 0 and 1, got {fraction}")
    image_ids, image_of = np.unique(labels.outcomes.cluster_id.astype(str), return_inverse=True)
    hashes = np.array([_hash_to_unit(f"{seed}/{image_id}") for image_id in image_ids])
    if len(image_ids) < 2:
        raise ValueError(
            f"{len(image_ids)} training images cannot be split with {fraction:.0%} for validation: label at "
            "least 2"
        )
    if len(image_ids) < FEW_IMAGES:
        is_validation = _take_lowest(hashes, apportion(len(image_ids), [fraction, 1 - fraction])[0])
    else:
        is_validation = hashes < fraction
    if is_validation.all() or not is_validation.any():
        raise ValueError(
            f"{len(image_ids)} training images cannot be split with {fraction:.0%} for validation: choose a "
            "validation_fraction nearer to 0.15, or label more images"
        )
    mask = is_validation[image_of]
    return labels.select(~mask), labels.select(mask)


def order_images(cluster_id: np.ndarray, seed: int) -> list[str]:
    """Return the distinct images in the order of a hash of seed and id.

    The first n images for one seed are among the first m > n, and the order of two images does not depend on
    the others.
    """
    images = np.unique(cluster_id.astype(str)).tolist()
    return sorted(images, key=lambda image: _hash_to_unit(f"order/{seed}/{image}"))


def take_questions(labels: Labels, questions_per_image: int, seed: int) -> Labels:
    """Return at most `questions_per_image` questions about each image.

    They are the first ones in the order of a hash of seed and sample id, so that the questions of a smaller
    number are among those of a larger one.
    """
    hashes = [_hash_to_unit(f"question/{seed}/{sample}") for sample in labels.outcomes.sample_id]
    num_taken: dict[str, int] = {}
    is_taken = np.zeros(len(labels), dtype=bool)
    for row in np.argsort(hashes, kind="stable"):
        image = str(labels.outcomes.image_id[row])
        num_taken[image] = num_taken.get(image, 0) + 1
        is_taken[row] = num_taken[image] <= questions_per_image
    return labels.select(is_taken)


def calibrator_half(cluster_id: np.ndarray) -> np.ndarray:
    """Return a mask `[num_samples]` of the samples whose images are in the half for calibrators.

    A guarantee for calibrated estimates must use the other half. With at least `FEW_IMAGES` images, an image
    is selected by a hash of its id only; of fewer images exactly half are selected, rounded up. The other
    half is empty for a single image.
    """
    image_ids, image_of = np.unique(cluster_id.astype(str), return_inverse=True)
    hashes = np.array([_hash_to_unit(f"calibrator/{image}") for image in image_ids])
    if len(image_ids) < FEW_IMAGES:
        is_in_half = _take_lowest(hashes, (len(image_ids) + 1) // 2)
    else:
        is_in_half = hashes < 0.5
    return np.asarray(is_in_half[image_of], dtype=bool)


def apportion(number: int, shares: Sequence[float]) -> list[int]:
    """Divide `number` items in proportion to shares that sum to 1. Returns counts that sum to `number`.

    Uses largest remainders (Hamilton's method); ties go to the earlier share. If there are enough items,
    every positive share gets at least one, taken from the largest count; otherwise the largest shares get one
    each.
    """
    exact = [number * share for share in shares]
    # The tolerance is for rounding errors of the shares, as in 10 * (1 - 0.9).
    counts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(
        range(len(shares)), key=lambda index: (-round(exact[index] - counts[index], 9), index)
    )
    positive = [index for index in by_remainder if shares[index] > 0]
    for index in positive[: number - sum(counts)]:
        counts[index] += 1
    if number < len(positive):
        largest = sorted(positive, key=lambda index: (-shares[index], index))[:number]
        return [int(index in largest) for index in range(len(shares))]
    for index in positive:
        if not counts[index]:
            counts[max(range(len(counts)), key=lambda position: counts[position])] -= 1
            counts[index] = 1
    return counts


def _take_lowest(hashes: np.ndarray, number: int) -> np.ndarray:
    """Return a mask `[num_images]` of the `number` images with the lowest hashes."""
    mask = np.zeros(len(hashes), dtype=bool)
    mask[np.argsort(hashes, kind="stable")[:number]] = True
    return mask


def _hash_to_unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_for_calibrator(calibration: Labels) -> tuple[Labels, Labels]:
    """Split calibration samples in halves by image: (samples for a calibrator, other samples).

    Raises ValueError if one of the halves would be empty.
    """
    half = calibrator_half(calibration.outcomes.cluster_id)
    if half.all() or not half.any():
        raise ValueError(
            "calibration samples of one image cannot be divided between a calibrator and prices: use more "
            "calibration images, or no calibrator"
        )
    return calibration.select(half), calibration.select(~half)
