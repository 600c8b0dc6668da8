"""Subjects of checks (a backbone with images and questions), errors of checks, and how checks are run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NoReturn, TypeVar
from unittest import SkipTest

import numpy as np
import torch
from PIL import Image

from m3_backbone.backbone import Answer, Backbone

QUESTIONS = ("What color is the large square?", "How many are there?", "Is it on the left? Answer yes or no.")
# Sizes (width, height) of the default images. The smallest has fewer tokens than the caps of most ladders.
SIZES = {"wide": (448, 320), "tall": (160, 360), "square": (224, 224), "small": (48, 32)}
# Largest relative difference of confidences that rounding explains, and in 16 bits of near ties in nats.
_ROUNDING = {torch.float16: 0.1, torch.bfloat16: 0.2}
_FINE_ROUNDING = 1e-4


class Failed(AssertionError):
    """The backbone breaks its contract: one sentence with what was expected and what was found."""


class NotApplicable(SkipTest):
    """The contract says nothing about this backbone here: one sentence with the reason."""


class Subject:
    """A backbone that is checked, and the images and questions that it is asked about.

    Args:
        open_backbone: returns the backbone; called a second time by the check of fingerprints.
        images: name -> image; by default four synthetic ones of different sizes.
        questions: at least two different questions.
    """

    def __init__(
        self,
        open_backbone: Callable[[], Backbone],
        images: Mapping[str, Image.Image] | None = None,
        questions: Sequence[str] = QUESTIONS,
    ) -> None:
        self.open_backbone = open_backbone
        self.images = dict(images or {name: draw_image(size) for name, size in SIZES.items()})
        self.questions = tuple(questions)

    @cached_property
    def backbone(self) -> Backbone:
        return self.open_backbone()

    @property
    def scales(self) -> tuple[int, ...]:
        """The coarsest, the middle and the finest scale: enough for checks that answer questions."""
        scales = self.backbone.scales
        return tuple(dict.fromkeys((scales[0], scales[len(scales) // 2], scales[-1])))

    @cached_property
    def rounding(self) -> float:
        """Relative difference of two confidences that rounding explains, by the dtype of the weights."""
        return _ROUNDING.get(getattr(self.backbone, "torch_dtype", torch.float32), _FINE_ROUNDING)

    @property
    def has_16_bits(self) -> bool:
        """Whether the weights have 16 bits, so that rounding may decide between two tokens."""
        return self.rounding > _FINE_ROUNDING

    def ask(self, image: Image.Image, question: str, scale: int, **options: Any) -> Answer:
        """Answer to one question about an image that is encoded for it alone."""
        (answer,) = self.backbone.answer(self.backbone.encode([image]), [question], scale, **options)
        return answer

    def expect_same(self, answer: Answer, expected: Answer, place: str) -> None:
        """Raise Failed if two answers differ in tokens or, beyond rounding, in confidence or entropy.

        With 16-bit weights, answers may differ where a token was a near tie.
        """
        if answer.token_ids != expected.token_ids:
            is_tie = self.has_16_bits and min(abs(answer.margin), abs(expected.margin)) < self.rounding
            expect(is_tie, f"{place}: the answer is {expected.text!r} {expected.token_ids}", answer.token_ids)
        elif not math.isclose(answer.confidence, expected.confidence, rel_tol=self.rounding):
            fail(f"{place}: the confidence is {expected.confidence:.6g}", f"{answer.confidence:.6g}")
        else:
            entropies = [0.0 if one.entropy is None else one.entropy for one in (answer, expected)]
            is_same = math.isclose(*entropies, rel_tol=self.rounding, abs_tol=self.rounding)
            expect(is_same, f"{place}: the entropy is {entropies[1]:.6g}", f"{entropies[0]:.6g}")


Check = Callable[[Subject], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """Outcome of one check; `reason` is empty if it is ok."""

    check: str
    outcome: Literal["ok", "failed", "not applicable"]
    reason: str = ""


def run_checks(subject: Subject, checks: Sequence[Check]) -> Iterator[Result]:
    """Yield the result of each check. An error of any type in a check is a failure of that check alone."""
    for check in checks:
        try:
            check(subject)
        except NotApplicable as skipped:
            yield Result(check.__name__, "not applicable", str(skipped))
        except Failed as failure:
            yield Result(check.__name__, "failed", str(failure))
        except Exception as error:  # a backbone may raise errors of any type
            message = " ".join(str(error).split())
            yield Result(check.__name__, "failed", f"it raised {type(error).__name__}: {message}")
        else:
            yield Result(check.__name__, "ok")


def select_checks(checks: Sequence[Check], words: Sequence[str] | None) -> list[Check]:
    """Return the checks whose names contain one of the words, as `select_by_words`."""
    return select_by_words({check.__name__: check for check in checks}, words, "checks", "check")


def select_by_words(
    items: Mapping[str, Item], words: Sequence[str] | None, option: str, noun: str
) -> list[Item]:
    """Return the items whose names contain one of the words; all for None.

    Raises ValueError for a word that no name contains; `option` gives the words, `noun` names an item.
    """
    if words is None:
        return list(items.values())
    for word in words:
        if not any(word in name for name in items):
            known = ", ".join(items)
            raise ValueError(f"{option}=[{word}]: no {noun} has this in its name, give some of {known}")
    return [item for name, item in items.items() if any(word in name for word in words)]


def fail(expected: str, found: object) -> NoReturn:
    """Raise Failed with a sentence that ends in what was found."""
    raise Failed(f"{expected}, and not {found}")


def expect(condition: bool, expected: str, found: object) -> None:
    """Raise Failed with a sentence if the condition does not hold."""
    if not condition:
        fail(expected, found)


def draw_image(size: tuple[int, int]) -> Image.Image:
    """Return an RGB image of (width, height) pixels: a gradient with two squares, different at each size."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([255 * columns / width, 255 * rows / height, np.full(rows.shape, width % 256)], -1)
    side = max(1, min(size) // 3)
    pixels[:side, :side] = (220, 40, 40)
    pixels[-side // 2 :, -side:] = (30, 90, 200)
    return Image.fromarray(pixels.astype(np.uint8))


def format_size(size: tuple[int, int]) -> str:
    """Return (width, height) as text."""
    return f"{size[0]}x{size[1]}"
