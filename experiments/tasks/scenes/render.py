"""Rendering of a scene to pixels, with cached antialiased masks of shapes and glyphs."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from experiments.tasks.scenes.scene import Item, Look, Scene

SUPERSAMPLING = 4
# Division of the 1,797 handwritten digits: no two splits share a handwriting sample.
HANDWRITING_SHARES = {"train": (0.0, 0.6), "calibration": (0.6, 0.8), "test": (0.8, 1.0)}


@lru_cache(maxsize=1)
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return digits.images[order], digits.target[order]


@lru_cache(maxsize=3)
def handwriting_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images `[n, 8, 8]` (0 to 16) and digits `[n]` of a split."""
    images, targets = _handwriting()
    low, high = (round(share * len(targets)) for share in HANDWRITING_SHARES[split])
    return images[low:high], targets[low:high]


@lru_cache(maxsize=2048)
def _shape_mask(shape: str, side: int) -> Image.Image:
    big = side * SUPERSAMPLING
    mask = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(mask)
    edge, half = big - 1, big / 2
    if shape == "circle":
        draw.ellipse((0, 0, edge, edge), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, edge, edge), fill=255)
        draw.ellipse((big * 0.28, big * 0.28, big * 0.72, big * 0.72), fill=0)
    elif shape == "square":
        inset = big * 0.06
        draw.rectangle((inset, inset, edge - inset, edge - inset), fill=255)
    elif shape == "triangle":
        draw.polygon(((half, 0), (edge, edge), (0, edge)), fill=255)
    elif shape == "diamond":
        draw.polygon(((half, 0), (edge, half), (half, edge), (0, half)), fill=255)
    elif shape == "cross":
        draw.rectangle((big * 0.34, 0, big * 0.66, edge), fill=255)
        draw.rectangle((0, big * 0.34, edge, big * 0.66), fill=255)
    elif shape == "star":
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.where(np.arange(10) % 2 == 0, half, half * 0.42)
        points = half + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        draw.polygon([tuple(point) for point in points.tolist()], fill=255)
    else:
        raise AssertionError(shape)
    return mask.resize((side, side), Image.Resampling.BOX)


@lru_cache(maxsize=4096)
def _text_mask(text: str, font_file: str, height: int, max_width: int) -> Image.Image:
    """Return the tight mask of `text` in one font, at most `height` pixels high and `max_width` wide."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font_file), 64)
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    factor = min(height / mask.height, max_width / mask.width)
    size = max(1, round(mask.width * factor)), max(1, round(mask.height * factor))
    return mask.resize(size, Image.Resampling.LANCZOS)


def _sign_mask(sign: Item, look: Look) -> Image.Image:
    width, height = sign.box[2] - sign.box[0], sign.box[3] - sign.box[1]
    font = look.fonts[sign.style]
    return _text_mask(sign.text, font, max(5, round(height * 0.72)), round(width * 0.88))


def sign_text_box(sign: Item, look: Look) -> tuple[float, float, float, float]:
    """Return the box of the text of a sign, (left, top, right, bottom) in pixels."""
    width, height = sign.box[2] - sign.box[0], sign.box[3] - sign.box[1]
    mask = _sign_mask(sign, look)
    left, top = sign.box[0] + (width - mask.width) / 2, sign.box[1] + (height - mask.height) / 2
    return left, top, left + mask.width, top + mask.height


def text_color_on(color: str, look: Look) -> str:
    """Return the color of text on a sign of this color: "black" on light signs, "white" on dark ones."""
    red, green, blue = look.palette[color]
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 120 else "white"


def _ground(scene: Scene) -> np.ndarray:
    """Return the pixels of the ground, `[size, size, 3]` uint8."""
    size = scene.size
    rng = np.random.default_rng(scene.seed)
    base = np.array(scene.look.palette[scene.ground], np.float32) + rng.integers(-12, 13, 3)
    pattern: np.ndarray = np.zeros((size, size), np.float32)
    if scene.texture == "noise":
        tile = rng.integers(-18, 19, (48, 48)).astype(np.float32)
        pattern = np.tile(tile, (size // 48 + 1, size // 48 + 1))[:size, :size]
    elif scene.texture == "stripes":
        period, direction = rng.integers(6, 30), rng.integers(0, 3)
        rows, columns = np.ogrid[:size, :size]
        phase = (rows, columns, rows + columns)[direction]
        pattern = pattern + np.where(phase // (period // 2) % 2, 14, -14)
    elif scene.texture == "checker":
        period = rng.integers(5, 24)
        rows, columns = np.ogrid[:size, :size]
        pattern = np.where((rows // period + columns // period) % 2, 12, -12)
    elif scene.texture == "gradient":
        ramp = np.linspace(-22, 22, size, dtype=np.float32)
        pattern = pattern + (ramp[:, None] if rng.random() < 0.5 else ramp[None, :])
    elif scene.texture == "dots":
        period = rng.integers(8, 20)
        rows, columns = np.ogrid[:size, :size]
        near = (rows % period - period / 2) ** 2 + (columns % period - period / 2) ** 2
        pattern = np.where(near < (0.3 * period) ** 2, 14, -6)
    elif scene.texture == "waves":
        rows, columns = np.ogrid[:size, :size]
        bend = 6 * np.sin(columns / rng.uniform(8, 20))
        pattern = 14 * np.sin((rows + bend) / rng.uniform(3, 8))
    elif scene.texture == "blotches":
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        pattern = (smooth - 128) / 6
    return np.clip(base + pattern[..., None], 0, 255).astype(np.uint8)


def draw(scene: Scene, split: str) -> Image.Image:
    """Return the scene as an RGB image, `scene.size` pixels square, with the handwriting of `split`."""
    picture = Image.fromarray(_ground(scene))
    jitter = np.random.default_rng(scene.seed + 1).integers(-14, 15, (len(scene.items), 3))
    look = scene.look
    for item, shift in zip(scene.items, jitter, strict=True):
        ink = tuple(np.clip(np.array(look.palette[item.color]) + shift, 0, 255).tolist())
        left, top, right, bottom = item.box
        if item.type == "object":
            picture.paste(ink, (left, top), _shape_mask(item.shape, right - left))
        elif item.type == "character":
            mask = _text_mask(item.text, look.fonts[item.style], bottom - top, right - left)
            corner = (left + (right - left - mask.width) // 2, top + (bottom - top - mask.height) // 2)
            picture.paste(ink, corner, mask)
        elif item.type == "digit":
            strokes = handwriting_of(split)[0][item.style]
            mask = Image.fromarray(np.clip(strokes * 24, 0, 255).astype(np.uint8))
            picture.paste(
                ink, (left, top), mask.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
            )
        else:
            edge = look.palette[text_color_on(item.color, look)]
            brush = ImageDraw.Draw(picture)
            brush.rectangle((left, top, right - 1, bottom - 1), fill=ink, outline=edge)
            x, y, _, _ = sign_text_box(item, look)
            picture.paste(edge, (round(x), round(y)), _sign_mask(item, look))
    return picture
