"""How well facts about a picture predict the scale that a question needs."""

import logging
from pathlib import Path

from experiments.evaluation.equivalence import compare_known, find_equivalences
from experiments.evaluation.scale_classifier import NothingToTell, ScaleClassifiers, ScoreRegressions
from experiments.reporting import needs as needs_tables
from experiments.reporting.tables import Table
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.manifest import read_manifest

log = logging.getLogger(__name__)


def fit_models(labels: Path, seed: int) -> tuple[ScaleClassifiers, ScoreRegressions] | None:
    """Models of the needed scale, fitted on the training split; None, with a warning, if that is impossible.

    Labels of a test split alone are enough for the table of needs, but not for models.
    """
    counts = read_manifest(labels)["counts"]
    if missing := [split for split in ("train", "calibration") if not counts.get(split)]:
        log.warning("models of the needed scale are left out: the labels have no %s", " and ".join(missing))
        return None
    train = read_labels(labels, "train")
    try:
        return ScaleClassifiers.fit(train, seed), ScoreRegressions.fit(train, seed)
    except NothingToTell as error:
        log.warning("models of the needed scale are left out: %s", error)
        return None


def judge_models(
    classifiers: ScaleClassifiers,
    regressions: ScoreRegressions,
    calibration: Labels,
    test: Labels,
    *,
    equivalence_margin: float,
    num_resamples: int,
    confidence: float,
    bootstrap_seed: int,
) -> list[Table]:
    """Tables of accuracies, policies and equivalence; impossible ones are left out, with a warning."""
    tables = []
    try:
        tables.append(needs_tables.tabulate_classifiers(classifiers.measure(test)))
    except NothingToTell as error:
        log.warning("accuracies of the needed scale are left out: %s", error)
    try:
        comparison = compare_known(
            regressions,
            calibration,
            test,
            num_resamples=num_resamples,
            confidence=confidence,
            seed=bootstrap_seed,
        )
    except NothingToTell as error:
        log.warning("policies by what they know are left out: %s", error)
        return tables
    tables.append(needs_tables.tabulate_policies(comparison))
    equivalences = find_equivalences(comparison, equivalence_margin)
    if equivalences:
        tables.append(needs_tables.tabulate_equivalences(equivalences, num_resamples))
    return tables
