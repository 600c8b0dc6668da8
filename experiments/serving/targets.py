"""Scale of each request of a batch: by price, budget or named point, or as the request says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from experiments.serving.errors import RequestError, refuse
from experiments.serving.protocol import ChosenScale, Terms
from m3_backbone.backbone import Backbone, check_scale
from predictor.adaptive.inputs import Choice
from predictor.cascades.hybrid import Hybrid
from predictor.policy.pricing import OperatingPoint, PriceList

# Chooses scales for items and questions at one operating point: `AdaptiveVLM.choose`, `ScaleChooser.choose`.
Choose = Callable[[Sequence[Any], Sequence[str], OperatingPoint], list[Choice]]
FindHybrid = Callable[..., Hybrid]


@dataclass(frozen=True)
class Target:
    """How the scale of one request is chosen: exactly one of a point, a hybrid and a scale."""

    point: OperatingPoint | None = None
    hybrid: Hybrid | None = None
    scale: int | None = None

    @property
    def bound(self) -> float | None:
        """Stated disagreement of the point, if there are both."""
        return None if self.point is None else self.point.disagreement


def find_target(
    terms: Terms, prices: PriceList, backbone: Backbone, find_hybrid: FindHybrid | None = None
) -> Target:
    """Return the target that the terms of a request name. Raises RequestError if they name none.

    Without `find_hybrid`, a request cannot escalate.
    """
    given = [name for name, value in terms.given().items() if value is not False]
    name = given[0] if given else None
    try:
        if terms.scale is not None:
            if len(given) > 1:
                raise ValueError("scale forces a scale, and price, budget, point and escalate choose one")
            return Target(scale=check_scale(terms.scale, backbone.scales))
        if terms.escalate:
            if find_hybrid is None:
                raise ValueError("only a server with the backbone in its own process can escalate")
            return Target(hybrid=find_hybrid(price=terms.price, budget=terms.budget, point=terms.point))
        return Target(point=prices.find(price=terms.price, budget=terms.budget, name=terms.point))
    except ValueError as error:
        raise refuse(str(error), param=name) from error


def choose_scales(
    choose: Choose,
    items: Sequence[Any],
    questions: Sequence[str],
    targets: Sequence[Target],
    sizes: Sequence[tuple[int, int]],
    backbone: Backbone,
) -> dict[int, Choice]:
    """Return the choices by index; requests with a hybrid have none. One call of `choose` per point.

    `sizes` are (width, height) of the images in pixels.
    """
    choices: dict[int, Choice] = {}
    rows_of: dict[OperatingPoint, list[int]] = {}
    for row, target in enumerate(targets):
        if target.scale is not None:
            counts = count_tokens(backbone, sizes[row])
            choices[row] = Choice(target.scale, backbone.scales, (), counts)
        elif target.point is not None:
            rows_of.setdefault(target.point, []).append(row)
    for point, rows in rows_of.items():
        chosen = choose([items[row] for row in rows], [questions[row] for row in rows], point)
        choices.update(zip(rows, chosen, strict=True))
    return choices


def count_tokens(backbone: Backbone, size: tuple[int, int]) -> tuple[int, ...]:
    """Return the visual tokens of an image of (width, height) pixels at each scale."""
    return tuple(backbone.num_visual_tokens(size, scale) for scale in backbone.scales)


def describe_choice(choice: Choice, tried: Sequence[int], target: Target) -> ChosenScale:
    """Return the choice as the response reports it; `tried` are the scales of all answers."""
    tokens = dict(zip(choice.scales, choice.visual_tokens, strict=True))
    price = target.point.price if target.point else float(target.hybrid.price[0]) if target.hybrid else None
    return ChosenScale(
        scale=tried[-1],
        tried=list(tried),
        visual_tokens=sum(tokens[scale] for scale in tried) + choice.prefilled_tokens,
        finest_visual_tokens=choice.visual_tokens[-1],
        estimates=dict(zip(choice.scales, choice.estimates, strict=True)) if choice.estimates else None,
        price=price,
    )


def check_answerable(backbone: Backbone, image: Image.Image, question: str) -> None:
    """Raise RequestError if the backbone cannot answer a question about an image."""
    try:
        backbone.check_question(question)
        backbone.check_image(image.size)
    except ValueError as error:
        raise RequestError(400, str(error), param="messages") from error
