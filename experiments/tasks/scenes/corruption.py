"""Corruptions of images: noise, blur, compression."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

# Kind -> default strength, the mildest of ImageNet-C (Hendrycks and Dietterich, ICLR 2019): standard
# deviations of normal noise on values of 0 to 255 and of a Gaussian blur in pixels; quality of a JPEG.
CORRUPTIONS = {"noise": 20.4, "blur": 1.0, "jpeg": 25.0}


def corrupt(image: Image.Image, kind: str, strength: float, seed: int) -> Image.Image:
    """Return the image with a corruption of `CORRUPTIONS`; `seed` is that of the noise."""
    if kind == "noise":
        noise = np.random.default_rng(seed).normal(0, strength, (image.height, image.width, 3))
        noisy = np.asarray(image.convert("RGB"), np.float64) + noise
        return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    assert kind == "jpeg"
    file = BytesIO()
    image.save(file, "JPEG", quality=round(strength))
    return Image.open(file).convert("RGB")
