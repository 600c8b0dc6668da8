"""Parts of a split, carved out by image, so that no image is on both sides."""

import hashlib

import numpy as np

from m3_backbone.labels import Labels


def carve_validation(labels: Labels, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """(train, validation): about `fraction` of the images, chosen by a hash of their id and the seed.

    An image keeps its side when others are added or removed. Raises ValueError when a side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction must lie between 0 and 1, got {fraction}")
    image_ids, image_of = np.unique(labels.outcomes.image_id.astype(str), return_inverse=True)
    held_out = np.array([_hash_to_unit(f"{seed}/{image_id}") < fraction for image_id in image_ids])
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"{len(image_ids)} training images cannot be split with {fraction:.0%} for validation: label more"
        )
    mask = held_out[image_of]
    return labels.select(~mask), labels.select(mask)


def halve(image_id: np.ndarray) -> np.ndarray:
    """Mask `[num_samples]` of about half of the images, by a hash of their id alone.

    Of the calibration split that half is for calibrators; what is promised of estimates that one has changed
    has to be shown on the other.
    """
    return np.array([_hash_to_unit(f"calibrator/{image}") < 0.5 for image in image_id], dtype=bool)


def _hash_to_unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
