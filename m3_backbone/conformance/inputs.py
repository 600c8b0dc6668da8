"""Checks of unusual inputs: every one is answered, or refused with a sentence."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count

import numpy as np
from PIL import Image

from m3_backbone.conformance.subject import Check, Failed, NotApplicable, Subject, draw_image, expect, fail
from m3_backbone.images import UnreadableImage, to_rgb

_SIZES = ((6000, 40), (40, 6000), (1, 1), (1, 300), (4200, 20), (20, 4200), (1500, 1100))
# More words than any context has tokens.
_MANY_WORDS = 2**19


def sizes_are_answered_or_refused(subject: Subject) -> None:
    """Ribbons, single pixels and large images are answered, or refused by check_image and encode alike."""
    backbone = subject.backbone
    for size in _SIZES:
        image, place = draw_image(size), f"an image of {size[0]}x{size[1]} pixels"
        is_taken = _is_taken(partial(backbone.check_image, size), f"check_image of {place}")
        if is_taken != _is_taken(partial(backbone.encode, [image]), f"encode of {place}"):
            fail(f"{place} is {'taken' if is_taken else 'refused'} by encode as by check_image", "otherwise")
        if is_taken:
            for scale in dict.fromkeys((backbone.scales[0], backbone.scales[-1])):
                encoded = backbone.encode([image])
                backbone.answer(encoded, subject.questions[:1], scale)
                (features,) = backbone.compute_features(encoded, (scale,), ())
                count, stated = len(features.visual[scale]), backbone.num_visual_tokens(size, scale)
                expect(count == stated, f"{place} has {stated} visual tokens at scale {scale}", count)


def image_modes_are_converted(subject: Subject) -> None:
    """Greyscale, 16-bit, palette, CMYK and transparent images are read as `to_rgb` gives them.

    An image that `to_rgb` refuses is refused by encode too, with UnreadableImage. The image of the caller is
    not changed.
    """
    backbone = subject.backbone
    scale = backbone.scales[0]
    for mode, image in _make_modes().items():
        before = image.tobytes()
        try:
            rgb = to_rgb(image)
        except UnreadableImage:
            is_taken = _is_taken(partial(backbone.encode, [image]), f"encode of {mode}")
            expect(not is_taken, f"{mode} is refused with UnreadableImage", "encoded")
            continue
        (features,) = backbone.compute_features(backbone.encode([image]), (scale,))
        (expected,) = backbone.compute_features(backbone.encode([rgb]), (scale,))
        is_equal = np.array_equal(features.visual[scale], expected.visual[scale])
        is_equal = is_equal and features.statistics == expected.statistics
        expect(is_equal, f"{mode} has the features of its 8-bit RGB image (m3_backbone.images)", "others")
        backbone.answer(backbone.encode([image]), subject.questions[:1], scale)
        expect(image.tobytes() == before, f"the pixels of {mode} are left unchanged", "changed")


def _make_modes() -> Mapping[str, Image.Image]:
    rgb = draw_image((96, 80))
    opacity = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (80, 1)))
    transparent = rgb.copy()
    transparent.putalpha(opacity)
    levels = np.linspace(0, 65535, 96 * 80).astype(np.uint16).reshape(80, 96)
    palette = rgb.quantize(16)
    palette_transparent = palette.copy()
    palette_transparent.info["transparency"] = 3
    return {
        "a greyscale image": rgb.convert("L"),
        "a black-and-white image": rgb.convert("1"),
        "an image with a palette": palette,
        "an image with a transparent color": palette_transparent,
        "an RGBA image": transparent,
        "a 16-bit image": Image.fromarray(levels),
        "a CMYK image": rgb.convert("CMYK"),
        "a floating-point image": rgb.convert("F"),
        "an image without pixels": Image.new("RGB", (0, 5)),
    }


def questions_are_checked(subject: Subject) -> None:
    """Empty, overlong and invalid questions are refused by check_question and by answer, others are not."""
    backbone = subject.backbone
    for scale in (None, *backbone.scales):
        for question in subject.questions:
            try:
                backbone.check_question(question, ("yes", "a blue one"), scale)
            except ValueError as error:
                fail(f"check_question accepts {question!r} at scale {scale}", f"refused: {error}")
    words = getattr(getattr(backbone, "checkpoint", None), "context_length", _MANY_WORDS)
    refused = {
        "an empty question": "",
        "a question of white space": " \n\t ",
        f"a question of {words} words": "why " * words,
    }
    image = next(iter(subject.images.values()))
    encoded = backbone.encode([image])
    for kind, question in refused.items():
        _expect_refused(partial(backbone.check_question, question), f"{kind} by check_question")
        for scale in (backbone.scales[0], backbone.scales[-1]):
            _expect_refused(
                partial(backbone.answer, encoded, [question], scale),
                f"{kind} by answer at scale {scale}",
            )


def control_tokens_are_refused(subject: Subject) -> None:
    """Questions and references with a control token of the model are refused."""
    backbone = subject.backbone
    tokenizer = getattr(getattr(backbone, "processor", None), "tokenizer", None)
    if tokenizer is None:
        raise NotApplicable("the backbone has no processor.tokenizer that says what its control tokens are")
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = dict.fromkeys([*tokenizer.all_special_tokens, *added])
    encoded = backbone.encode([next(iter(subject.images.values()))])
    for token in tokens:
        text = f"What is {token} here?"
        _expect_refused(partial(backbone.check_question, text), f"{token!r} by check_question")
        _expect_refused(partial(backbone.check_question, "What?", [text]), f"{token!r} in a reference")
        _expect_refused(partial(backbone.answer, encoded, [text], backbone.scales[0]), f"{token!r} by answer")


def unknown_scales_are_refused(subject: Subject) -> None:
    """Every method with a scale raises ValueError that lists the scales for one that is not on the ladder."""
    backbone, question = subject.backbone, subject.questions[0]
    image = next(iter(subject.images.values()))
    # A scale below the finest too: the model may have been trained for it. M3 can pool to 4 tokens.
    unknown_scales = {next(n for n in count(4) if n not in backbone.scales), backbone.scales[-1] + 1}
    encoded = backbone.encode([image])
    calls: dict[str, Callable[[int], object]] = {
        "num_visual_tokens": lambda scale: backbone.num_visual_tokens(image.size, scale),
        "vision_flops": lambda scale: backbone.vision_flops(image.size, scale),
        "prefill_flops": lambda scale: backbone.prefill_flops(image.size, question, scale),
        "compute_features": lambda scale: backbone.compute_features(encoded, (scale,)),
        "answer": lambda scale: backbone.answer(encoded, [question], scale),
        "check_question": lambda scale: backbone.check_question(question, (), scale),
    }
    for unknown in sorted(unknown_scales):
        wrong = []
        for name, call in calls.items():
            try:
                call(unknown)
            except ValueError as error:
                if not all(str(scale) in str(error) for scale in backbone.scales):
                    wrong.append(f"{name} raises a message without the scales: {error}")
            except Exception as error:  # a backbone may raise errors of any type
                wrong.append(f"{name} raises {type(error).__name__}: {error}")
            else:
                wrong.append(f"{name} raises nothing")
        if wrong:
            raise Failed(
                f"scale {unknown} is not on the ladder, and raises ValueError with {backbone.scales}, but "
                + "; ".join(wrong)
            )


def _is_taken(call: Callable[[], object], place: str) -> bool:
    """Return whether a call succeeds. Raises Failed unless it is refused with a ValueError of a sentence."""
    try:
        call()
    except ValueError as error:
        expect(len(str(error).split()) > 2, f"{place} is refused with a sentence", repr(str(error)))
        return False
    except Exception as error:  # a backbone may raise errors of any type
        raise Failed(
            f"{place} raises ValueError or nothing, and not {type(error).__name__}: {error}"
        ) from error
    return True


def _expect_refused(call: Callable[[], object], place: str) -> None:
    if _is_taken(call, place):
        fail(f"{place} is refused", "accepted")


INPUT_CHECKS: tuple[Check, ...] = (
    sizes_are_answered_or_refused,
    image_modes_are_converted,
    questions_are_checked,
    control_tokens_are_refused,
    unknown_scales_are_refused,
)
