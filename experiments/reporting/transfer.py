"""Transfer of predictors from some tasks to another one: training, evaluation, tables and a page."""

import copy
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lightning
import numpy as np

from experiments.config import Provenance
from experiments.evaluation.comparison import Comparison, PolicyResult, check_settings, compare_policies
from experiments.evaluation.costs import list_cost_measures
from experiments.evaluation.metrics import default_cost, mean_gap_share, mean_to_mix, to_best_fixed
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Estimate
from experiments.labels.held_out import EvaluationRecord, open_test
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.findings import describe_record
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.numbers import format_difference, format_share, format_tokens, is_known
from experiments.reporting.page import attach_files, encode_picture, save_figure, write_page
from experiments.reporting.run_findings import write_seed_warning
from experiments.reporting.tables import Table, write_tables
from experiments.tasks.sizes import Banner, is_too_few
from experiments.training.joining import join_labels
from experiments.training.subset import Subset
from experiments.training.trained import digest_files, join_digests
from m3_backbone.outcomes.labels import Labels, read_labels
from predictor.base import FitContext, ScalePredictor
from predictor.calibration import Calibrator
from predictor.files import write_json
from predictor.splitting import split_for_calibrator, split_validation

log = logging.getLogger(__name__)

PAGE, FIGURES = "transfer.html", "transfer.json"


@dataclass(frozen=True, eq=False)
class Row:
    """Result of a predictor on a target task, by the tasks it was trained on and the samples of its prices.

    `comparison` is that of this predictor alone on the target's test split, in visual tokens; `others` are
    the same in further cost measures.
    """

    target: str
    trained_on: str
    priced_on: str
    comparison: Comparison
    record: EvaluationRecord | None = None
    others: Sequence[Comparison] = ()

    @property
    def name(self) -> str:
        """Label for legends and tables."""
        if self.trained_on == self.priced_on:
            return f"trained on {self.trained_on}"
        return f"trained on {self.trained_on}, prices from {self.priced_on}"

    @property
    def result(self) -> PolicyResult:
        return self.comparison.policies[0]

    @property
    def gap_share(self) -> Estimate | None:
        """Share of the gap from mix to budgeted oracle over log-spaced budgets; None if there is no gap."""
        return self.result.find(mean_gap_share)

    @property
    def to_mix(self) -> Estimate:
        """Score above the mix at matched mean visual tokens, averaged over log-spaced budgets."""
        return self.result[mean_to_mix]


def write_transfer(
    rows: Sequence[Row],
    output: Path,
    *,
    predictor: str,
    backbone: str,
    fingerprints: Mapping[str, Mapping[str, str]],
    provenance: Provenance,
    banners: Sequence[Banner] = (),
) -> Table:
    """Write `transfer.json`, `tables/`, `TARGET.pdf` and `.svg`, and `transfer.html`; return the table.

    `fingerprints` are those of the labels, by target. Names of targets are percent-encoded in names of files.
    `banners` warn of small numbers of images and samples.
    """
    output.mkdir(parents=True, exist_ok=True)
    table = tabulate(rows)
    write_tables(output / "tables", [table])
    plain = [
        {name: getattr(row, name) for name in ("target", "trained_on", "priced_on")}
        | {
            name: estimate and asdict(estimate)
            for name, estimate in (("gap_share", row.gap_share), ("to_mix", row.to_mix))
        }
        | {other.measure.key: _summarize_other(other) for other in row.others}
        for row in rows
    ]
    write_json(output / FIGURES, json.loads(json.dumps(plain, default=float)))
    comparisons = join_rows(rows)
    charts, pictures, files = {}, {}, {}
    for target, comparison in comparisons.items():
        for number, in_measure in enumerate([comparison, *join_others(rows, target)]):
            measure = in_measure.measure
            label = f"{target}, {measure.unit}" if rows[0].others else target
            plot = plot_comparison(in_measure)
            figure = draw_paper(plot, f"{predictor}, {backbone} on {target}, test split")
            name = quote(target, safe="") + (f"_{measure.key}" if number else "")
            files[label] = attach_files(save_figure(figure, output / name))
            charts[label], pictures[label] = draw_page(plot), encode_picture(figure)
    write_page(
        output / PAGE,
        "transfer.html.j2",
        title=f"{predictor} of {backbone}",
        comparisons=comparisons,
        pictures=pictures,
        files=files,
        table=table,
        sentences=write_sentences(comparisons),
        records=write_records(rows),
        charts=list(charts.values()),
        fingerprints=fingerprints,
        provenance=provenance,
        banners=[*banners, Banner(write_seed_warning(1, [predictor]), is_loud=False)],
    )
    return table


def join_rows(rows: Sequence[Row]) -> dict[str, Comparison]:
    """Return one comparison per target with the results of all its rows, which share the test samples."""
    targets: dict[str, list[Row]] = {}
    for row in rows:
        targets.setdefault(row.target, []).append(row)
    return {
        target: replace(rows[0].comparison, policies=[row.result.rename(row.name) for row in rows])
        for target, rows in targets.items()
    }


def join_others(rows: Sequence[Row], target: str) -> list[Comparison]:
    """Return one comparison per further cost measure with the results of all rows of a target."""
    of_target = [row for row in rows if row.target == target]
    return [
        replace(
            same_measure[0],
            policies=[
                other.policies[0].rename(row.name) for row, other in zip(of_target, same_measure, strict=True)
            ],
        )
        for same_measure in zip(*(row.others for row in of_target), strict=True)
    ]


def _summarize_other(comparison: Comparison) -> dict[str, Any]:
    """Return the metrics of a row in another cost measure, for `transfer.json`."""
    (result,) = comparison.policies
    share = result.find(mean_gap_share)
    return {"gap_share": share and asdict(share), "to_mix": asdict(result[mean_to_mix])}


def write_records(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the number of the evaluation on each target's test split."""
    records = {row.target: row.record for row in rows if row.record is not None}
    return [f"{target}: {describe_record(record)}" for target, record in records.items()]


def write_sentences(comparisons: Mapping[str, Comparison]) -> list[str]:
    """Return sentences on the share of the gap that each predictor recovers on each target."""
    sentences = []
    for target, comparison in comparisons.items():
        shares = [
            f"{format_share(result.find(mean_gap_share))} {result.name}"
            for result in comparison.policies
            if is_known(result.find(mean_gap_share))
        ]
        if is_too_few(comparison.num_images):
            conclusion = f"there is no finding: test images are too few ({comparison.num_images})."
        elif shares and not comparison.nothing_to_gain:
            conclusion = f"the share of the gap from mix to budgeted oracle is {'; '.join(shares)}."
        else:
            conclusion = "no choice of scales beats the mix, so there is nothing to recover."
        sentences.append(f"On {target} {conclusion}")
    return sentences


def tabulate(rows: Sequence[Row]) -> Table:
    """Tabulate share of the gap, points above the mix, and results at the default price, per row."""
    cells = []
    for row in rows:
        cells.append(
            (
                f"{row.target}, {row.name}",
                format_share(row.gap_share),
                format_difference(row.to_mix),
                format_tokens(row.result[default_cost].value),
                format_difference(row.result[to_best_fixed]),
                *(format_difference(other.policies[0].find(mean_to_mix)) for other in row.others),
            )
        )
    header = (
        *("tested on, trained on", "share of gap", "points above the mix", "default tokens", "to best fixed"),
        *(f"above the mix, {other.measure.unit}" for other in rows[0].others),
    )
    where = "default tokens and to best fixed" if rows[0].others else "last two columns"
    caption = (
        "At matched mean visual tokens, averaged over log-spaced budgets: share of the gap from mix to "
        f"budgeted oracle, and points above the mix; {where}: at the default price"
    )
    return Table(caption, header, tuple(cells), "transfer")


def list_tasks(tasks: Any) -> list[str]:
    """Return the tasks of a configuration, which names one task or a list of them, as a list."""
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
    subset: Subset | None = None,
    make_trainer: Callable[..., lightning.Trainer] | None = None,
    calibrator: Calibrator | None = None,
    command: str = "",
    configuration: str = "",
    allow_unrecorded: bool = False,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    allow_small: bool = False,
) -> list[Row]:
    """Train a predictor on all `sources` and evaluate it on each of `targets`.

    The labels of a task are in `labels/<task>`; `subset` is the part of each train split.

    Each target has three rows: the predictor with prices from the calibration splits of the sources; the same
    with prices from `num_recalibration` samples of the target's calibration split; and a predictor trained on
    the target. The samples are of images chosen at random with `seed`; with `allow_small`, all samples are
    used if there are fewer. A copy of `calibrator` is fitted on one half of the images, prices come from the
    other half. Evaluations are recorded in the folder `records` (`labels.held_out`). Raises ValueError if
    labels come from different backbones, or if sources or targets are empty or not distinct.
    """
    check_settings(num_budgets=1, num_prices=1, num_resamples=num_resamples, confidence=confidence)
    for name, tasks in (("sources", sources), ("targets", targets)):
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"{name} must be distinct tasks, at least one, got {list(tasks)}")

    def train_on(tasks: Sequence[str]) -> tuple[ScalePredictor, Labels]:
        parts = {task: (subset or Subset()).read(labels / task, seed) for task in tasks}
        train, validation = split_validation(join_labels(parts), validation_fraction, seed)
        predictor = make_predictor()
        log.info("training %s on %s, %d samples", predictor.name, " + ".join(tasks), len(train))
        predictor.fit(train, validation, FitContext(None, make_trainer))
        return predictor, join_labels({task: read_labels(labels / task, "calibration") for task in tasks})

    def read_calibration(target: str) -> tuple[Labels, Labels]:
        """Return the calibration split of a target, and the few samples for recalibration."""
        split = join_labels({target: read_labels(labels / target, "calibration")})
        number = min(num_recalibration, len(split)) if allow_small else num_recalibration
        return split, split.select(draw_samples(split.outcomes.image_id, number, seed))

    def price(
        predictor: ScalePredictor, calibration: Labels
    ) -> tuple[Labels, Calibrator | None, np.ndarray, str]:
        """Return samples for prices, the fitted calibrator, estimates on them, and a digest of all."""
        predictor.calibrator = None
        if calibrator is not None:
            seen, calibration = split_for_calibrator(calibration)
            predictor.calibrate(seen, copy.deepcopy(calibrator))
        samples = hashlib.sha256("\n".join(calibration.outcomes.sample_id).encode()).hexdigest()
        return (
            calibration,
            predictor.calibrator,
            predictor.predict(calibration.inputs),
            f"{digest_predictor(predictor)}-{samples[:8]}",
        )

    # Missing or too few samples are refused before anything is trained.
    calibrations = {target: read_calibration(target) for target in targets}
    if calibrator is not None:
        for _, few in calibrations.values():
            split_for_calibrator(few)
    transferred, source_calibration = train_on(sources)
    rows = []
    for target in targets:
        target_calibration, few = calibrations[target]
        native, _ = train_on([target])
        source, name = " + ".join(sources), transferred.name
        evaluated = [
            (source, source, transferred, *price(transferred, source_calibration)),
            (source, f"{len(few)} of {target}", transferred, *price(transferred, few)),
            (target, target, native, *price(native, target_calibration)),
        ]
        # A change of predictor, calibrator or prices is another evaluation: the digests cover all three.
        test, record = open_test(
            labels / target,
            records=records,
            command=command,
            configuration=configuration,
            predictors={
                f"{name} from {trained_on}, prices from {priced_on}": digest
                for trained_on, priced_on, *_, digest in evaluated
            },
            allow_unrecorded=allow_unrecorded,
        )
        test = join_labels({target: test})
        for trained_on, priced_on, predictor, calibration, fitted, estimates, _ in evaluated:
            predictor.check_backbone(test.outcomes.fingerprints)
            predictor.calibrator = fitted
            policy = PredictorPolicy(name, estimates, predictor.predict(test.inputs))
            comparison, *others = (
                compare_policies(
                    calibration.outcomes,
                    test.outcomes,
                    [policy],
                    measure=measure,
                    reference=None,
                    num_resamples=num_resamples,
                    confidence=confidence,
                    seed=seed,
                )
                for measure in list_cost_measures(calibration.outcomes, {name: predictor}, calibration.inputs)
            )
            rows.append(Row(target, trained_on, priced_on, comparison, record, others))
    return rows


def digest_predictor(predictor: ScalePredictor) -> str:
    """Return a digest of the files that a predictor is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(folder)
        return join_digests(digest_files(Path(folder)))


def draw_samples(image_id: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return the sorted indices of `number` samples of images chosen at random; the last may be incomplete.

    Raises ValueError if `number` is below 1 or there are fewer samples.
    """
    if number < 1:
        raise ValueError(f"num_recalibration must be at least 1, got {number}")
    if number > len(image_id):
        raise ValueError(
            f"the calibration split has {len(image_id)} samples, fewer than num_recalibration={number}: "
            f"label more, or set num_recalibration={len(image_id)} or lower"
        )
    images = np.random.default_rng(seed).permutation(np.unique(image_id.astype(str)))
    rank = {image: position for position, image in enumerate(images)}
    order = np.argsort([rank[str(image)] for image in image_id], kind="stable")
    return np.sort(order[:number])
