"""HTML of the demo. All texts are escaped; pictures are part of the HTML."""

import functools
import io
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from experiments.serving.demo.trial import Trial
from experiments.serving.limits import encode_data_url
from m3_backbone.backbone import Backbone
from m3_backbone.views import Panel, draw_view
from predictor.adaptive.model import AdaptiveAnswer

_TEMPLATE = "parts.html.j2"
_VIEW_SIDE = 360  # pixels
_MAX_ANSWER = 500  # characters


def render_answers(trial: Trial, chosen: AdaptiveAnswer, reason: str, *, shows_path: bool = False) -> str:
    """Return the answer that was chosen, why, and a table of all scales.

    With `shows_path`, the scales that were tried are listed with their confidences.
    """
    finest = trial.answers[-1].visual_tokens
    rows = [
        {
            "scale": item.scale,
            "answer": _shorten(item.answer.text),
            "tokens": item.visual_tokens,
            "gflops": f"{item.flops / 1e9:.3g}",
            "milliseconds": f"{item.milliseconds:.1f}",
            "estimate": min(max(item.estimate, 0.0), 1.0),
            "confidence": f"{item.answer.confidence:.3f}",
            "is_chosen": item.scale == chosen.scale,
            "is_tried": item.scale in chosen.tried,
        }
        for item in trial.answers
    ]
    confidence = {item.scale: item.answer.confidence for item in trial.answers}
    return render(
        "answers",
        question=trial.question,
        answer=_shorten(chosen.text),
        scale=chosen.scale,
        path=[(scale, f"{confidence[scale]:.3f}") for scale in chosen.tried if shows_path],
        cost=chosen.cost,
        saved=finest - chosen.cost,
        finest=finest,
        reason=reason,
        rows=rows,
        predictor=f"{trial.predictor_milliseconds:.1f}",
    )


def render_views(backbone: Backbone, image: Image.Image) -> str:
    """Return the picture as the backbone sees it at each scale, with the grids of visual tokens."""
    views = []
    for scale in backbone.scales:
        panels = backbone.view_image(image, scale)
        file = io.BytesIO()
        draw_view(panels, _VIEW_SIDE).save(file, "JPEG", quality=85)
        views.append(
            {
                "scale": scale,
                "tokens": backbone.num_visual_tokens(image.size, scale),
                "detail": " and ".join(map(_describe, panels)),
                "picture": encode_data_url(file.getvalue()),
            }
        )
    return render("views", views=views)


def render(part: str, **values: Any) -> str:
    """Return the macro `part` of the template, called with these values."""
    module: Any = _environment().get_template(_TEMPLATE).module
    return str(getattr(module, part)(**values))


def _describe(panel: Panel) -> str:
    """Return text with the pixels and the grid of a picture, such as `192 x 192 pixels, grid 3 x 3`."""
    grid = "" if panel.grid is None else f", grid {panel.grid[1]} x {panel.grid[0]}"
    return f"{panel.image.width} x {panel.image.height} pixels{grid}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_ANSWER else f"{line[: _MAX_ANSWER - 3]}..."


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("experiments", "serving/demo")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{math.floor(value * 1000 + 0.5) / 10:g}"
    return environment
