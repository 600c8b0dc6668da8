"""Predictors trained on some tasks, evaluated on another one."""

import copy
import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np

from experiments.evaluation.comparison import check_settings, compare_policies
from experiments.evaluation.policies import PredictorPolicy
from experiments.labels.held_out import open_test
from experiments.reporting.transfer_report import Row
from experiments.training.joining import join_labels
from experiments.training.trained import digest_files, join_digests
from m3_backbone.outcomes.labels import Labels, read_labels
from predictor.base import FitContext, ScalePredictor
from predictor.calibration import Calibrator
from predictor.splitting import carve_validation, split_for_calibrator

log = logging.getLogger(__name__)


def list_tasks(tasks: Any) -> list[str]:
    """One task, or several, as a configuration has them."""
    return [tasks] if isinstance(tasks, str) else [str(task) for task in tasks]


def transfer(
    make_predictor: Callable[[], ScalePredictor],
    *,
    sources: Sequence[str],
    targets: Sequence[str],
    labels: Path,
    records: Path,
    num_recalibration: int,
    validation_fraction: float,
    seed: int,
    make_trainer: Callable[..., lightning.Trainer] | None = None,
    calibrator: Calibrator | None = None,
    command: str = "",
    configuration: str = "",
    allow_unrecorded: bool = False,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    allow_small: bool = False,
) -> list[Row]:
    """Train on `sources` together, test on each of `targets`; labels lie in `labels/<task>`.

    The second way uses `num_recalibration` samples of the target's calibration split, from images drawn with
    `seed`; with `allow_small`, all samples if there are fewer. A copy of `calibrator` is fitted on one half
    of the images, prices come from the other half. Evaluations are recorded in the folder `records`
    (`labels.held_out`). Raises ValueError if labels come from different backbones, and if sources or targets
    are empty or not distinct.
    """
    check_settings(num_budgets=1, num_prices=1, num_resamples=num_resamples, confidence=confidence)
    for name, tasks in (("sources", sources), ("targets", targets)):
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"{name} have to be tasks, each once, and they are {list(tasks)}")

    def train_on(tasks: Sequence[str]) -> tuple[ScalePredictor, Labels]:
        parts = {task: read_labels(labels / task, "train") for task in tasks}
        train, validation = carve_validation(join_labels(parts), validation_fraction, seed)
        predictor = make_predictor()
        log.info("training %s on %s, %d samples", predictor.name, " + ".join(tasks), len(train))
        predictor.fit(train, validation, FitContext(None, make_trainer))
        return predictor, join_labels({task: read_labels(labels / task, "calibration") for task in tasks})

    def read_abroad(target: str) -> tuple[Labels, Labels]:
        abroad = join_labels({target: read_labels(labels / target, "calibration")})
        number = min(num_recalibration, len(abroad)) if allow_small else num_recalibration
        return abroad, abroad.select(draw_samples(abroad.outcomes.image_id, number, seed))

    def price(
        predictor: ScalePredictor, calibration: Labels
    ) -> tuple[Labels, Calibrator | None, np.ndarray, str]:
        """Samples that prices come from, the fitted calibrator, estimates on them, and a digest of it all."""
        predictor.calibrator = None
        if calibrator is not None:
            seen, calibration = split_for_calibrator(calibration)
            predictor.calibrate(seen, copy.deepcopy(calibrator))
        samples = hashlib.sha256("\n".join(calibration.outcomes.sample_id).encode()).hexdigest()
        return (
            calibration,
            predictor.calibrator,
            predictor.predict(calibration.inputs),
            f"{digest(predictor)}-{samples[:8]}",
        )

    # What is missing, or too little, is refused before anything is trained.
    calibrations = {target: read_abroad(target) for target in targets}
    if calibrator is not None:
        for _, few in calibrations.values():
            split_for_calibrator(few)
    carried, at_home = train_on(sources)
    rows = []
    for target in targets:
        abroad, few = calibrations[target]
        native, _ = train_on([target])
        together, name = " + ".join(sources), carried.name
        ways = [
            (together, together, carried, *price(carried, at_home)),
            (together, f"{len(few)} of {target}", carried, *price(carried, few)),
            (target, target, native, *price(native, abroad)),
        ]
        # Predictor, calibrator and prices are evaluated: a change of any of them is another evaluation.
        test, record = open_test(
            labels / target,
            records=records,
            command=command,
            configuration=configuration,
            predictors={f"{name} from {way[0]}, prices from {way[1]}": way[-1] for way in ways},
            allow_unrecorded=allow_unrecorded,
        )
        test = join_labels({target: test})
        for trained_on, priced_on, predictor, calibration, fitted, estimates, _ in ways:
            predictor.check_backbone(test.outcomes.fingerprints)
            predictor.calibrator = fitted
            comparison = compare_policies(
                calibration.outcomes,
                test.outcomes,
                [PredictorPolicy(name, estimates, predictor.predict(test.inputs))],
                reference=None,
                num_resamples=num_resamples,
                confidence=confidence,
                seed=seed,
            )
            rows.append(Row(target, trained_on, priced_on, comparison, record))
    return rows


def digest(predictor: ScalePredictor) -> str:
    """A digest of all that a predictor would be saved as."""
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(folder)
        return join_digests(digest_files(Path(folder)))


def draw_samples(image_id: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Rows `[number]` in order: those of images drawn one after the other, the last of which may be cut.

    Raises ValueError where there are fewer.
    """
    if number < 1:
        raise ValueError(f"num_recalibration is at least 1, got {number}")
    if number > len(image_id):
        raise ValueError(
            f"the calibration split has {len(image_id)} samples, and {number} are to be drawn from it: "
            f"label more, or set num_recalibration={len(image_id)} or lower"
        )
    images = np.random.default_rng(seed).permutation(np.unique(image_id.astype(str)))
    rank = {image: place for place, image in enumerate(images)}
    order = np.argsort([rank[str(image)] for image in image_id], kind="stable")
    return np.sort(order[:number])
