"""Checks of fingerprints, pickling, and what predictors read."""

import pickle
from itertools import product

import numpy as np
import torch

from m3_backbone.conformance.subject import Check, NotApplicable, Subject, expect
from m3_backbone.features import GROUPS

_FINGERPRINTS = ("weights", "prompt", "decoding")


def fingerprints_are_stable(subject: Subject) -> None:
    """`fingerprints` are texts for weights, prompt and decoding, equal when the backbone is opened again."""
    fingerprints = subject.backbone.fingerprints
    is_complete = set(_FINGERPRINTS) <= set(fingerprints) and all(
        isinstance(digest, str) and digest for digest in fingerprints.values()
    )
    expect(is_complete, f"fingerprints are texts named {', '.join(_FINGERPRINTS)}", fingerprints)
    again = subject.open_backbone().fingerprints
    expect(again == fingerprints, f"fingerprints of the backbone opened again are {fingerprints}", again)


def pickled_backbone_answers_the_same(subject: Subject) -> None:
    """A backbone that another process unpickles has the same name, ladder, fingerprints and answers."""
    backbone, question = subject.backbone, subject.questions[0]
    name, image = next(iter(subject.images.items()))
    copied = Subject(lambda: pickle.loads(pickle.dumps(backbone)), subject.images, subject.questions)
    for attribute in ("name", "family", "scales", "feature_scales", "fingerprints"):
        value, expected = getattr(copied.backbone, attribute), getattr(backbone, attribute)
        expect(value == expected, f"an unpickled backbone has {attribute}={expected}", value)
    for scale in subject.scales:
        expected_answer = subject.ask(image, question, scale)
        try:
            answer = copied.ask(image, question, scale)
        except torch.OutOfMemoryError as error:
            raise NotApplicable("two copies of the model do not fit on the device") from error
        subject.expect_same(answer, expected_answer, f"image {name} at scale {scale}, unpickled")


def features_are_well_formed(subject: Subject) -> None:
    """Visual features are finite, float16 and `[num_tokens, hidden]`; statistics are finite numbers.

    They have the scales and groups that were asked for, and are the same in a batch, alone and encoded again.
    """
    backbone = subject.backbone
    images = list(subject.images.values())
    batch = backbone.compute_features(backbone.encode(images), backbone.scales)
    expect(len(batch) == len(images), f"{len(images)} images have as many features", len(batch))
    widths = {tokens.shape[-1] for features in batch for tokens in features.visual.values()}
    expect(len(widths) == 1, "visual tokens have one width at all scales", widths)
    for name, image, features in zip(subject.images, images, batch, strict=True):
        place = f"the features of image {name}"
        expect(
            tuple(features.visual) == tuple(backbone.scales),
            f"{place} have {backbone.scales}",
            [*features.visual],
        )
        for tokens in features.visual.values():
            is_right = isinstance(tokens, np.ndarray) and tokens.dtype == np.float16 and tokens.ndim == 2
            expect(is_right, f"{place} are float16 [num_tokens, hidden]", f"{tokens.dtype} {tokens.shape}")
        expect(features.is_finite(), f"{place} are finite", "infinite or nan")
        (alone,) = backbone.compute_features(backbone.encode([image]), backbone.scales)
        for scale, tokens in features.visual.items():
            distance = np.abs(tokens.astype(np.float32) - alone.visual[scale].astype(np.float32)).max()
            size = np.abs(tokens.astype(np.float32)).max()
            is_close = distance <= max(subject.rounding, 2e-3) * size
            expect(is_close, f"{place} at scale {scale} are in a batch as alone", f"{distance:.3g} apart")
        is_close = all(
            np.isclose(value, alone.statistics[key], rtol=max(subject.rounding, 2e-3))
            for key, value in features.statistics.items()
        )
        expect(is_close, f"{place}: statistics are in a batch as alone", features.statistics)
        types = {type(value) for value in features.statistics.values()}
        expect(types <= {float}, f"{place}: statistics are of type float", types)
    names = {tuple(features.statistics) for features in batch}
    expect(len(names) == 1, "all images have the same statistics in the same order", names)
    for group, other in product(GROUPS, GROUPS):
        (features,) = backbone.compute_features(backbone.encode(images[:1]), (), (group,))
        is_own = not any(name.startswith(f"{other}/") for name in features.statistics) or group == other
        expect(is_own and not features.visual, f"only group {group} is computed", [*features.statistics])


def token_embeddings_fit_question_ids(subject: Subject) -> None:
    """`token_embeddings` are finite `[vocabulary, hidden]` on the CPU, with a row for each question id."""
    embeddings = subject.backbone.token_embeddings()
    shape = tuple(embeddings.shape)
    is_right = embeddings.ndim == 2 and embeddings.is_floating_point() and embeddings.device.type == "cpu"
    expect(is_right, "token_embeddings are a floating-point matrix on the CPU", f"{embeddings.dtype} {shape}")
    expect(not embeddings.requires_grad, "token_embeddings are frozen", "trainable")
    expect(bool(embeddings.isfinite().all()), "token_embeddings are finite", "infinite or nan")
    for question in subject.questions:
        ids = subject.backbone.question_ids(question)
        is_valid = bool(ids) and all(type(token) is int and 0 <= token < shape[0] for token in ids)
        expect(is_valid, f"question_ids of {question!r} are rows of {shape}", ids)
        again = subject.backbone.question_ids(question)
        expect(again == ids, f"question_ids of {question!r} are {ids} every time", again)


STATE_CHECKS: tuple[Check, ...] = (
    fingerprints_are_stable,
    pickled_backbone_answers_the_same,
    features_are_well_formed,
    token_embeddings_fit_question_ids,
)
