"""Checks of answers: nothing but image, question, scale and draw changes them."""

import dataclasses
import math
from itertools import product

from PIL import Image, ImageOps

from m3_backbone.backbone import Answer
from m3_backbone.conformance.subject import Check, NotApplicable, Subject, expect
from m3_backbone.decoding.sampling import Draw
from m3_backbone.images import to_rgb

_REFERENCES = ("yes", "a blue one")
_HOT, _NUM_KEYS = 10.0, 8


def answers_are_well_formed(subject: Subject) -> None:
    """An answer has text, tokens, a confidence in [0, 1], and finite margin and entropy of at least 0.

    The entropy may be None. Without references the answer has no likelihood.
    """
    backbone = subject.backbone
    for (name, image), scale in product(subject.images.items(), subject.scales):
        answer = subject.ask(image, subject.questions[0], scale)
        place = f"the answer about image {name} at scale {scale}"
        expect(isinstance(answer.text, str), f"{place} is text", repr(answer.text))
        ids = answer.token_ids
        is_list = isinstance(ids, list) and bool(ids) and all(type(token) is int for token in ids)
        expect(is_list, f"{place} has token ids", ids)
        expect(0 <= answer.confidence <= 1, f"{place} has a confidence in [0, 1]", answer.confidence)
        entropy = 0.0 if answer.entropy is None else answer.entropy
        expect(0 <= entropy < math.inf, f"{place} has a finite entropy of at least 0, or none", entropy)
        expect(0 <= answer.margin < math.inf, f"{place} has a margin of at least 0", answer.margin)
        no_likelihood = (answer.nll, answer.reference_tokens) == (None, None)
        expect(no_likelihood, f"{place} has no nll without references", answer.nll)
    expect(not backbone.answer([], [], subject.scales[0]), "no questions have no answers", "something")


def answers_depend_on_the_image(subject: Subject) -> None:
    """At the finest scale, different images have answers of different tokens or confidence."""
    question, scale = subject.questions[0], subject.scales[-1]
    answers = [subject.ask(image, question, scale) for image in subject.images.values()]
    different = {(*answer.token_ids, answer.confidence) for answer in answers}
    expect(
        len(different) > 1 or len(answers) < 2,
        f"{len(answers)} images have different answers to {question!r} at scale {scale}",
        f"all {answers[0].text!r} with confidence {answers[0].confidence:.6g}",
    )


def answers_are_deterministic(subject: Subject) -> None:
    """An image that is encoded twice has the same answer twice, and asked again the same answer again."""
    backbone = subject.backbone
    for (name, image), scale in product(subject.images.items(), subject.scales):
        question = subject.questions[0]
        encoded = backbone.encode([image])
        (first,) = backbone.answer(encoded, [question], scale)
        (again,) = backbone.answer(encoded, [question], scale)
        place = f"image {name} at scale {scale}"
        subject.expect_same(again, first, f"{place}, asked again")
        subject.expect_same(subject.ask(image, question, scale), first, f"{place}, encoded again")


def batches_change_nothing(subject: Subject) -> None:
    """An answer in a batch of images of one size, repeated ones included, is the answer alone."""
    name, image = next(iter(subject.images.items()))
    _compare_batch(
        subject,
        [
            (f"image {name}", image, subject.questions[0]),
            (f"image {name} again", image.copy(), subject.questions[0]),
            (f"inverted image {name}", ImageOps.invert(to_rgb(image)), subject.questions[1]),
        ],
    )


def mixed_shapes_change_nothing(subject: Subject) -> None:
    """An answer in a batch of images of several sizes and questions of several lengths is that alone."""
    questions = [subject.questions[row % len(subject.questions)] for row in range(len(subject.images))]
    rows = zip(subject.images.items(), questions, strict=True)
    _compare_batch(subject, [(f"image {name}", image, question) for (name, image), question in rows])


def _compare_batch(subject: Subject, rows: list[tuple[str, Image.Image, str]]) -> None:
    """Compare answers in a batch with those alone; `rows` are descriptions, images and questions."""
    backbone = subject.backbone
    for scale in subject.scales:
        encoded = backbone.encode([image for _, image, _ in rows])
        answers = backbone.answer(encoded, [question for _, _, question in rows], scale)
        expect(len(answers) == len(rows), f"{len(rows)} questions have as many answers", len(answers))
        for answer, (place, image, question) in zip(answers, rows, strict=True):
            alone = subject.ask(image, question, scale)
            subject.expect_same(answer, alone, f"{place} at scale {scale}, in a batch of {len(rows)}")


def questions_about_an_image_change_nothing(subject: Subject) -> None:
    """Questions about one encoded image, asked together and interleaved with another's, are as alone."""
    backbone = subject.backbone
    (name, image), (_, other) = list(subject.images.items())[:2]
    for scale in subject.scales:
        first, second = backbone.encode([image, other])
        rows = [(item, question) for question in subject.questions for item in (first, second)]
        answers = backbone.answer([item for item, _ in rows], [question for _, question in rows], scale)
        for answer, (item, question) in zip(answers, rows, strict=True):
            if item is first:
                alone = subject.ask(image, question, scale)
                place = f"image {name} at scale {scale}, {question!r} among {len(rows)} questions"
                subject.expect_same(answer, alone, place)


def other_scales_change_nothing(subject: Subject) -> None:
    """An image that was answered at finer and coarser scales, and described, has the answer of a new one."""
    backbone, question = subject.backbone, subject.questions[0]
    for name, image in subject.images.items():
        encoded = backbone.encode([image])
        backbone.compute_features(encoded, backbone.feature_scales)
        for scale in (*reversed(subject.scales), *subject.scales):
            (answer,) = backbone.answer(encoded, [question], scale)
            alone = subject.ask(image, question, scale)
            subject.expect_same(answer, alone, f"image {name} at scale {scale}, after other scales")


def drafts_change_nothing(subject: Subject) -> None:
    """Right, wrong, cut and extended drafts, and those of another scale, leave an answer as it is."""
    backbone = subject.backbone
    image_list = list(subject.images.values())
    questions = [subject.questions[row % len(subject.questions)] for row in range(len(image_list))]
    answers_at = {
        scale: backbone.answer(backbone.encode(image_list), questions, scale) for scale in subject.scales
    }
    for scale, answers in answers_at.items():
        kinds = {
            "right": answers,
            "wrong": [_replace_ids(answer, [*answer.token_ids[::-1], 0]) for answer in answers],
            "cut": [_replace_ids(answer, answer.token_ids[:1]) for answer in answers],
            "extended": [_replace_ids(answer, answer.token_ids * 2) for answer in answers],
            "other questions'": [*answers[1:], *answers[:1]],
            **{f"scale {other}'s": drafts for other, drafts in answers_at.items() if other != scale},
        }
        for kind, drafts in kinds.items():
            drafted = backbone.answer(backbone.encode(image_list), questions, scale, drafts=drafts)
            for name, answer, expected in zip(subject.images, drafted, answers, strict=True):
                subject.expect_same(answer, expected, f"image {name} at scale {scale} with {kind} drafts")


def _replace_ids(answer: Answer, token_ids: list[int]) -> Answer:
    return dataclasses.replace(answer, token_ids=token_ids)


def references_change_nothing(subject: Subject) -> None:
    """References leave an answer as it is; its nll is finite, and the smallest of those of each alone."""
    question = subject.questions[0]
    for (name, image), scale in product(subject.images.items(), subject.scales):
        plain = subject.ask(image, question, scale)
        place = f"image {name} at scale {scale}"
        answer = subject.ask(image, question, scale, references=[_REFERENCES])
        subject.expect_same(answer, plain, f"{place} with references")
        alone = []
        for reference in _REFERENCES:
            nll = subject.ask(image, question, scale, references=[[reference]]).nll
            is_valid = nll is not None and 0 <= nll < math.inf
            expect(is_valid, f"{place}: the nll of {reference!r} is finite and at least 0", nll)
            alone.append(nll)
        smallest = min(nll for nll in alone if nll is not None)
        is_smallest = answer.nll is not None and math.isclose(
            answer.nll, smallest, rel_tol=subject.rounding, abs_tol=subject.rounding
        )
        expect(is_smallest, f"{place}: the nll of references {_REFERENCES} is {smallest:.6g}", answer.nll)
        count = answer.reference_tokens
        expect(type(count) is int and count > 0, f"{place}: reference_tokens is a positive integer", count)


def sampled_answers_follow_their_keys(subject: Subject) -> None:
    """A sampled answer depends on its key and not on the batch; keys differ at a high temperature.

    With 16-bit weights, rounding may select another token: half of the first tokens have to be equal.
    """
    backbone, question, scale = subject.backbone, subject.questions[0], subject.scales[0]
    names = list(subject.images)
    draws = [Draw(_HOT, ("check", number)) for number in range(_NUM_KEYS)]
    rows = [(name, draw) for draw in draws for name in names]
    encoded_of = dict(zip(names, backbone.encode(list(subject.images.values())), strict=True))
    encoded = [encoded_of[name] for name, _ in rows]
    try:
        answers = backbone.answer(encoded, [question] * len(rows), scale, draws=[draw for _, draw in rows])
    except (ValueError, NotImplementedError) as error:
        raise NotApplicable(f"the backbone refuses sampled answers: {error}") from error
    firsts = []
    for (name, draw), answer in list(zip(rows, answers, strict=True))[: 2 * len(names)]:
        alone = subject.ask(subject.images[name], question, scale, draws=[draw])
        firsts.append(answer.token_ids[0] == alone.token_ids[0])
        if not subject.has_16_bits:
            subject.expect_same(answer, alone, f"image {name} with key {draw.key} in a batch of {len(rows)}")
    is_most = 2 * sum(firsts) >= len(firsts)
    expect(
        is_most, "half of the sampled answers begin in a batch as alone", f"{sum(firsts)} of {len(firsts)}"
    )
    different = {tuple(answer.token_ids) for answer in answers[:: len(names)]}
    expect(
        len(different) > 1,
        f"image {names[0]} at a temperature of {_HOT:g} has several answers to {_NUM_KEYS} keys",
        f"{_NUM_KEYS} times {answers[0].text!r}",
    )


ANSWER_CHECKS: tuple[Check, ...] = (
    answers_are_well_formed,
    answers_depend_on_the_image,
    answers_are_deterministic,
    batches_change_nothing,
    mixed_shapes_change_nothing,
    questions_about_an_image_change_nothing,
    other_scales_change_nothing,
    drafts_change_nothing,
    references_change_nothing,
    sampled_answers_follow_their_keys,
)
