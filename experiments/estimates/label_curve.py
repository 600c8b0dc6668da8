"""Quotation of the measured label curve: what predictors recovered with a number of labelled images.

`label_curve.json` beside this file is the file of the same name that `tokenscale label_curve` writes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

MEASURED = Path(__file__).parent / "label_curve.json"


def quote_label_curve(num_images: int, path: Path = MEASURED) -> dict[str, Any] | None:
    """Return the share of the gap that each predictor recovered with `num_images` labelled training images.

    `shares` are means over seeds of greedy outcomes and all questions, by predictor: on the fitted curve, or
    on the line between the measured numbers of images where there is none. `at` is the nearest number in the
    measured range, in place of a number outside of it. None for no training images, and without a file.
    """
    if num_images < 1 or not path.is_file():
        return None
    measured = json.loads(path.read_text(encoding="utf-8"))
    curves = [
        curve for curve in measured["curves"] if not curve["soft"] and curve["questions_per_image"] is None
    ]
    at = int(np.clip(num_images, *_find_range(curves)))
    return {
        "backbone": measured["backbone"],
        "task": measured["task"],
        "at": at,
        "shares": {curve["predictor"]: _read_share(curve, at) for curve in curves},
    }


def _find_range(curves: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the numbers of images between which every curve was measured."""
    return (
        max(curve["num_images"][0] for curve in curves),
        min(curve["num_images"][-1] for curve in curves),
    )


def _read_share(curve: dict[str, Any], num_images: int) -> float:
    fit = curve["fit"]
    if fit is None:
        return float(np.interp(np.log(num_images), np.log(curve["num_images"]), curve["value"]))
    return float(fit["limit"] - fit["loss"] * num_images ** -fit["exponent"])


def describe_label_curve(num_images: int, path: Path = MEASURED) -> str | None:
    """Return a sentence on the label curve at a number of training images; None without one."""
    quoted = quote_label_curve(num_images, path)
    if quoted is None:
        return None
    shares = ", ".join(f"{name} {share:.0%}" for name, share in quoted["shares"].items())
    range_note = ""
    if quoted["at"] != num_images:
        kind = "most" if quoted["at"] < num_images else "fewest"
        range_note = f", the {kind} that were measured, not {num_images:,}"
    return (
        f"share of the gap from mix to budgeted oracle recovered with {quoted['at']:,} labelled training "
        f"images{range_note}: {shares} (measured with {quoted['backbone']} on {quoted['task']}; other "
        "backbones and tasks differ)"
    )
