"""Trained predictors on disk, and the records of their trainings.

The identity of a trained predictor is everything that determines it: class and arguments, labels, seed, and
training settings. Each identity has its own folder, `PREDICTORS/NAME/DIGEST`, so that trainings with
different settings never share a folder, and a predictor that was not trained as configured is refused. A
folder is written under a temporary name and renamed when it is complete; its record has the digest of every
file.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from experiments.labels.files import to_file_name
from experiments.training.subset import SUBSET, Subset
from m3_backbone.outcomes.manifest import DIGEST, read_manifest, unseal
from m3_backbone.outcomes.table import HELD_OUT
from predictor.base import ScalePredictor
from predictor.calibration import Calibrator
from predictor.cascades.hybrid import HYBRID, Hybrid
from predictor.features import resolve_positions
from predictor.files import FolderError, check_keys, damaged, digest_file, read_json
from predictor.folder import CONFIG, WEIGHTS, describe, list_classes
from predictor.policy.pricing import PRICES, PriceList

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TrainingRecord:
    """Record of a training: identity, files and results on validation.

    `value`, `mix_value` and `oracle_value` are `policy.policy_value` of the predictor, the mix and the
    budgeted oracle; `value` is optimistic, as early stopping chose its maximum. `default_cost` and
    `default_score` are means on the calibration split at the default price. `flops` are per sample.
    `identity` is everything that determines the predictor (`experiments.training.trained`), `files` the
    SHA-256 of each file; empty for a record of tokenscale 0.1.
    """

    name: str
    value: float
    mix_value: float
    oracle_value: float
    scales: list[int]
    fixed_cost: list[float]
    fixed_score: list[float]
    default_cost: float
    default_score: float
    num_train: int
    num_validation: int
    num_parameters: int
    flops: float
    seconds: float
    identity: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def recovered(self) -> float:
        """Recovered share of the gap from mix to budgeted oracle, averaged over log-spaced budgets."""
        gap = self.oracle_value - self.mix_value
        return (self.value - self.mix_value) / gap if gap > 0 else 0.0


_NUMBERS = (
    *("value", "mix_value", "oracle_value", "default_cost", "default_score"),
    *("num_train", "num_validation", "num_parameters", "flops", "seconds"),
)

# Validation metrics that a sweep may optimise, by `optimized_metric`; never test metrics.
VALIDATION_METRICS = {
    "validation/gap_share": lambda record: record.recovered,
    "validation/value": lambda record: record.value,
}


def read_record(folder: Path) -> TrainingRecord | None:
    """Read the record of a finished training in `folder`; None if missing, damaged or of another version."""
    try:
        return load_record(folder)
    except (FileNotFoundError, FolderError):
        return None


def load_record(folder: Path) -> TrainingRecord:
    """Read the record of a finished training in `folder`.

    Raises FileNotFoundError if there is none, FolderError if it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(f"no finished training in {folder}: run `tokenscale train`")
    required = {column.name for column in fields(TrainingRecord) if column.default_factory is MISSING}
    content = check_keys(path, read_json(path), frozenset(required), frozenset({"files", DIGEST}))
    try:
        record = TrainingRecord(**unseal(content))
    except ValueError as error:
        raise damaged(path, error) from error
    numbers = [getattr(record, name) for name in _NUMBERS]
    lists: tuple[list[Any], ...] = (record.scales, record.fixed_cost, record.fixed_score)
    is_typed = isinstance(record.name, str) and isinstance(record.identity, dict)
    if not is_typed or not isinstance(record.files, dict):
        raise damaged(path, "name, identity or files are of another type")
    if not all(isinstance(column, list) for column in lists) or len(set(map(len, lists))) != 1:
        raise damaged(path, "scales, fixed_cost and fixed_score are not lists of the same length")
    if not all(map(_is_finite, [*numbers, *itertools.chain.from_iterable(lists)])):
        raise damaged(path, "a number is missing or not finite")
    if not isinstance(record.identity.get("seed"), int | None):
        raise damaged(path, "the seed is not an integer")
    return record


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FILES = (CONFIG, WEIGHTS, PRICES, HYBRID)
_DIGEST_LENGTH = 12


class IncompleteTraining(ValueError):
    """Raised for a folder that differs from its record, so that the training has to be run again."""


@dataclass(frozen=True, eq=False)
class TrainedPredictor:
    """A predictor with the prices, hybrid and record of its training.

    `digest` is the digest of the files that it was loaded from.
    """

    name: str
    folder: Path
    record: TrainingRecord
    digest: str
    predictor: ScalePredictor
    prices: PriceList
    hybrid: Hybrid | None

    @property
    def seed(self) -> int | None:
        """Seed of the training."""
        seed = self.record.identity.get("seed")
        return None if seed is None else int(seed)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that determine a trained predictor, besides its arguments and the labels.

    `budget` and `tolerance` choose the default price (`predictor.policy.pricing.choose_price`). `trainer`
    has the trainer settings that change weights and differ from the defaults (`training.configured`).
    `subset` is the part of the train split that is used.
    """

    seed: int
    validation_fraction: float
    budget: float | None = None
    tolerance: float = 0.01
    calibrator: Calibrator | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    subset: Subset = field(default_factory=Subset)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two predictors share a name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two predictors are named {name!r}: give one of them another name with predictor.name=NAME"
            )


def identify(
    predictor: ScalePredictor,
    labels: Mapping[str, Any],
    settings: TrainingSettings,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Return the identity of a predictor trained on labels with this manifest, normalized as JSON.

    `folder` is the label folder, which has the sampled answers of soft targets.
    """
    content = {
        **_describe(predictor, labels.get("feature_scales")),
        **identify_labels(labels),
        "validation_fraction": settings.validation_fraction,
        "seed": settings.seed,
        "budget": settings.budget,
        "tolerance": settings.tolerance,
    }
    if predictor.features.reads_decoder:
        # Hybrids of version 0.1 did not count the prefill, so these predictors are trained again.
        content["hybrid"] = "counts the prefill"
    if settings.calibrator is not None:
        content["calibrator"] = describe(type(settings.calibrator), {})
    if settings.trainer:
        content["trainer"] = dict(settings.trainer)
    if settings.subset != Subset():
        content[SUBSET] = settings.subset.identify(folder)
    return normalize(content)


def _describe(predictor: ScalePredictor, feature_scales: Sequence[int] | None) -> dict[str, Any]:
    """Return class and arguments of a predictor, with the scales that it reads in place of positions.

    `feature_scales` are those of its labels; without them, positions are kept.
    """
    arguments = predictor.get_arguments()
    if feature_scales:
        arguments = {name: resolve_positions(value, feature_scales) for name, value in arguments.items()}
    return describe(type(predictor), arguments)


def identify_labels(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a label manifest that belongs to the identity of a trained predictor.

    For labels migrated from tokenscale 0.1 (`labels.migration`), as long as their division is unchanged, this
    is the former part, so that predictors trained on the former labels are still found.
    """
    former = manifest.get("former")
    if former is not None and former["splits"] == manifest.get("splits"):
        return {"labels": former["labels"]}
    content = {key: manifest.get(key) for key in ("fingerprints", "scales", "feature_scales")}
    # The test split is not used in training.
    splits = {split: digest for split, digest in manifest.get("splits", {}).items() if split != HELD_OUT}
    return {"labels": normalize({**content, "splits": splits})}


def normalize(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content after a round trip through JSON: tuples become lists."""
    normalized: dict[str, Any] = json.loads(json.dumps(content))
    return normalized


def locate(predictors: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Return the folder of an identity, which need not exist."""
    text = json.dumps(identity, sort_keys=True)
    return predictors / to_file_name(name) / hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def trust_configured(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the identity of a configuration, which a command trusts.

    Commands whose configuration names a predictor of a user's own module can therefore load it.
    """
    parts = [identity] if "class" in identity else []
    parts += [identity["calibrator"]] if "calibrator" in identity else []
    return tuple(sorted({name for part in parts for name in list_classes(part)}))


def load_trained(
    folder: Path, identity: Mapping[str, Any] | None = None, trust: Sequence[str] = ()
) -> TrainedPredictor:
    """Load the predictor, prices, hybrid and record of one training from its folder.

    If `identity`, that of a configuration, is given, the record has to agree with it, and its classes are
    trusted beside our own and those in `trust` (see `ScalePredictor.load`). Raises FileNotFoundError if there
    is no finished training, and ValueError (most often FolderError) if files are damaged, differ from their
    digests in the record, or change while they are read.
    """
    record = load_record(folder)
    if identity is not None and record.identity != identity:
        other = name_differences(record.identity, identity)
        raise IncompleteTraining(
            f"the predictor in {folder} was trained with other {other}: run `tokenscale train` with this "
            "configuration"
        )
    digests = digest_files(folder)
    for name, digest in record.files.items():
        if digests.get(name) != digest:
            raise IncompleteTraining(
                f"{folder / name} is not the file that its training wrote: run `tokenscale train` "
                "again, which replaces it"
            )
    trained = TrainedPredictor(
        name=record.name,
        folder=folder,
        record=record,
        digest=join_digests(digests),
        predictor=ScalePredictor.load(folder, (*trust, *trust_configured(identity or {}))),
        prices=PriceList.load(folder),
        hybrid=Hybrid.load(folder),
    )
    scales = trained.predictor.scales or ()
    if trained.hybrid is not None and trained.hybrid.num_scales != len(scales):
        raise FolderError(
            f"{folder / HYBRID} was fitted on {trained.hybrid.num_scales} scales, its predictor on "
            f"{len(scales)}: delete {folder} and run `tokenscale train` again"
        )
    if digest_files(folder) != digests:
        raise ValueError(f"{folder} was written to while it was read: run the command again")
    return trained


def join_digests(digests: Mapping[str, str]) -> str:
    """Return one digest of the digests of all files of a trained predictor."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each existing file of a trained predictor, except for its record."""
    return {name: digest_file(folder / name) for name in FILES if os.path.lexists(folder / name)}


def open_trained(predictors: Path, name: str, identity: Mapping[str, Any]) -> TrainedPredictor:
    """Load the trained predictor of an identity, below the folder of all predictors.

    Raises FileNotFoundError if there is none; the message names the differences to the closest one.
    """
    folder = locate(predictors, name, identity)
    if (folder / MANIFEST).is_file():
        return load_trained(folder, identity)
    records = _list_records(predictors, name)
    closest = _describe_closest([(record.identity, identity) for _, record in records])
    raise FileNotFoundError(
        f"no predictor {name} was trained with this configuration in {predictors}{closest}: run "
        "`tokenscale train` with it, or evaluate with the settings of that training"
    )


def find_trained(
    predictors: Path,
    predictor: ScalePredictor,
    labels: Path,
    *,
    seed: int,
    folder: str | None = None,
    trust: Sequence[str] = (),
) -> TrainedPredictor:
    """Load the trained predictor with these arguments and seed, and these labels if the label folder exists.

    Price settings and calibrator are not compared, as the commands that use a predictor do not have them.
    `folder` selects one of several. The classes of `predictor`, and those in `trust`, are trusted besides
    tokenscale's own. Raises FileNotFoundError if there is none, ValueError if several match.
    """
    trust = (*trust, *trust_configured(_describe(predictor, None)))
    has_labels = (labels / "manifest.json").is_file()
    current = identify_labels(read_manifest(labels)) if has_labels else {}

    def want(record: TrainingRecord) -> dict[str, Any]:
        """Return the wanted part of the identity of a record; positions are those in its own labels."""
        feature_scales = record.identity.get("labels", {}).get("feature_scales")
        # One that was trained on part of the labels is used only if its folder is given.
        whole = {SUBSET: None} if folder is None else {}
        return {**normalize({**_describe(predictor, feature_scales), "seed": seed}), **current, **whole}

    if folder is not None:
        trained = load_trained(Path(folder), trust=trust)
        wanted = want(trained.record)
        known = {key: trained.record.identity.get(key) for key in wanted}
        if known != wanted:
            other = name_differences(known, wanted)
            raise ValueError(
                f"the predictor in {folder} was trained with other {other}: give the settings of that "
                "training, or leave out trained"
            )
        return trained
    records = _list_records(predictors, predictor.name)
    matches = [
        (path, record)
        for path, record in records
        if all(record.identity.get(key) == value for key, value in want(record).items())
    ]
    if not matches:
        wanted_of = [(record.identity, want(record)) for _, record in records]
        closest = _describe_closest(
            [({key: identity.get(key) for key in wanted}, wanted) for identity, wanted in wanted_of]
        )
        raise FileNotFoundError(
            f"no predictor {predictor.name} was trained with these settings in {predictors}{closest}: run "
            f"`tokenscale train predictor={predictor.name}`"
        )
    if len(matches) > 1:
        first, second = matches[0][1].identity, matches[1][1].identity
        paths = ", ".join(str(path) for path, _ in matches)
        raise ValueError(
            f"several trained predictors match; they differ in {name_differences(first, second)}: choose one "
            f"with trained=FOLDER ({paths})"
        )
    return load_trained(matches[0][0], trust=trust)


def _list_records(predictors: Path, name: str) -> list[tuple[Path, TrainingRecord]]:
    """Return the folders of finished trainings of predictors with this name, and their records.

    The folder of a predictor of tokenscale 0.1 is `PREDICTORS/NAME` itself.
    """
    predictor_dir = predictors / to_file_name(name)
    folders = [predictor_dir, *sorted(path.parent for path in predictor_dir.glob(f"*/{MANIFEST}"))]
    records = [(folder, read_record(folder)) for folder in folders if not folder.name.startswith(".")]
    finished = [(folder, record) for folder, record in records if record is not None]
    # A predictor that `train` reused from version 0.1 is there twice: the newer folder counts.
    newer = [record.identity for folder, record in finished if folder != predictor_dir]
    return [
        (folder, record)
        for folder, record in finished
        if folder != predictor_dir or record.identity not in newer
    ]


def list_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, first value, second value) of each difference between nested mappings."""
    return list(_walk_differences(first, second, ()))


def _walk_differences(first: Any, second: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            yield from _walk_differences(first.get(key), second.get(key), (*path, str(key)))
    elif first != second:
        yield ".".join(path), first, second


def _describe_closest(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Return a clause on the (stored, wanted) identity with the fewest differences; empty without pairs."""
    if not pairs:
        return ""
    stored, wanted = min(pairs, key=lambda pair: len(list_differences(*pair)))
    return f"; the closest one there has other {name_differences(stored, wanted)}"


def name_differences(stored: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return text that names at most three differences with both values; labels by name only."""
    differences = list_differences(stored, own)
    names = ["labels"] if any(key.startswith("labels") for key, _, _ in differences) else []
    names += [
        f"{key.removeprefix('arguments.')} ({old!r} there, {new!r} here)"
        for key, old, new in differences
        if not key.startswith("labels")
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
