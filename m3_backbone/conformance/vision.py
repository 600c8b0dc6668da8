"""Checks of vision passes and coinciding scales.

Passes are counted by calls of `run_vision(images, scale)`, which `NativeBackbone` has, and any other backbone
may have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np

from m3_backbone.backbone import Backbone
from m3_backbone.conformance.subject import Check, NotApplicable, Subject, draw_image, expect
from m3_backbone.ladder import coinciding_scales

# Size of an image at which scales of most ladders coincide.
_TINY = (28, 20)


@contextmanager
def counted_vision(backbone: Backbone) -> Iterator[list[int]]:
    """A list to which every vision pass appends its scale, once for each image."""
    run = getattr(backbone, "run_vision", None)
    if run is None:
        raise NotApplicable("the backbone has no run_vision(images, scale), so its passes cannot be counted")
    before = dict(vars(backbone))
    passes: list[int] = []

    def run_counted(images: Any, scale: int) -> Any:
        passes.extend([scale] * len(images))
        return run(images, scale)

    vars(backbone)["run_vision"] = run_counted
    try:
        yield passes
    finally:
        del vars(backbone)["run_vision"]
        if "run_vision" in before:
            vars(backbone)["run_vision"] = before["run_vision"]


def vision_runs_for_the_scale_alone(subject: Subject) -> None:
    """An answer runs the vision pass of its scale alone, once for all questions about an image.

    The features of `feature_scales` run that of the coarsest scale. A thumbnail backbone may run coarser
    scales besides.
    """
    backbone = subject.backbone
    if backbone.family == "pooled":
        raise NotApplicable("one vision pass of a pooled backbone serves all scales")
    name, image = max(subject.images.items(), key=lambda item: item[1].width * item[1].height)
    with counted_vision(backbone) as passes:
        encoded = backbone.encode([image])
        backbone.compute_features(encoded, backbone.feature_scales)
        coarsest = backbone.scales[0]
        expect(passes == [coarsest], f"features of image {name} run a pass of scale {coarsest}", passes)
        for scale in subject.scales:
            passes.clear()
            encoded = backbone.encode([image])
            for _ in range(2):
                backbone.answer([*encoded, *encoded], subject.questions[:2], scale)
            allowed = [other for other in backbone.scales if other <= scale]
            if backbone.family == "native":
                allowed = [scale]
            is_allowed = set(passes) <= set(allowed) and len(passes) == len(set(passes))
            expect(
                scale in passes and is_allowed,
                f"answers about image {name} at scale {scale} run its vision pass once",
                f"passes of scales {passes}",
            )


def coinciding_scales_are_one(subject: Subject) -> None:
    """Scales that give an image the same number of tokens have equal features and answers.

    The vision pass of one of them serves the others.
    """
    backbone, question = subject.backbone, subject.questions[0]
    is_any = False
    for name, image in {**subject.images, "tiny": draw_image(_TINY)}.items():
        for scale, coarsest in coinciding_scales(backbone, image.size).items():
            if scale == coarsest:
                continue
            is_any = True
            place = f"image {name} at scale {scale}, which coincides with {coarsest}"
            expected = subject.ask(image, question, coarsest)
            subject.expect_same(subject.ask(image, question, scale), expected, place)
            (features,) = backbone.compute_features(backbone.encode([image]), (coarsest, scale), ())
            is_equal = np.array_equal(features.visual[scale], features.visual[coarsest])
            expect(is_equal, f"{place}, has the same visual tokens", "others")
            if backbone.family == "native" and getattr(backbone, "run_vision", None) is not None:
                with counted_vision(backbone) as passes:
                    encoded = backbone.encode([image])
                    backbone.answer(encoded, [question], coarsest)
                    backbone.answer(encoded, [question], scale)
                expect(len(passes) == 1, f"{place}, runs one vision pass", f"{len(passes)}")
    if not is_any:
        raise NotApplicable("no scales coincide on these images")


def views_have_at_most_the_tokens(subject: Subject) -> None:
    """The pictures of an image at a scale are RGB, and have at most one cell for each visual token."""
    backbone = subject.backbone
    for (name, image), scale in product(subject.images.items(), backbone.scales):
        panels = backbone.view_image(image, scale)
        place = f"the pictures of image {name} at scale {scale}"
        expect(bool(panels), f"{place} are at least one", "none")
        modes = {panel.image.mode for panel in panels}
        expect(modes == {"RGB"}, f"{place} are RGB", ", ".join(sorted(modes)))
        num_cells = sum(panel.num_cells for panel in panels)
        num_tokens = backbone.num_visual_tokens(image.size, scale)
        expect(num_cells <= num_tokens, f"{place} have at most {num_tokens} cells", num_cells)


VISION_CHECKS: tuple[Check, ...] = (
    vision_runs_for_the_scale_alone,
    coinciding_scales_are_one,
    views_have_at_most_the_tokens,
)
