"""Recalibration of a trained predictor on one's own answered samples, without training.

The samples are labels of a task of one's own, or the record of a server (`experiments.serving.drift`), whose
score is the agreement with the finest scale. Calibrator, prices, hybrid and guarantee are fitted as in
training and publishing; the predictor itself stays as it is.
"""

import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Len
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.evaluation.fronts import Floats
from experiments.evaluation.guarantee import find_unseen, measure_loss, order_images
from experiments.evaluation.statistics import Bootstrap, number_images
from experiments.reporting.numbers import format_difference, format_tokens
from experiments.reporting.tables import format_table
from experiments.serving.adaptive import state_bounds
from experiments.training.trainer import fit_hybrid
from m3_backbone.arguments import ClosedFraction, PositiveInt
from m3_backbone.ladder import Family
from m3_backbone.outcomes.labels import Labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import ScalePredictor
from predictor.calibration import Calibrator
from predictor.cascades.hybrid import Hybrid
from predictor.features import Features
from predictor.policy.front import choose
from predictor.policy.pricing import PriceList
from predictor.splitting import split_for_calibrator

log = logging.getLogger(__name__)

# Longest line of a record, in bytes, and resamples of an interval.
_MAX_LINE, _NUM_RESAMPLES = 1_000_000, 1000


@dataclass(frozen=True, eq=False)
class Samples:
    """Answered samples with the predictor's estimates `[num_samples, num_scales]`, for prices.

    The visual tokens of `outcomes` include those of the predictor. `answered` are the outcomes without these,
    for the hybrid; None if the samples have no confidences.
    """

    estimates: Floats
    outcomes: OutcomeTable
    answered: OutcomeTable | None = None

    def take_images(self, number: int | None) -> "Samples":
        """Return the samples of this many images (`find_images`); None: all."""
        if number is None:
            return self
        rows = find_images(self.outcomes.cluster_id, number)
        answered = None if self.answered is None else self.answered.select(rows)
        return Samples(self.estimates[rows], self.outcomes.select(rows), answered)


def find_images(cluster_id: np.ndarray, number: int) -> NDArray[np.bool_]:
    """Return the mask `[num_samples]` of the first `number` images in the order of a hash of their ids.

    Raises ValueError if there are fewer images.
    """
    order = order_images(cluster_id)
    if number > len(order):
        raise ValueError(
            f"num_images={number}: the samples have {len(order)} images: give fewer, or label more"
        )
    return np.isin(number_images(cluster_id), order[:number])


def read_label_samples(
    predictor: ScalePredictor, labels: Labels, number: int | None, calibrator: Calibrator | None
) -> Samples:
    """Return the samples of `number` images of labels; a calibrator is fitted on half of them, by image.

    The samples are then those of the other half. Without another calibrator, the half on which that of the
    predictor may have been fitted is left out. Raises ValueError for labels of another backbone, and for too
    few images.
    """
    predictor.check_backbone(labels.outcomes.fingerprints)
    if calibrator is None and predictor.calibrator is not None:
        labels = labels.select(find_unseen(predictor, labels.outcomes))
        log.info(
            "half of the images are left out, as the calibrator may have been fitted on them: with "
            "calibrator=NAME another one is fitted on them"
        )
    if number is not None:
        labels = labels.select(find_images(labels.outcomes.cluster_id, number))
    if calibrator is not None:
        half, labels = split_for_calibrator(labels)
        predictor.calibrate(half, copy.deepcopy(calibrator))
    estimates = predictor.predict(labels.inputs)
    return Samples(estimates, predictor.features.charge(labels), labels.outcomes)


class RecordedAnswer(BaseModel):
    """A line of the record of a server."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    image: Annotated[str, Len(1, 64)]
    scales: Annotated[list[PositiveInt], Len(1, 64)]
    visual_tokens: Annotated[list[PositiveInt], Len(1, 64)]
    estimates: Annotated[list[ClosedFraction], Len(1, 64)]
    agrees: Annotated[list[bool], Len(1, 64)]


def read_record(
    path: Path, model: str, features: Features, scales: tuple[int, ...], family: Family
) -> Samples:
    """Return the samples in the record of a server; `model` is that of `drift.identify_model`.

    A record has the visual tokens of the answers; those that the `features` of the predictor cost are added.
    Lines that are damaged or of another model are left out with a warning. Raises OSError if there is no such
    file, ValueError if no line can be used.
    """
    rows: list[RecordedAnswer] = []
    num_damaged = num_others = 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            try:
                row = RecordedAnswer.model_validate(json.loads(line))
            except (ValidationError, ValueError, RecursionError):
                num_damaged += 1
                continue
            columns = (row.visual_tokens, row.estimates, row.agrees)
            if row.model != model:
                num_others += 1
            elif tuple(row.scales) != scales or any(len(column) != len(scales) for column in columns):
                num_damaged += 1
            else:
                rows.append(row)
    if not rows:
        raise ValueError(
            f"{path} has no answer of this model ({num_others} of others, {num_damaged} damaged lines): give "
            "the file that `tokenscale serve drift.record=FILE` wrote with the same folder"
        )
    if num_damaged or num_others:
        log.warning("%s: left out %d damaged lines and %d of other models", path, num_damaged, num_others)
    tokens = features.add_paid_tokens(np.array([row.visual_tokens for row in rows], dtype=np.int32))
    return Samples(np.array([row.estimates for row in rows]), _make_table(rows, tokens, scales, family))


def _make_table(
    rows: list[RecordedAnswer], visual_tokens: np.ndarray, scales: tuple[int, ...], family: Family
) -> OutcomeTable:
    """Return the outcomes of recorded answers; what a record does not have is left empty."""
    shape = (len(rows), len(scales))
    agrees = np.array([row.agrees for row in rows])
    blank = np.full(len(rows), "", dtype=object)
    return OutcomeTable(
        scales=scales,
        fingerprints={},
        family=family,
        sample_id=np.array([str(number) for number in range(len(rows))], dtype=object),
        image_id=np.array([row.image for row in rows], dtype=object),
        task=blank,
        kind=blank,
        question=blank,
        metric=blank,
        references=[[]] * len(rows),
        attributes=[{}] * len(rows),
        question_ids=[np.zeros(0, dtype=np.int32)] * len(rows),
        answer=[["same" if same else "another" for same in row] for row in agrees],
        score=agrees.astype(np.float32),
        nll=np.zeros(shape, dtype=np.float32),
        reference_tokens=np.ones(shape, dtype=np.int32),
        confidence=np.zeros(shape, dtype=np.float32),
        margin=np.zeros(shape, dtype=np.float32),
        visual_tokens=visual_tokens,
        prefill_flops=np.ones(shape, dtype=np.int64),
        origin="record",
    )


def fit_prices(
    samples: Samples,
    former: Hybrid | None,
    *,
    alpha: float,
    delta: float,
    most_questions: int | None = None,
    budget: float | None = None,
    tolerance: float = 0.0,
) -> tuple[PriceList, Hybrid | None]:
    """Return prices, bounds and hybrid of the samples; `former` is kept if they have no confidences."""
    outcomes = samples.outcomes
    prices = PriceList.from_calibration(
        samples.estimates, outcomes.visual_tokens, outcomes.score, budget, tolerance
    )
    prices = state_bounds(
        prices, samples.estimates, outcomes, alpha=alpha, delta=delta, most_questions=most_questions
    )
    if samples.answered is None:
        return prices, former
    return prices, fit_hybrid(samples.estimates, samples.answered, outcomes.visual_tokens, budget, tolerance)


def describe_change(
    before: tuple[PriceList, Samples], after: tuple[PriceList, Samples], confidence: float = 0.95
) -> str:
    """Return a table of the default point and the guarantee, before and after: stated, and on the samples."""
    rows = [["", "point", "price", "stated tokens", "stated score", "tokens here", "loss here, points"]]
    for when, (prices, samples) in (("before", before), ("after", after)):
        for name, point in {"default": prices.default, **prices.named}.items():
            choice = choose(samples.estimates, samples.outcomes.visual_tokens, point.price, unit=point.unit)
            loss = measure_loss(choice, samples.outcomes, None, Bootstrap(_NUM_RESAMPLES, confidence))
            rows.append(
                [
                    when,
                    name,
                    f"{point.price:.4f}",
                    f"{point.cost:.1f}",
                    f"{100 * point.score:.1f}",
                    format_tokens(loss.cost.value),
                    format_difference(loss.drop),
                ]
            )
    return format_table(rows)
