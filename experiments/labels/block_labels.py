"""Labels of one block of samples, answered at every scale in batches of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.labels.blocks import ImageQuestions
from experiments.labels.folder import KeptInputs
from experiments.tasks.base import Sample
from m3_backbone.asking import ask_whether, check_asking, count_asking_flops
from m3_backbone.backbone import NOT_FINITE, Answer, Backbone, EncodedImage
from m3_backbone.features import ImageFeatures, make_thumbnail
from m3_backbone.ladder import find_coarsest
from m3_backbone.outcomes.table import OutcomeTable


@dataclass(frozen=True)
class AnsweredSample:
    """A sample with its answer, visual tokens and FLOPs at each scale."""

    sample: Sample
    question_ids: list[int]
    visual_tokens: list[int]
    prefill_flops: list[int]
    vision_flops: list[int]
    answers: Sequence[Answer]
    yes_log_odds: float | None = None
    asking_flops: int | None = None


class BlockLabels:
    """Collects the outcomes, image features and skipped samples of one block.

    `skipped` are dicts with sample_id, image_id and reason; `unreadable` are the ids of images that could not
    be read, which a later labelling tries again. `kept` says what else is kept for predictors.
    """

    def __init__(self, backbone: Backbone, kept: KeptInputs) -> None:
        self.backbone, self.kept = backbone, kept
        self.answered: list[AnsweredSample] = []
        self.features: dict[str, ImageFeatures] = {}
        self.skipped: list[dict[str, Any]] = []
        self.unreadable: list[str] = []

    def add(self, batch: Sequence[ImageQuestions]) -> None:
        """Answer all questions on a batch of images at every scale; each image is encoded once.

        Scales that coincide on an image are answered once. All samples of an image that the backbone cannot
        encode are skipped.
        """
        answerable = [(item.image, self._find_answerable(item)) for item in batch]
        pictures = [
            (image, samples) for image, samples in answerable if samples and isinstance(image, Image.Image)
        ]
        if not pictures:
            return
        encoded = self.backbone.encode([image for image, _ in pictures])
        pairs = [(e, sample) for e, (_, samples) in zip(encoded, pictures, strict=True) for sample in samples]
        by_sample = answer_at_scales(
            self.backbone, pairs, self.backbone.scales, states=self.kept.decoder_state
        )
        answers = dict(zip((sample.sample_id for _, sample in pairs), by_sample, strict=True))
        log_odds: dict[str, float] = {}
        prompt = self.kept.self_asking
        if prompt is not None:
            images, questions = [image for image, _ in pairs], [sample.question for _, sample in pairs]
            asked = ask_whether(self.backbone, images, questions, prompt).tolist()
            log_odds = dict(zip((sample.sample_id for _, sample in pairs), asked, strict=True))
        all_features = self.backbone.compute_features(encoded, self.kept.feature_scales or ())
        for features, (picture, samples) in zip(all_features, pictures, strict=True):
            if self.kept.thumbnail_size is not None:
                features = replace(features, thumbnail=make_thumbnail(picture, self.kept.thumbnail_size))
            costs = [self.backbone.num_visual_tokens(picture.size, scale) for scale in self.backbone.scales]
            vision = [self.backbone.vision_flops(picture.size, scale) for scale in self.backbone.scales]
            for sample in samples:
                row = AnsweredSample(
                    sample,
                    self.backbone.question_ids(sample.question),
                    costs,
                    [
                        self.backbone.prefill_flops(picture.size, sample.question, scale)
                        for scale in self.backbone.scales
                    ],
                    vision,
                    answers[sample.sample_id],
                    log_odds.get(sample.sample_id),
                    None
                    if self.kept.self_asking is None
                    else count_asking_flops(
                        self.backbone, picture.size, sample.question, self.kept.self_asking
                    ),
                )
                try:
                    if not features.is_finite():
                        raise ValueError(NOT_FINITE)
                    for answer in row.answers:
                        answer.check_finite()
                except ValueError as error:
                    self._skip(sample, str(error))
                else:
                    self.answered.append(row)
                    self.features[sample.image_id] = features

    def _find_answerable(self, item: ImageQuestions) -> list[Sample]:
        """Return the samples of an image that the backbone can answer; add the others to `skipped`."""
        answerable = []
        reason = self._check_image(item)
        for sample in item.samples:
            if reason is not None:
                self._skip(sample, reason)
                continue
            try:
                if not sample.references:
                    raise ValueError("the sample has no references")
                self.backbone.check_question(sample.question, sample.references)
                if self.kept.self_asking is not None:
                    check_asking(self.backbone, sample.question, self.kept.self_asking)
            except ValueError as error:
                self._skip(sample, str(error))
            else:
                answerable.append(sample)
        return answerable

    def _check_image(self, item: ImageQuestions) -> str | None:
        """Return the reason why an image cannot be encoded, None if it can; note an unreadable image."""
        if isinstance(item.image, str):
            self.unreadable.append(item.samples[0].image_id)
            return item.image
        try:
            self.backbone.check_image(item.image.size)
        except ValueError as error:
            return str(error)
        return None

    def _skip(self, sample: Sample, reason: str) -> None:
        names = {"sample_id": sample.sample_id, "image_id": sample.image_id}
        self.skipped.append({**names, "reason": reason})

    def to_table(
        self, fingerprints: Mapping[str, str], score: Callable[[Sample, str], float]
    ) -> OutcomeTable:
        """Return the outcome table of the block; `score` is `Task.score`."""
        rows, samples = self.answered, [row.sample for row in self.answered]

        def text(name: str) -> np.ndarray:
            return np.array([getattr(sample, name) for sample in samples], dtype=object)

        def numbers(values: list[list[Any]], dtype: type) -> np.ndarray:
            return np.array(values, dtype=dtype).reshape(len(rows), len(self.backbone.scales))

        log_odds = [row.yes_log_odds for row in rows]
        asking_flops = [row.asking_flops for row in rows]
        entropies = [[answer.entropy for answer in row.answers] for row in rows]
        has_entropy = all(entropy is not None for row in entropies for entropy in row)
        decoder_state, first_probability = self._stack_states() if self.kept.decoder_state else (None, None)
        scores = [[score(row.sample, answer.text) for answer in row.answers] for row in rows]
        return OutcomeTable(
            scales=self.backbone.scales,
            fingerprints=fingerprints,
            family=self.backbone.family,
            sample_id=text("sample_id"),
            image_id=text("image_id"),
            task=text("task"),
            kind=np.array([str(sample.attributes.get("kind", "")) for sample in samples], dtype=object),
            question=text("question"),
            metric=text("metric"),
            references=[list(sample.references) for sample in samples],
            attributes=[dict(sample.attributes) for sample in samples],
            question_ids=[np.array(row.question_ids, dtype=np.int32) for row in rows],
            answer=[[answer.text for answer in row.answers] for row in rows],
            score=numbers(scores, np.float32),
            nll=numbers([[answer.nll for answer in row.answers] for row in rows], np.float32),
            reference_tokens=numbers(
                [[answer.reference_tokens for answer in row.answers] for row in rows], np.int32
            ),
            confidence=numbers([[answer.confidence for answer in row.answers] for row in rows], np.float32),
            margin=numbers([[answer.margin for answer in row.answers] for row in rows], np.float32),
            visual_tokens=numbers([row.visual_tokens for row in rows], np.int32),
            prefill_flops=numbers([row.prefill_flops for row in rows], np.int64),
            vision_flops=numbers([row.vision_flops for row in rows], np.int64),
            entropy=numbers(entropies, np.float32) if has_entropy else None,
            decoder_state=decoder_state,
            first_probability=first_probability,
            yes_log_odds=None if self.kept.self_asking is None else np.array(log_odds, dtype=np.float32),
            asking_flops=None if self.kept.self_asking is None else np.array(asking_flops, dtype=np.int64),
        )

    def _stack_states(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns of the decoder's states at the coarsest scale."""
        states = [row.answers[0].state for row in self.answered]
        hidden = [state.hidden.half().numpy() for state in states if state is not None]
        probability = [state.probability for state in states if state is not None]
        assert len(hidden) == len(states)
        stacked = np.stack(hidden) if hidden else np.zeros((0, 0), np.float16)
        return stacked, np.array(probability, dtype=np.float32)


def answer_at_scales(
    backbone: Backbone,
    pairs: Sequence[tuple[EncodedImage, Sample]],
    scales: Sequence[int],
    *,
    states: bool = False,
) -> list[tuple[Answer, ...]]:
    """Return the answers to each (encoded image, sample), one per scale; `scales` are ascending.

    Scales that coincide on an image share one answer, given at the coarsest of them. With `states`, the
    answers at the first scale have the state of the decoder.
    """
    coarsest = find_coarsest_on(backbone, [image for image, _ in pairs], scales)
    answers: list[dict[int, Answer]] = [{} for _ in pairs]  # column of a scale -> answer
    drafts: dict[int, Answer] = {}
    # Finest scale first: its answer is a good draft of the answer at the next coarser scale.
    for column in reversed(range(len(scales))):
        rows = np.flatnonzero(coarsest[:, column] == column).tolist()
        with_draft = [row for row in rows if row in drafts]
        without_draft = [row for row in rows if row not in drafts]
        for part in filter(None, (with_draft, without_draft)):
            answer = backbone.answer_with_states if states and column == 0 else backbone.answer
            part_answers = answer(
                [pairs[row][0] for row in part],
                [pairs[row][1].question for row in part],
                scales[column],
                references=[pairs[row][1].references for row in part],
                drafts=[drafts[row] for row in part] if part is with_draft else None,
            )
            for row, row_answer in zip(part, part_answers, strict=True):
                answers[row][column] = drafts[row] = row_answer
    return [
        tuple(answers[row][column] for column in columns) for row, columns in enumerate(coarsest.tolist())
    ]


def find_coarsest_on(
    backbone: Backbone, encoded: Sequence[EncodedImage], scales: Sequence[int]
) -> NDArray[np.int64]:
    """Column of the coarsest scale that coincides with each scale on each image, `[num_images, num_scales]`.

    The columns are those of the ascending `scales`.
    """
    sizes = [image.size for image in encoded]
    tokens_of = {size: [backbone.num_visual_tokens(size, scale) for scale in scales] for size in set(sizes)}
    return find_coarsest(np.array([tokens_of[size] for size in sizes]).reshape(len(sizes), len(scales)))
