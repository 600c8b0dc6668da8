"""Transfer of predictors from some tasks or another backbone to other tasks: training and evaluation."""

import copy
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import lightning
import numpy as np

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.comparison import Comparison, PolicyResult
from experiments.evaluation.costs import list_cost_measures
from experiments.evaluation.fronts import Columns
from experiments.evaluation.metric_table import Key, Metric
from experiments.evaluation.metrics import mean_gap_share, mean_to_mix
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.stability import Stability, find_pairs, measure_stability
from experiments.evaluation.statistics import (
    Bootstrap,
    Bootstrapped,
    Estimate,
    allows_interval,
    combine_seeds,
)
from experiments.labels.division import check_labels, find_label_banners
from experiments.labels.held_out import EvaluationRecord, EvaluationRecorder
from experiments.results.sources import Source, SourceReader, check_outside, name_sources
from experiments.tasks.base import SPLITS, Split
from experiments.tasks.sizes import Banner
from experiments.training.joining import join_labels
from experiments.training.trained import TrainingSettings, digest_files, join_digests
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import FitContext, ScalePredictor
from predictor.calibration import Calibrator
from predictor.splitting import split_for_calibrator

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Row:
    """Result of a predictor on a target task, by the tasks it was trained on and the samples of its prices.

    `trainings` maps a training seed to comparisons of this predictor alone on the evaluated samples
    `outcomes` of the target: in visual tokens, then in each further cost measure.
    """

    target: str
    trained_on: str
    priced_on: str
    trainings: Mapping[int, Sequence[Comparison]]
    outcomes: OutcomeTable
    record: EvaluationRecord | None = None

    @property
    def name(self) -> str:
        """Label for legends and tables."""
        if self.trained_on == self.priced_on:
            return f"trained on {self.trained_on}"
        return f"trained on {self.trained_on}, prices from {self.priced_on}"

    @property
    def comparison(self) -> Comparison:
        """Comparison in visual tokens, of the first seed."""
        return next(iter(self.trainings.values()))[0]

    @property
    def others(self) -> Sequence[Comparison]:
        """Comparisons in further cost measures, of the first seed."""
        return next(iter(self.trainings.values()))[1:]

    @property
    def result(self) -> PolicyResult:
        """Result in visual tokens, of the first seed."""
        return self.comparison.policies[0]

    def find(self, metric: Metric, measure: int = 0) -> Estimate | None:
        """Return a metric averaged over the seeds in one of the cost measures; None if it does not exist.

        The interval covers images and, with several seeds, trainings (`combine_seeds`).
        """
        by_seed = {}
        for seed, comparisons in self.trainings.items():
            comparison = comparisons[measure]
            (result,) = comparison.policies
            if (estimate := result.find(metric)) is None:
                return None
            resamples = comparison.metrics.resamples[Key(result.key, metric)]
            by_seed[seed] = Bootstrapped(estimate.value, resamples, allows_interval(comparison.num_images))
        bootstrap = self.comparison.bootstrap
        return combine_seeds(by_seed, seed=bootstrap.seed).estimate(bootstrap.confidence)

    def choose(self, seed: int) -> Columns:
        """Return the columns of the scales chosen at the default price by the training of a seed."""
        return self.trainings[seed][0].policies[0].default.choice

    @property
    def gap_share(self) -> Estimate | None:
        """Share of the gap from mix to budgeted oracle over log-spaced budgets; None if there is no gap."""
        return self.find(mean_gap_share)

    @property
    def to_mix(self) -> Estimate | None:
        """Score above the mix at matched mean visual tokens, averaged over log-spaced budgets."""
        return self.find(mean_to_mix)


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
                    {seed: (original.choose(seed), changed.choose(seed)) for seed in changed.trainings},
                    paired,
                    changed.comparison.bootstrap,
                )
    return pairs


@dataclass(frozen=True)
class TransferPlan:
    """What is trained on, and where the predictors are evaluated.

    A predictor is trained on all `sources`, with `leave_one_out` on those of other tasks than the target, and
    evaluated on each of `targets`. `num_recalibration` samples of a target's calibration split are for new
    prices. With `native`, a predictor trained on the target is evaluated beside it. With
    `split="calibration"` the other images of the target's calibration split are evaluated, to choose by.
    Sources that are versions of the samples of the source `outcomes_of` get its outcomes, so that other words
    or images augment its inputs. Raises ValueError if sources or targets are empty or not distinct.
    """

    sources: Sequence[Source]
    targets: Sequence[str]
    num_recalibration: int
    leave_one_out: bool = False
    native: bool = True
    split: str = "test"
    outcomes_of: str | None = None

    def __post_init__(self) -> None:
        for name, given in (
            ("sources", [source.name for source in self.sources]),
            ("targets", list(self.targets)),
        ):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must be distinct tasks, at least one, got {given}")
        if alone := [target for target in self.targets if not self.find_sources(target)]:
            raise ValueError(
                f"leave_one_out=true leaves no source for {alone[0]}: name further tasks in sources"
            )

    @property
    def is_foreign(self) -> bool:
        """Whether labels of another backbone are trained on."""
        return any(source.backbone for source in self.sources)

    def find_sources(self, target: str) -> tuple[Source, ...]:
        """Return the sources of a target's predictor."""
        return tuple(source for source in self.sources if not (self.leave_one_out and source.task == target))

    def list_needed(self, labels: Path) -> dict[Path, tuple[str, tuple[Split, ...]]]:
        """Return label folder -> (name, splits that are read), given the folder of a backbone's tasks."""
        needed: dict[Path, tuple[str, tuple[Split, ...]]] = {
            source.find(labels): (source.name, ("train", "calibration")) for source in self.sources
        }
        for target in self.targets:
            is_trained_on = self.native or labels / target in needed
            needed[labels / target] = target, SPLITS if is_trained_on else ("calibration", "test")
        return needed

    def check_labels(self, labels: Path, *, allow_small: bool) -> list[Banner]:
        """Raise ValueError for missing or too few labels; return all banners, loud ones first."""
        needed = self.list_needed(labels)
        for folder, (_, splits) in needed.items():
            check_labels(folder, splits, allow_small=allow_small)
        banners = [
            banner
            for folder, (name, splits) in needed.items()
            for banner in find_label_banners(folder, splits, name)
        ]
        return sorted(banners, key=lambda banner: not banner.is_loud)


@dataclass(frozen=True, eq=False)
class Priced:
    """A trained predictor with prices, and a calibrator if there is one, from some samples.

    `estimates` are those on `samples`, of which the prices are read. `digest` tells apart all that changes
    choices: the predictor, its calibrator and the samples of its prices.
    """

    trained_on: str
    priced_on: str
    predictor: ScalePredictor
    calibrator: Calibrator | None
    samples: Labels
    estimates: np.ndarray
    digest: str

    @property
    def name(self) -> str:
        """Name in the record of test evaluations."""
        return f"{self.predictor.name} from {self.trained_on}, prices from {self.priced_on}"

    def evaluate(self, test: Labels, bootstrap: Bootstrap) -> list[Comparison]:
        """Compare with the fixed scales on `test`, in each cost measure of the labels."""
        predictor = self.predictor
        predictor.check_backbone(test.outcomes.fingerprints)
        predictor.calibrator = self.calibrator
        policy = PredictorPolicy(predictor.name, self.estimates, predictor.predict(test.inputs))
        measures = list_cost_measures(self.samples.outcomes, {predictor.name: predictor}, self.samples.inputs)
        return [
            compare_policies(
                self.samples.outcomes,
                test.outcomes,
                [policy],
                measure=measure,
                reference=None,
                bootstrap=bootstrap,
            )
            for measure in measures
        ]


def set_prices(
    predictor: ScalePredictor, samples: Labels, calibrator: Calibrator | None, names: tuple[str, str]
) -> Priced:
    """Fit a copy of the calibrator on half of the images; the others, without one all, are for prices.

    `names` say what the predictor was trained on and what `samples` are.
    """
    predictor.calibrator = None
    if calibrator is not None:
        seen, samples = split_for_calibrator(samples)
        predictor.calibrate(seen, copy.deepcopy(calibrator))
    ids = hashlib.sha256("\n".join(samples.outcomes.sample_id).encode()).hexdigest()
    digest = f"{digest_predictor(predictor)}-{ids[:8]}"
    estimates = predictor.predict(samples.inputs)
    return Priced(*names, predictor, predictor.calibrator, samples, estimates, digest)


@dataclass(frozen=True)
class SourceTrainer:
    """Trains predictors on sources; what was trained on the same sources before is not trained again.

    `calibration` holds the calibration splits that were read, which are the same for all seeds.
    """

    make_predictor: Callable[[int], ScalePredictor]
    reader: SourceReader
    make_trainer: Callable[..., lightning.Trainer] | None
    calibration: dict[tuple[Source, ...], Labels]
    trained: dict[tuple[Source, ...], ScalePredictor] = field(default_factory=dict)

    def train_on(self, sources: tuple[Source, ...]) -> tuple[ScalePredictor, Labels]:
        """Return a predictor trained on the sources, and the labels of their calibration splits."""
        if sources not in self.trained:
            train, validation = self.reader.read_training(sources)
            seed = self.reader.settings.seed
            predictor = self.make_predictor(seed)
            log.info(
                "training %s on %s, seed %d, %d samples",
                *(predictor.name, name_sources(sources), seed, len(train)),
            )
            predictor.fit(train, validation, FitContext(None, self.make_trainer))
            self.trained[sources] = predictor
        if sources not in self.calibration:
            self.calibration[sources] = self.reader.read_calibration(sources)
        return self.trained[sources], self.calibration[sources]


@dataclass(frozen=True, eq=False)
class Target:
    """A task that predictors are evaluated on: its calibration split, and the few samples for prices."""

    task: str
    calibration: Labels
    few: Labels

    @classmethod
    def read(cls, task: str, labels: Path, number: int, seed: int, *, allow_small: bool) -> "Target":
        """Read the target in `labels/<task>`; with `allow_small` there may be fewer than `number` samples."""
        split = join_labels({task: read_labels(labels / task, "calibration")})
        number = min(number, len(split)) if allow_small else number
        return cls(task, split, split.select(draw_samples(split.outcomes.cluster_id, number, seed)))

    @property
    def few_name(self) -> str:
        return f"{len(self.few)} of {self.task}"

    def select_rest(self) -> Labels:
        """Return the calibration split without the images of the few samples."""
        few_images = self.few.outcomes.cluster_id.astype(str)
        return self.calibration.select(~np.isin(self.calibration.outcomes.cluster_id.astype(str), few_images))


def transfer(
    make_predictor: Callable[[int], ScalePredictor],
    plan: TransferPlan,
    *,
    labels: Path,
    recorder: EvaluationRecorder,
    settings: TrainingSettings,
    seeds: Sequence[int] | None = None,
    make_trainer: Callable[..., lightning.Trainer] | None = None,
    bootstrap: Bootstrap = Bootstrap(),
    allow_small: bool = False,
) -> list[Row]:
    """Train a predictor on the sources of a plan and evaluate it on each of its targets.

    It is trained with each of `seeds`, by default that of `settings`; `make_predictor` takes the seed. All
    trainings are evaluated on the same samples, as one recorded evaluation of each target.

    The labels of a task are in `labels/<task>`, those of another backbone in `labels/../<backbone>/<task>`;
    the subset of `settings` is the part of each train split. Images are divided into training and validation
    by task, so that an image of several versions of a task is on one side in all of them. With sources of
    another backbone all sources are read as in `as_backbone`, and predictors that read features of the
    backbone are refused.

    Each target has three rows: the predictor with prices from the calibration splits of the sources; the same
    with prices from a few samples of the target's calibration split; and, if the plan asks for it, a
    predictor trained on the target, with prices from its calibration split (from the few samples if that
    split is evaluated). The few samples are of images chosen at random with the seed of `settings`; with
    `allow_small`, all samples are used if there are fewer. A copy of the calibrator, if `settings` have one,
    is fitted on one half of the images, and prices come from the other half. Evaluations of the test split
    are recorded.
    Raises ValueError if labels come from different backbones, and before training if a target has too few
    samples.
    """
    # Missing or too few samples are refused before anything is trained.
    targets = [
        Target.read(task, labels, plan.num_recalibration, settings.seed, allow_small=allow_small)
        for task in plan.targets
    ]
    if settings.calibrator is not None:
        for target in targets:
            split_for_calibrator(target.few)
    seeds = list(dict.fromkeys(seeds or [settings.seed]))
    if plan.is_foreign:
        check_outside(make_predictor(seeds[0]))
    like = targets[0].calibration if plan.is_foreign else None
    calibration: dict[tuple[Source, ...], Labels] = {}
    trainers = {
        seed: SourceTrainer(
            make_predictor,
            SourceReader(labels, replace(settings, seed=seed), plan.outcomes_of, like),
            make_trainer,
            calibration,
        )
        for seed in seeds
    }
    rows = []
    for target in targets:
        priced = {seed: list(price_predictors(target, plan, trainer)) for seed, trainer in trainers.items()}
        if plan.split == "test":
            # A change of predictor, calibrator or prices is another evaluation.
            digests = {
                predictor.name if len(seeds) == 1 else f"{predictor.name}, seed {seed}": predictor.digest
                for seed, predictors in priced.items()
                for predictor in predictors
            }
            test, record = recorder.open_test(labels / target.task, digests)
            test = join_labels({target.task: test})
        else:
            test, record = target.select_rest(), None
        for predictors in zip(*priced.values(), strict=True):
            trainings = {
                seed: predictor.evaluate(test, bootstrap)
                for seed, predictor in zip(seeds, predictors, strict=True)
            }
            names = predictors[0].trained_on, predictors[0].priced_on
            rows.append(Row(target.task, *names, trainings, test.outcomes, record))
    return rows


def price_predictors(target: Target, plan: TransferPlan, trainer: SourceTrainer) -> Iterator[Priced]:
    """Return the predictors that are evaluated on a target, trained and with their prices."""
    sources, own = plan.find_sources(target.task), (Source(target.task),)
    calibrator = trainer.reader.settings.calibrator
    predictor, calibration = trainer.train_on(sources)
    name = name_sources(sources)
    yield set_prices(predictor, calibration, calibrator, (name, name))
    yield set_prices(predictor, target.few, calibrator, (name, target.few_name))
    if plan.native and sources != own:
        predictor, calibration = trainer.train_on(own)
        if plan.split == "test":
            yield set_prices(predictor, calibration, calibrator, (target.task, target.task))
        else:
            yield set_prices(predictor, target.few, calibrator, (target.task, target.few_name))


def digest_predictor(predictor: ScalePredictor) -> str:
    """Return a digest of the files that a predictor is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(folder)
        return join_digests(digest_files(Path(folder)))


def draw_samples(cluster_id: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return the sorted indices of `number` samples of images chosen at random; the last may be incomplete.

    Raises ValueError if `number` is below 1 or there are fewer samples.
    """
    if number < 1:
        raise ValueError(f"num_recalibration must be at least 1, got {number}")
    if number > len(cluster_id):
        raise ValueError(
            f"the calibration split has {len(cluster_id)} samples, fewer than num_recalibration={number}: "
            f"label more, or set num_recalibration={len(cluster_id)} or lower"
        )
    images = np.random.default_rng(seed).permutation(np.unique(cluster_id.astype(str)))
    rank = {image: position for position, image in enumerate(images)}
    order = np.argsort([rank[str(image)] for image in cluster_id], kind="stable")
    return np.sort(order[:number])
