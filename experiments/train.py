"""Train predictors on labels: `python -m experiments.train predictor=NAME`.

`train_predictors` is the plain function behind the command; it leaves alone what is up to date.
"""

import copy
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point
from experiments.label_sizes import check_labels, find_label_banners
from experiments.label_source import LabelSource
from experiments.tasks.sizes import frame_banners
from experiments.training_record import MANIFEST, TrainingRecord, format_records, read_record
from m3_backbone.outcomes import OutcomeTable
from predictor.base import FitContext, ScalePredictor
from predictor.calibration import Calibrator
from predictor.folder import describe, write_json
from predictor.hybrid import HYBRID, Hybrid
from predictor.policy import policy_value
from predictor.pricing import PRICES, PriceList
from predictor.splitting import halve

log = logging.getLogger(__name__)


@entry_point("train")
def main(config: DictConfig) -> float:
    quiet_lightning()
    check_labels(config.paths.labels, ("train", "calibration"), allow_small=config.allow_small)
    # A baseline that is asked for as the predictor is not trained twice.
    others = [part for part in config.get("baselines", {}).values() if part.name != config.predictor.name]
    predictors = [instantiate(part, _convert_="all") for part in (config.predictor, *others)]
    records = train_predictors(
        predictors,
        labels=Path(config.paths.labels),
        folder=Path(config.paths.predictors),
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        budget=config.budget,
        tolerance=config.tolerance,
        make_trainer=partial(instantiate, config.trainer),
        calibrator=instantiate(config.get("calibrator")),
    )
    print(format_records(records))
    if banners := find_label_banners(config.paths.labels, ("train", "calibration")):
        print(frame_banners(banners))
    print(f"predictors: {config.paths.predictors}")
    return records[0].value


def train_predictors(
    predictors: Sequence[ScalePredictor],
    *,
    labels: Path,
    folder: Path,
    validation_fraction: float,
    seed: int,
    budget: float | None = None,
    tolerance: float = 0.01,
    make_trainer: Callable[..., lightning.Trainer] | None = None,
    calibrator: Calibrator | None = None,
) -> list[TrainingRecord]:
    """Fit each predictor on the train split and save it in `folder/<its name>`, with prices and a manifest.

    Validation is part of the train split. On half of the calibration split a copy of `calibrator` is fitted
    for each. Prices, and the hybrid that starts from the predictor, come from the calibration split, the
    default ones for `budget` (mean visual tokens; None: see `predictor.pricing.choose_price`). What `folder`
    already holds of the same predictor, labels and settings is kept; what a kill interrupted goes on from its
    last checkpoint.
    """
    names = [predictor.name for predictor in predictors]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two predictors are named {name!r}: give one of them another with predictor.name="
            )
    source = LabelSource(labels, validation_fraction, seed)
    records = []
    for predictor in predictors:
        folder.mkdir(parents=True, exist_ok=True)
        # Another process that trains the same one here is waited for: then it is there.
        with FileLock(folder / f".{predictor.name}.lock"):
            home = folder / predictor.name
            settings = {**source.identity, "seed": seed, "budget": budget, "tolerance": tolerance}
            if calibrator is not None:
                settings["calibrator"] = describe(type(calibrator), {})
            identity = normalize({**describe(type(predictor), predictor.get_arguments()), **settings})
            record = read_record(home)
            if record is not None and record.identity == identity:
                log.info("%s is up to date in %s", predictor.name, home)
                if not has_hybrid(home):
                    log.info("fitting the hybrid of %s", predictor.name)
                    estimates = ScalePredictor.load(home).predict(source.calibration.inputs)
                    fit_hybrid(estimates, source.calibration.outcomes, budget, tolerance).save(home)
            else:
                record = _train(
                    predictor, source, home, identity, budget, tolerance, make_trainer, calibrator
                )
        records.append(record)
    return records


def _train(
    predictor: ScalePredictor,
    source: LabelSource,
    home: Path,
    identity: dict[str, Any],
    budget: float | None,
    tolerance: float,
    make_trainer: Callable[..., lightning.Trainer] | None,
    calibrator: Calibrator | None,
) -> TrainingRecord:
    train, validation = source.parts
    log.info("training %s on %d samples, %d for validation", predictor.name, len(train), len(validation))
    # Whatever a kill leaves, prices of an earlier predictor do not stand beside a new one.
    for name in (MANIFEST, PRICES, HYBRID):
        (home / name).unlink(missing_ok=True)
    workshop = home / "unfinished"
    started = time.perf_counter()
    predictor.fit(train, validation, FitContext(workshop, make_trainer))
    seconds = time.perf_counter() - started

    calibration = source.calibration
    if calibrator is not None:
        half = halve(calibration.outcomes.image_id)
        predictor.calibrate(calibration.select(half), copy.deepcopy(calibrator))
    predictor.save(home)
    estimates = predictor.predict(calibration.inputs)
    prices = PriceList.from_calibration(
        estimates,
        calibration.inputs.visual_tokens,
        calibration.outcomes.score,
        budget,
        tolerance,
    )
    prices.save(home)
    fit_hybrid(estimates, calibration.outcomes, budget, tolerance).save(home)
    cost, score = validation.inputs.visual_tokens, validation.outcomes.score.astype(np.float64)
    means = train.outcomes.score.mean(axis=0, dtype=np.float64)
    record = TrainingRecord(
        name=predictor.name,
        value=policy_value(predictor.predict(validation.inputs), cost, score),
        mix_value=policy_value(np.broadcast_to(means, score.shape), cost, score),
        oracle_value=policy_value(score, cost, score),
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
    )
    write_json(home / MANIFEST, asdict(record))
    shutil.rmtree(workshop, ignore_errors=True)
    return record


def has_hybrid(home: Path) -> bool:
    """Whether a folder holds a whole hybrid; an earlier version wrote none."""
    try:
        return Hybrid.load(home) is not None
    except ValueError:
        return False


def fit_hybrid(estimates: np.ndarray, found: OutcomeTable, budget: float | None, tolerance: float) -> Hybrid:
    """The hybrid of a predictor's estimates on calibration, its default chosen as that of the prices is."""
    hybrid = Hybrid.fit(found.confidence, found.score, found.visual_tokens, estimates)
    best_fixed = float(found.score.mean(axis=0, dtype=np.float64).max())
    return hybrid.with_default(best_fixed, budget, tolerance)


def normalize(content: dict[str, Any]) -> dict[str, Any]:
    """As it reads once it has been written as JSON: tuples are lists."""
    return json.loads(json.dumps(content))


def quiet_lightning() -> None:
    """Keep Lightning's news of devices and its advice out of the output; other warnings still show."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for noise in (
        ".*does not have many workers.*",
        "Checkpoint directory .* exists",
        ".*LeafSpec.*deprecated",
    ):
        warnings.filterwarnings("ignore", message=noise)


if __name__ == "__main__":
    main()
