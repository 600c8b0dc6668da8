"""Predictors trained on some tasks, evaluated on another one: training, tables and a page."""

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
from experiments.evaluation.metrics import default_cost, mean_gap_share, mean_to_mix, to_best_fixed
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Estimate
from experiments.labels.held_out import EvaluationRecord, open_test
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.findings import describe_record
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.numbers import format_difference, format_share, format_tokens, is_known
from experiments.reporting.page import encode_picture, save_figure, write_page
from experiments.reporting.tables import Table, write_tables
from experiments.tasks.sizes import Banner, is_too_few
from experiments.training.joining import join_labels
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
    """One way to use a predictor on a target: what it was trained and priced on, and how it compares there.

    `comparison` is of that one predictor on the target's test split, in visual tokens.
    """

    target: str
    trained_on: str
    priced_on: str
    comparison: Comparison
    record: EvaluationRecord | None = None

    @property
    def name(self) -> str:
        """For legends."""
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
        """Score above the mix at matched mean visual tokens, averaged over log budgets."""
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
    """Write `transfer.json`, `tables/`, `TARGET.pdf` and `.svg`, and `transfer.html`; the table.

    `fingerprints` are those of the labels, by target. What no file can be called stands in names of files as
    it would in an address.
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
        for row in rows
    ]
    write_json(output / FIGURES, json.loads(json.dumps(plain, default=float)))
    comparisons, pictures = join_ways(rows), {}
    for target, comparison in comparisons.items():
        figure = draw_paper(plot_comparison(comparison), f"{predictor}, {backbone} on {target}, test split")
        save_figure(figure, output / quote(target, safe=""))
        pictures[target] = encode_picture(figure)
    write_page(
        output / PAGE,
        "transfer.html.j2",
        title=f"{predictor} of {backbone}",
        comparisons=comparisons,
        pictures=pictures,
        table=table,
        sentences=[*write_sentences(comparisons), *write_records(rows)],
        charts=[draw_page(plot_comparison(comparison)) for comparison in comparisons.values()],
        fingerprints=fingerprints,
        provenance=provenance,
        banners=banners,
    )
    return table


def join_ways(rows: Sequence[Row]) -> dict[str, Comparison]:
    """Target -> one comparison with all ways to use the predictor there, which share the test samples."""
    targets: dict[str, list[Row]] = {}
    for row in rows:
        targets.setdefault(row.target, []).append(row)
    return {
        target: replace(rows[0].comparison, policies=[row.result.rename(row.name) for row in rows])
        for target, rows in targets.items()
    }


def write_records(rows: Sequence[Row]) -> list[str]:
    """Which evaluation on its test split that of each target is, in words."""
    records = {row.target: row.record for row in rows if row.record is not None}
    return [f"{target}: {describe_record(record)}" for target, record in records.items()]


def write_sentences(comparisons: Mapping[str, Comparison]) -> list[str]:
    """What each way recovers on each target, in words."""
    sentences = []
    for target, comparison in comparisons.items():
        shares = [
            f"{format_share(result.find(mean_gap_share))} {result.name}"
            for result in comparison.policies
            if is_known(result.find(mean_gap_share))
        ]
        if is_too_few(comparison.num_images):
            result = f"there is no finding: test images are too few ({comparison.num_images})."
        elif shares and not comparison.nothing_to_gain:
            result = f"of the gap from mix to budgeted oracle are recovered: {'; '.join(shares)}."
        else:
            result = "no choice of scales beats the mix, so there is nothing to recover."
        sentences.append(f"On {target} {result}")
    return sentences


def tabulate(rows: Sequence[Row]) -> Table:
    """Per target and way: share of the gap, points above the mix, and what the default price does."""
    cells = []
    for row in rows:
        cells.append(
            (
                f"{row.target}, {row.name}",
                format_share(row.gap_share),
                format_difference(row.to_mix),
                format_tokens(row.result[default_cost].value),
                format_difference(row.result[to_best_fixed]),
            )
        )
    header = (
        "tested on, trained on", "of the gap", "points above the mix", "default tokens", "to best fixed"
    )  # fmt: skip
    caption = (
        "At matched mean visual tokens, averaged over log budget: share of the gap from mix to budgeted "
        "oracle, and points above the mix; and at the default price"
    )
    return Table(caption, header, tuple(cells), "transfer")


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
        train, validation = split_validation(join_labels(parts), validation_fraction, seed)
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
        variants = [
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
            predictors={
                f"{name} from {variant[0]}, prices from {variant[1]}": variant[-1] for variant in variants
            },
            allow_unrecorded=allow_unrecorded,
        )
        test = join_labels({target: test})
        for trained_on, priced_on, predictor, calibration, fitted, estimates, _ in variants:
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
