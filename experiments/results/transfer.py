"""Transfer of predictors from some tasks or another backbone to other tasks: training and evaluation."""

import copy
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np

from experiments.evaluation.comparison import Comparison, PolicyResult, compare_policies
from experiments.evaluation.costs import list_cost_measures
from experiments.evaluation.metrics import mean_gap_share, mean_to_mix
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.stability import Stability, find_pairs, measure_stability
from experiments.evaluation.statistics import Bootstrap, Estimate
from experiments.labels.held_out import EvaluationRecord, EvaluationRecorder
from experiments.tasks.base import SPLITS, Split
from experiments.training.joining import as_backbone, join_labels
from experiments.training.trained import TrainingSettings, digest_files, join_digests
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import FitContext, ScalePredictor
from predictor.calibration import Calibrator
from predictor.splitting import split_for_calibrator, split_validation

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Row:
    """Result of a predictor on a target task, by the tasks it was trained on and the samples of its prices.

    `comparison` is that of this predictor alone on the evaluated samples `outcomes` of the target, in visual
    tokens; `others` are the same in further cost measures.
    """

    target: str
    trained_on: str
    priced_on: str
    comparison: Comparison
    outcomes: OutcomeTable
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


def compare_versions(rows: Sequence[Row]) -> dict[tuple[str, str], Stability]:
    """Return (original, changed task) -> stability of the choices at the default price of the sources.

    Pairs are targets with the same samples and references (`find_pairs`) and the same predictor. The original
    is a task that was trained on.
    """
    priced = [row for row in rows if row.trained_on == row.priced_on]
    pairs = {}
    for original in priced:
        if original.target not in original.trained_on.split(" + "):
            continue
        for changed in priced:
            if changed.target == original.target or changed.trained_on != original.trained_on:
                continue
            if (paired := find_pairs(original.outcomes, changed.outcomes)) is not None:
                pairs[original.target, changed.target] = measure_stability(
                    original.outcomes,
                    changed.outcomes,
                    (original.result.default.choice, changed.result.default.choice),
                    paired,
                    changed.comparison.bootstrap,
                )
    return pairs


@dataclass(frozen=True)
class Source:
    """Labels that are trained on: of a task, by another backbone if `backbone` is given."""

    task: str
    backbone: str | None = None

    @property
    def name(self) -> str:
        return self.task if self.backbone is None else f"{self.task} of {self.backbone}"

    def find(self, labels: Path) -> Path:
        """Return the label folder, given the folder `labels` of the evaluated backbone's tasks."""
        return (labels if self.backbone is None else labels.parent / self.backbone) / self.task


def list_sources(tasks: Sequence[str], backbones: Sequence[str], backbone: str) -> list[Source]:
    """Return the sources of every backbone, by default of `backbone`, the one that is evaluated."""
    return [
        Source(task, None if name == backbone else name) for name in backbones or [backbone] for task in tasks
    ]


@dataclass(frozen=True)
class TransferPlan:
    """What is trained on, tested on and priced by: settings of `transfer`.

    A predictor is trained on all `sources` and evaluated on each of `targets`. With `leave_one_out` a target
    is left out of its own sources. Sources that are other versions of the samples of the source `outcomes_of`
    get its outcomes, so that other words or images augment its inputs. `num_recalibration` is the number of
    samples of a target on which its second prices rest; with `allow_small`, all are used if there are fewer.
    With `native`, a predictor is also trained on each target. `split` is the evaluated split of the targets:
    `test`, or `calibration` for its images without prices, to choose by.
    """

    sources: Sequence[Source]
    targets: Sequence[str]
    num_recalibration: int
    leave_one_out: bool = False
    native: bool = True
    split: str = "test"
    outcomes_of: str | None = None
    allow_small: bool = False

    def find_sources(self) -> dict[str, list[Source]]:
        """Return the sources of each target.

        Raises ValueError if sources or targets are empty or not distinct, and for a target without a source.
        """
        names = [source.name for source in self.sources]
        for name, given in (("sources", names), ("targets", list(self.targets))):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must be distinct tasks, at least one, got {given}")
        sources_of = {
            target: [source for source in self.sources if not (self.leave_one_out and source.task == target)]
            for target in self.targets
        }
        if alone := [target for target, parts in sources_of.items() if not parts]:
            raise ValueError(
                f"leave_one_out=true leaves no source for {alone[0]}: name further tasks in sources"
            )
        return sources_of

    def list_needed(self, labels: Path) -> dict[Path, tuple[str, tuple[Split, ...]]]:
        """Return the label folders that are read, each with a name and the splits that it needs."""
        needed: dict[Path, tuple[str, tuple[Split, ...]]] = {
            source.find(labels): (source.name, ("train", "calibration")) for source in self.sources
        }
        evaluated: tuple[Split, ...] = ("calibration", "test")
        return needed | {
            labels / target: (target, SPLITS if self.native or labels / target in needed else evaluated)
            for target in self.targets
        }


def transfer(
    make_predictor: Callable[[], ScalePredictor],
    plan: TransferPlan,
    *,
    labels: Path,
    settings: TrainingSettings,
    recorder: EvaluationRecorder,
    make_trainer: Callable[..., lightning.Trainer] | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> list[Row]:
    """Train a predictor on the sources of a plan and evaluate it on each of its targets.

    The labels of a task are in `labels/<task>`, those of another backbone in `labels/../<backbone>/<task>`;
    the subset of `settings` is the part of each train split. Images are divided into training and validation
    by task, so that an image of several versions of a task is on one side in all of them. With sources of
    another backbone all sources are read as in `as_backbone`, and predictors that read features of the
    backbone are refused.

    Each target has three rows: the predictor with prices from the calibration splits of the sources; the same
    with prices from the few samples of the target's calibration split, of images chosen at random with the
    seed; and, if the plan is native, a predictor trained on the target, which on the calibration split has
    its prices from the few samples too. A copy of the calibrator, if `settings` have one, is fitted on one
    half of the images, and prices come from the other half. Evaluations of the test split are recorded.
    Raises ValueError as `TransferPlan.find_sources`, and if labels come from different backbones.
    """
    sources_of, calibrator = plan.find_sources(), settings.calibrator
    # Missing or too few samples are refused before anything is trained.
    calibration_of = {
        target: read_calibration(
            labels / target, target, plan.num_recalibration, settings.seed, allow_small=plan.allow_small
        )
        for target in plan.targets
    }
    if calibrator is not None:
        for _, few in calibration_of.values():
            split_for_calibrator(few)
    like = None
    if any(source.backbone for source in plan.sources):
        check_outside(make_predictor())
        like = calibration_of[plan.targets[0]][0]
    training = _Training(make_predictor, labels, settings, plan.outcomes_of, like, make_trainer)

    def price(target: str) -> list[_PricedPredictor]:
        parts, (_, few) = sources_of[target], calibration_of[target]
        predictor, source_calibration = training.train_on(parts)
        source, few_name = " + ".join(part.name for part in parts), f"{len(few)} of {target}"
        priced = [
            _PricedPredictor.of(predictor, source, source, source_calibration, calibrator),
            _PricedPredictor.of(predictor, source, few_name, few, calibrator),
        ]
        if plan.native and parts != [Source(target)]:
            own, own_calibration = training.train_on([Source(target)])
            name, samples = (target, own_calibration) if plan.split == "test" else (few_name, few)
            priced.append(_PricedPredictor.of(own, target, name, samples, calibrator))
        return priced

    def evaluate(target: str) -> Iterator[Row]:
        priced, (calibration, few) = price(target), calibration_of[target]
        if plan.split == "test":
            test, record = recorder.open_test(labels / target, {entry.name: entry.digest for entry in priced})
            test = join_labels({target: test})
        else:
            is_rest = ~np.isin(calibration.outcomes.image_id.astype(str), few.outcomes.image_id.astype(str))
            test, record = calibration.select(is_rest), None
        for entry in priced:
            comparison, *others = entry.compare(test, bootstrap)
            yield Row(target, entry.trained_on, entry.priced_on, comparison, test.outcomes, record, others)

    return [row for target in plan.targets for row in evaluate(target)]


class _Training:
    """Predictors trained on sources, each once.

    `like` are labels of the evaluated backbone, if there are sources of another one; the other arguments are
    those of `transfer` and `TransferPlan`.
    """

    def __init__(
        self,
        make_predictor: Callable[[], ScalePredictor],
        labels: Path,
        settings: TrainingSettings,
        outcomes_of: str | None,
        like: Labels | None,
        make_trainer: Callable[..., lightning.Trainer] | None,
    ) -> None:
        self.make_predictor, self.labels, self.settings = make_predictor, labels, settings
        self.outcomes_of, self.like, self.make_trainer = outcomes_of, like, make_trainer
        self._trained: dict[tuple[Source, ...], tuple[ScalePredictor, Labels]] = {}

    def read(self, source: Source, split: str) -> Labels:
        """Return a split of a source as it is trained on."""
        folder, settings = source.find(self.labels), self.settings
        part = settings.subset.read(folder, settings.seed) if split == "train" else read_labels(folder, split)
        if self.outcomes_of is not None and source.task != self.outcomes_of:
            part = take_outcomes(part, read_labels(folder.parent / self.outcomes_of, split))
        return part if self.like is None else as_backbone(part, self.like)

    def train_on(self, sources: Sequence[Source]) -> tuple[ScalePredictor, Labels]:
        """Return a predictor trained on sources, and their calibration splits."""
        if (key := tuple(sources)) not in self._trained:
            fraction, seed = self.settings.validation_fraction, self.settings.seed
            halves = {
                source.name: split_validation(self.read(source, "train"), fraction, seed)
                for source in sources
            }
            train, validation = (
                join_labels({name: half[side] for name, half in halves.items()}) for side in (0, 1)
            )
            predictor = self.make_predictor()
            log.info("training %s on %s, %d samples", predictor.name, " + ".join(halves), len(train))
            predictor.fit(train, validation, FitContext(None, self.make_trainer))
            calibration = join_labels({source.name: self.read(source, "calibration") for source in sources})
            self._trained[key] = predictor, calibration
        return self._trained[key]


@dataclass(frozen=True, eq=False)
class _PricedPredictor:
    """A trained predictor with its calibrator, and the samples that its prices come from.

    `estimates` are those on `samples`. A change of predictor, calibrator or prices is another evaluation:
    `digest` covers all three.
    """

    predictor: ScalePredictor
    trained_on: str
    priced_on: str
    samples: Labels
    calibrator: Calibrator | None
    estimates: np.ndarray
    digest: str

    @classmethod
    def of(
        cls,
        predictor: ScalePredictor,
        trained_on: str,
        priced_on: str,
        samples: Labels,
        calibrator: Calibrator | None,
    ) -> "_PricedPredictor":
        """Fit a copy of the calibrator on half of the images of `samples`; prices come from the others."""
        predictor.calibrator = None
        if calibrator is not None:
            seen, samples = split_for_calibrator(samples)
            predictor.calibrate(seen, copy.deepcopy(calibrator))
        ids = hashlib.sha256("\n".join(samples.outcomes.sample_id).encode()).hexdigest()
        digest = f"{digest_predictor(predictor)}-{ids[:8]}"
        estimates = predictor.predict(samples.inputs)
        return cls(predictor, trained_on, priced_on, samples, predictor.calibrator, estimates, digest)

    @property
    def name(self) -> str:
        """Name in the record of the evaluation."""
        return f"{self.predictor.name} from {self.trained_on}, prices from {self.priced_on}"

    def compare(self, test: Labels, bootstrap: Bootstrap) -> list[Comparison]:
        """Return the comparison on `test` in each cost measure, the first in visual tokens."""
        predictor, outcomes = self.predictor, self.samples.outcomes
        predictor.check_backbone(test.outcomes.fingerprints)
        predictor.calibrator = self.calibrator
        policy = PredictorPolicy(predictor.name, self.estimates, predictor.predict(test.inputs))
        measures = list_cost_measures(outcomes, {predictor.name: predictor}, self.samples.inputs)
        return [
            compare_policies(
                outcomes, test.outcomes, [policy], measure=measure, reference=None, bootstrap=bootstrap
            )
            for measure in measures
        ]


def take_outcomes(version: Labels, original: Labels) -> Labels:
    """Return labels with the scores and likelihoods of `original` if they are a version of its samples."""
    if (rows := find_pairs(original.outcomes, version.outcomes)) is None:
        return version
    columns = {name: getattr(original.outcomes, name)[rows] for name in ("score", "nll")}
    return replace(version, outcomes=replace(version.outcomes, **columns))


def read_calibration(
    folder: Path, target: str, num_recalibration: int, seed: int, *, allow_small: bool
) -> tuple[Labels, Labels]:
    """Return the calibration split of a target, and the few samples for recalibration."""
    split = join_labels({target: read_labels(folder, "calibration")})
    number = min(num_recalibration, len(split)) if allow_small else num_recalibration
    return split, split.select(draw_samples(split.outcomes.image_id, number, seed))


def check_outside(predictor: ScalePredictor) -> None:
    """Raise ValueError for a predictor that reads what only the backbone computes."""
    is_resolved = predictor.features.visual is not None
    if not is_resolved or predictor.reads_backbone:
        raise ValueError(
            f"{predictor.name} reads tokens of the backbone, and another backbone has others: with "
            "source_backbones choose predictor=question_only, image_statistics or thumbnail, or features "
            "without visual tokens, question ids and tower statistics"
        )


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
