"""Training of predictors on labels, each into a folder of its own."""

import copy
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.labels.files import wait_for_lock
from experiments.training.subset import TrainSplit
from experiments.training.trackers.base import Tracker, track_fit
from experiments.training.trained import (
    MANIFEST,
    VALIDATION_METRICS,
    IncompleteTraining,
    TrainingRecord,
    TrainingSettings,
    check_names,
    digest_files,
    identify,
    load_trained,
    locate,
    read_record,
    trust_configured,
)
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.manifest import read_manifest, seal
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import FitContext, ScalePredictor
from predictor.cascades.hybrid import Hybrid
from predictor.files import FolderError, write_json
from predictor.policy.front import policy_value
from predictor.policy.pricing import PriceList
from predictor.splitting import FEW_IMAGES, split_for_calibrator, split_validation

if TYPE_CHECKING:
    import lightning

log = logging.getLogger(__name__)

# Final numbers of a training in a tracker.
_SHOWN_RESULTS: Mapping[str, Callable[[TrainingRecord], float]] = {
    **VALIDATION_METRICS,
    "validation/mix_value": lambda record: record.mix_value,
    "validation/oracle_value": lambda record: record.oracle_value,
    "num_parameters": lambda record: record.num_parameters,
    "flops": lambda record: record.flops,
    "seconds": lambda record: record.seconds,
}


class TrainingLabels:
    """Splits of a label folder for training, each read once, on first access."""

    def __init__(self, folder: Path, settings: TrainingSettings) -> None:
        self.folder, self.settings = folder, settings
        self.manifest = read_manifest(folder)

    @cached_property
    def _split(self) -> TrainSplit:
        return TrainSplit.read(self.folder, soft=self.settings.subset.soft)

    @cached_property
    def measured_parts(self) -> tuple[Labels, Labels]:
        """(train, validation): two parts of the subset of the train split, divided by image."""
        settings = self.settings
        labels = settings.subset.take(self._split.labels, settings.seed)
        return split_validation(labels, settings.validation_fraction, settings.seed)

    @cached_property
    def parts(self) -> tuple[Labels, Labels]:
        """(train, validation) as predictors are fitted on them: with soft targets if the subset has them."""
        train, validation = self.measured_parts
        return self._split.soften(train), self._split.soften(validation)

    @cached_property
    def calibration(self) -> Labels:
        """The calibration split."""
        return read_labels(self.folder, "calibration")

    @cached_property
    def stored_budget(self) -> float | None:
        """The budget in the unit in which labels store costs; None without one.

        Raises ValueError for a budget below the mean cost of the cheapest scales on the calibration split.
        """
        budget, outcomes = self.settings.budget, self.calibration.outcomes
        if budget is None:
            return None
        lowest = float(outcomes.cost.min(axis=1).mean())
        if budget < lowest * (1 - 1e-9):  # imported costs are rounded
            noun = "visual tokens" if outcomes.options is None else outcomes.options.cost
            raise ValueError(
                f"budget={budget:g}: the cheapest scale of each calibration sample takes {lowest:.4g} {noun} "
                "on average: give at least as many"
            )
        return budget if outcomes.options is None else budget / outcomes.options.unit


def train_predictors(
    predictors: Sequence[ScalePredictor],
    *,
    labels: Path,
    folder: Path,
    settings: TrainingSettings,
    make_trainer: "Callable[..., lightning.Trainer] | None" = None,
    tracker: Tracker | None = None,
) -> list[TrainingRecord]:
    """Fit each predictor on the train split and save it below `folder`, with prices, hybrid and record.

    Validation is part of the train split. A copy of the calibrator, if the settings have one, is fitted on
    one half of the calibration images (`predictor.splitting.calibrator_half`); prices and hybrid are fitted
    on the other samples. Each identity has a folder of its own (`experiments.training.trained`): a finished
    training that can be loaded is kept, and an interrupted one resumes from its last checkpoint. Each
    training is a run of `tracker`, with curves, identity and results on validation. Returns one record per
    predictor. Raises ValueError for duplicate names, OSError for a folder that cannot be written.
    """
    check_names([predictor.name for predictor in predictors])
    source = TrainingLabels(labels, settings)
    records = []
    for predictor in predictors:
        identity = identify(predictor, source.manifest, settings, labels)
        target = locate(folder, predictor.name, identity)
        # A finished folder may be read-only: the lock is taken only if something is to be written.
        record = read_finished(target, identity)
        if record is None:
            record = _train_alone(predictor, source, target, identity, make_trainer, tracker)
        else:
            log.info("%s is up to date in %s", predictor.name, target)
        records.append(record)
    return records


def _train_alone(
    predictor: ScalePredictor,
    source: TrainingLabels,
    target: Path,
    identity: dict[str, Any],
    make_trainer: "Callable[..., lightning.Trainer] | None",
    tracker: Tracker | None,
) -> TrainingRecord:
    """Train into `target` under a lock; a training that another process has finished meanwhile is kept."""
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = target.with_name(f".{target.name}.lock")
            stack.enter_context(wait_for_lock(lock, f"trains {predictor.name} in {target}"))
        except OSError as error:
            raise OSError(
                f"{predictor.name} is to be trained, and {target.parent} cannot be written to "
                f"({error.strerror or error}): give another folder with paths.predictors=FOLDER"
            ) from error
        record = read_finished(target, identity)
        if record is not None:
            return record
        unfinished = target.with_name(f"{target.name}.run")
        with track_fit(tracker, "train", predictor.name, identity, unfinished=unfinished) as runs:
            record = _train(predictor, source, target, identity, runs.wrap(make_trainer))
            runs.show_results({name: read(record) for name, read in _SHOWN_RESULTS.items()})
        return record


def read_finished(folder: Path, identity: dict[str, Any]) -> TrainingRecord | None:
    """Return the record of the training in `folder` if it has this identity and can be loaded, else None."""
    try:
        return load_trained(folder, identity).record
    except FileNotFoundError:
        return None
    except (IncompleteTraining, FolderError) as error:
        log.warning("trained again: %s", error)
        return None


def _train(
    predictor: ScalePredictor,
    source: TrainingLabels,
    target: Path,
    identity: dict[str, Any],
    make_trainer: "Callable[..., lightning.Trainer] | None",
) -> TrainingRecord:
    settings, budget = source.settings, source.stored_budget
    train, validation = source.parts
    log.info("training %s on %d samples, %d for validation", predictor.name, len(train), len(validation))
    checkpoint_dir = target.with_name(f"{target.name}.unfinished")
    # Written to a temporary folder that is renamed at the end, so that a folder is always complete.
    staging = target.with_name(f".{target.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    num_images = len({*train.outcomes.cluster_id, *validation.outcomes.cluster_id})
    earlier = _find_earlier(target.parent, identity, num_images)
    if earlier is not None:
        predictor, seconds = earlier
    else:
        started = time.perf_counter()
        predictor.fit(train, validation, FitContext(checkpoint_dir, make_trainer))
        seconds = time.perf_counter() - started

    calibration = source.calibration
    if settings.calibrator is not None:
        calibrator_half, calibration = split_for_calibrator(calibration)
        predictor.calibrate(calibrator_half, copy.deepcopy(settings.calibrator))
    predictor.save(staging)
    estimates = predictor.predict(calibration.inputs)
    paid_tokens = predictor.features.count_paid_tokens(calibration.inputs)
    prices = PriceList.from_calibration(
        estimates,
        paid_tokens,
        calibration.outcomes.score,
        budget,
        settings.tolerance,
    )
    prices.save(staging)
    hybrid = fit_hybrid(estimates, calibration.outcomes, paid_tokens, budget, settings.tolerance)
    hybrid.save(staging)
    # With soft targets too, results are those of the greedy answers.
    train, validation = source.measured_parts
    cost, score = validation.inputs.visual_tokens, validation.outcomes.score.astype(np.float64)
    mix_value, oracle_value = value_bounds(train, validation)
    record = TrainingRecord(
        name=predictor.name,
        value=policy_value(
            predictor.predict(validation.inputs),
            predictor.features.count_paid_tokens(validation.inputs),
            score,
        ),
        mix_value=mix_value,
        oracle_value=oracle_value,
        scales=list(validation.outcomes.scales),
        fixed_cost=cost.mean(axis=0).tolist(),
        fixed_score=score.mean(axis=0).tolist(),
        default_cost=prices.default.cost,
        default_score=prices.default.score,
        num_train=len(train),
        num_validation=len(validation),
        num_parameters=predictor.num_parameters,
        flops=predictor.count_flops(validation.inputs),
        seconds=seconds,
        identity=identity,
        files=digest_files(staging),
    )
    write_json(staging / MANIFEST, seal(asdict(record)))
    if target.exists():
        # `read_finished` returned None: the folder is damaged or of another identity.
        shutil.rmtree(target)
    staging.rename(target)
    shutil.rmtree(checkpoint_dir, ignore_errors=True)
    return record


def value_bounds(train: Labels, validation: Labels) -> tuple[float, float]:
    """Return `policy_value` of the mix and of the budgeted oracle on validation samples.

    The mix is fitted on the mean scores of the train part.
    """
    cost, score = validation.inputs.visual_tokens, validation.outcomes.score.astype(np.float64)
    means = train.outcomes.score.mean(axis=0, dtype=np.float64)
    mix_value = policy_value(np.broadcast_to(means, score.shape), cost, score)
    return mix_value, policy_value(score, cost, score)


def _find_earlier(
    predictor_dir: Path, identity: dict[str, Any], num_images: int
) -> tuple[ScalePredictor, float] | None:
    """Return the predictor of this identity trained by tokenscale 0.1, and its training time in seconds.

    That version stored one predictor per name, in `predictor_dir` itself. A predictor with a calibrator is
    trained again, as its prices now come from other samples.
    """
    record = read_record(predictor_dir)
    if record is None or record.identity != identity or "calibrator" in identity:
        return None
    if num_images < FEW_IMAGES:
        return None  # that version used other validation images
    try:
        predictor = ScalePredictor.load(predictor_dir, trust_configured(identity))
    except (ValueError, OSError) as error:
        log.warning("trained again: %s", error)
        return None
    log.info("reusing %s, trained by tokenscale 0.1 in %s", predictor.name, predictor_dir)
    return predictor, record.seconds


def fit_hybrid(
    estimates: np.ndarray,
    outcomes: OutcomeTable,
    paid_tokens: np.ndarray,
    budget: float | None,
    tolerance: float,
) -> Hybrid:
    """Return the hybrid fitted on calibration estimates, with its default chosen as for the prices.

    `paid_tokens` `[num_samples, num_scales]` are those of `Features.count_paid_tokens`.
    """
    hybrid = Hybrid.fit(
        outcomes.confidence, outcomes.score, outcomes.visual_tokens, estimates, first_cost=paid_tokens
    )
    best_fixed = float(outcomes.score.mean(axis=0, dtype=np.float64).max())
    return hybrid.with_default(best_fixed, budget, tolerance)


def quiet_lightning() -> None:
    """Hide Lightning's messages about devices and workers; other warnings are still shown."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        "Checkpoint directory .* exists",
        ".*LeafSpec.*deprecated",
        ".*smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
