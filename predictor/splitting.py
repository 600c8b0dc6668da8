"""Division of samples by image, so that no image is on both sides."""

import hashlib
from collections.abc import Sequence

import numpy as np

from m3_backbone.outcomes.labels import Labels

# With fewer images, the sizes of parts are rounded counts. If images are assigned one by one, sizes vary: a
# tenth of 200 images is 20 with a standard deviation of 4, but a tenth of 12 images is empty in 28% of draws.
FEW_IMAGES = 200


def split_validation(labels: Labels, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Return (train, validation); validation holds about `fraction` of the images.

    From `FEW_IMAGES` images on the side of an image depends on a hash of its id and the seed alone, so that
    it stays when images are added or removed. Of fewer images, the first in the order of that hash are
    validation: the fraction rounded to a count, with at least one image on each side. Raises ValueError for a
    single image, and where a side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction must lie between 0 and 1, got {fraction}")
    image_ids, image_of = np.unique(labels.outcomes.image_id.astype(str), return_inverse=True)
    places = np.array([_hash_to_unit(f"{seed}/{image_id}") for image_id in image_ids])
    if len(image_ids) < 2:
        raise ValueError(
            f"{len(image_ids)} training images cannot be split with {fraction:.0%} for validation: label at "
            "least 2"
        )
    if len(image_ids) < FEW_IMAGES:
        is_validation = _take_first(places, apportion(len(image_ids), [fraction, 1 - fraction])[0])
    else:
        is_validation = places < fraction
    if is_validation.all() or not is_validation.any():
        raise ValueError(
            f"{len(image_ids)} training images cannot be split with {fraction:.0%} for validation: choose a "
            "validation_fraction nearer to 0.15, or label more images"
        )
    mask = is_validation[image_of]
    return labels.select(~mask), labels.select(mask)


def calibrator_half(image_id: np.ndarray) -> np.ndarray:
    """Return a mask `[num_samples]` of the half of the images that calibrators are fitted on.

    A guarantee for calibrated estimates has to use the other half. From `FEW_IMAGES` images on, an image is
    selected by a hash of its id alone; of fewer images exactly half are selected, rounded up. With a single
    image the other half is empty.
    """
    image_ids, image_of = np.unique(image_id.astype(str), return_inverse=True)
    places = np.array([_hash_to_unit(f"calibrator/{image}") for image in image_ids])
    if len(image_ids) < FEW_IMAGES:
        is_in_half = _take_first(places, (len(image_ids) + 1) // 2)
    else:
        is_in_half = places < 0.5
    return np.asarray(is_in_half[image_of], dtype=bool)


def apportion(number: int, shares: Sequence[float]) -> list[int]:
    """Divide `number` items by shares that sum to 1; returns counts that sum to `number`.

    Largest remainders (Hamilton's method), ties to the earlier share. Every positive share gets at least one
    item, taken from the largest count, if there are enough items; otherwise the largest shares get one each.
    """
    exact = [number * share for share in shares]
    # Tolerates rounding errors of the shares, as in 10 * (1 - 0.9).
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
            counts[max(range(len(counts)), key=lambda place: counts[place])] -= 1
            counts[index] = 1
    return counts


def _take_first(places: np.ndarray, number: int) -> np.ndarray:
    """Mask `[num_images]` of the `number` images with the lowest places."""
    chosen = np.zeros(len(places), dtype=bool)
    chosen[np.argsort(places, kind="stable")[:number]] = True
    return chosen


def _hash_to_unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_for_calibrator(calibration: Labels) -> tuple[Labels, Labels]:
    """Halves of the calibration images: (samples for a calibrator, samples that it has not seen).

    Raises ValueError if one of the halves would be empty.
    """
    half = calibrator_half(calibration.outcomes.image_id)
    if half.all() or not half.any():
        raise ValueError(
            "calibration samples of one image cannot be divided between a calibrator and prices: take more "
            "calibration images, or no calibrator"
        )
    return calibration.select(half), calibration.select(~half)
