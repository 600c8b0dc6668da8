"""Scores of sampled answers, stored beside their labels.

Those of test questions are for the noise-free oracle, those of training questions are soft targets.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from experiments.labels.files import RESAMPLED, ShardFolder, wait_for_lock
from m3_backbone.outcomes.shards import write_atomically
from m3_backbone.outcomes.table import HELD_OUT, OutcomeTable, check_fingerprints

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Keys in the header of a file of sampled answers.
_ORIGIN = ("fingerprints", "variation", "samples")


@dataclass(frozen=True, eq=False)
class Resampled:
    """Scores of sampled answers: `score` `[num_runs, num_rows, num_scales]` for `rows` of a table."""

    rows: NDArray[np.int64]
    score: Floats

    def select(self, samples: NDArray[np.int64]) -> "Resampled | None":
        """Return the scores for the test table of these samples alone; None if they have none."""
        row_of = {int(sample): row for row, sample in enumerate(samples)}
        kept = [column for column, row in enumerate(self.rows) if int(row) in row_of]
        if not kept:
            return None
        rows = np.array([row_of[int(self.rows[column])] for column in kept])
        return Resampled(rows, self.score[:, kept])


@dataclass(frozen=True, eq=False)
class Part:
    """Contents of one file: scores `[num_runs, num_samples, num_scales]` and their origin."""

    fingerprints: dict[str, str]
    variation: dict[str, Any]
    samples: list[str]
    score: Floats

    def write(self, path: Path) -> None:
        scores = {"score": np.ascontiguousarray(self.score, dtype=np.float32)}
        origin = {name: getattr(self, name) for name in _ORIGIN}
        metadata = {name: json.dumps(value) for name, value in origin.items()}
        metadata["digest"] = _digest(origin, scores["score"])
        write_atomically(path, lambda temporary: save_file(scores, temporary, metadata=metadata))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises ValueError if it is damaged."""
        with _opening(path) as file:
            origin, score = _read_origin(file), file.get_tensor("score")
            if file.metadata().get("digest", "") not in ("", _digest(origin, score)):
                raise ValueError("its content does not have the digest that it names")
            part = cls(**origin, score=score.astype(np.float64))
            part._check()
            return part

    def _check(self) -> None:
        """Raise ValueError for values of the wrong type or shape, and for scores outside [0, 1]."""
        expected = (self.fingerprints, dict), (self.variation, dict), (self.samples, list)
        if not all(isinstance(value, expected_type) for value, expected_type in expected):
            raise ValueError("fingerprints, variation or samples are of another type")
        if self.score.ndim != 3 or self.score.shape[1] != len(self.samples):
            raise ValueError(f"scores of shape {list(self.score.shape)} for {len(self.samples)} samples")
        if not ((self.score >= 0) & (self.score <= 1)).all():
            raise ValueError("a score is outside [0, 1]")


@contextmanager
def _opening(path: Path) -> Iterator[Any]:
    """Open a file of scores of sampled answers. Raises ValueError if it is damaged."""
    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or resample again") from error


def _read_origin(file: Any) -> dict[str, Any]:
    """Fingerprints, variation and sample ids of an open file, without its scores."""
    metadata = file.metadata()
    origin = {name: json.loads(metadata[name]) for name in _ORIGIN}
    if not isinstance(origin["fingerprints"], dict):
        raise ValueError("fingerprints are no JSON object")
    return origin


def _digest(origin: Mapping[str, Any], score: np.ndarray) -> str:
    content = json.dumps(origin, sort_keys=True).encode() + score.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


class ResampledFolder(ShardFolder):
    """Folder with the scores of sampled answers, one file per block of samples, complete or absent.

    Args:
        labels: the label folder; the files are in a subfolder (`locate_resampled`).
        fingerprints: the fingerprints of the labels.
        variation: identity of the variation (`experiments.labels.resampling.Variation`).
        command: the command that resumes after an error, for messages.
        split: split of the samples.
    """

    def __init__(
        self,
        labels: Path,
        fingerprints: Mapping[str, str],
        variation: Mapping[str, float | str],
        command: str = "the same resample command",
        split: str = HELD_OUT,
    ) -> None:
        super().__init__(locate_resampled(labels, split), command)
        self.fingerprints = dict(fingerprints)
        self.variation = dict(variation)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the folder; waits until it is free."""
        labels = self.path.parent
        return self.holding(wait_for_lock(labels / ".lock-resample", f"is resampling {labels}"))

    def begin(self, sample_ids: Iterable[str], *, overwrite: bool = False) -> None:
        """Make the folder, and move aside the files that cannot be used (`find_unusable`)."""
        with self.writing():
            self.path.mkdir(exist_ok=True)
        self.remove_remains()
        unusable = self.find_unusable(sample_ids, overwrite=overwrite)
        replaced = self.move_aside(unusable)
        if replaced is not None:
            log.warning(
                "%d files of sampled answers of other labels or variations are kept in %s",
                len(unusable),
                replaced,
            )

    def find_unusable(self, sample_ids: Iterable[str], *, overwrite: bool = False) -> list[Path]:
        """Return files that are damaged, of other labels, or have samples outside of `sample_ids`.

        `sample_ids` are those of the split. With `overwrite`, files of another variation are returned
        too; without it, they raise ValueError, which names what differs.
        """
        unusable = []
        known = set(sample_ids)
        for path in _list_files(self.path):
            part = self._read(path)
            if part and part.variation != self.variation and not overwrite:
                stored, own = (
                    ", ".join(f"{name}={value}" for name, value in variation.items())
                    for variation in (part.variation, self.variation)
                )
                raise ValueError(
                    f"the answers in {self.path} were sampled with {stored}, not {own}: use these settings "
                    "again, or replace the answers with overwrite=true, which keeps them beside the new ones"
                )
            if not part or part.variation != self.variation or not known.issuperset(part.samples):
                unusable.append(path)
        return unusable

    def refuse_less(self, blocks: Mapping[str, Sequence[str]], num_runs: int) -> None:
        """Raise ValueError if writing these blocks (name -> sample ids) would lose answers."""
        for name, samples in blocks.items():
            part = self._read(self._file(name))
            if part is None or self.holds(name, samples, num_runs):
                continue
            if len(part.score) > num_runs:
                raise ValueError(
                    f"num_runs={num_runs}: {self._file(name)} holds {len(part.score)} answers to every "
                    "question: give at least as many"
                )
            if not set(part.samples) <= set(samples):
                raise ValueError(
                    f"num_images: {self._file(name)} holds answers about more images, and all of them need "
                    "the additional runs: give at least as many images, or null for all"
                )

    def _read(self, path: Path) -> Part | None:
        """Read a file. None if it is missing, damaged or of other labels."""
        try:
            part = Part.read(path)
        except (FileNotFoundError, ValueError):
            return None
        return part if part.fingerprints == self.fingerprints else None

    def holds(self, name: str, samples: Sequence[str], num_runs: int) -> bool:
        """Whether the file of a block has at least `num_runs` runs of all `samples`."""
        part = self._read(self._file(name))
        return part is not None and len(part.score) >= num_runs and set(samples) <= set(part.samples)

    def write(self, name: str, samples: Sequence[str], score: Floats) -> None:
        """Write the scores `[num_runs, num_samples, num_scales]` of a block."""
        with self.writing():
            Part(self.fingerprints, self.variation, list(samples), score).write(self._file(name))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def locate_resampled(labels: Path, split: str) -> Path:
    """Return the folder of the sampled answers to the questions of a split, which need not exist."""
    return labels / (RESAMPLED if split == HELD_OUT else f"{RESAMPLED}_{split}")


def has_resampled(labels: Path) -> bool:
    """Return whether there are sampled answers to test questions."""
    return bool(_list_files(locate_resampled(labels, HELD_OUT)))


def digest_resampled(labels: Path, split: str) -> str:
    """Return a digest of all sampled answers to the questions of a split.

    Raises FileNotFoundError if there are none.
    """
    content = hashlib.sha256()
    paths = _list_files(locate_resampled(labels, split))
    for path in paths:
        with _opening(path) as file:
            content.update(f"{path.name} {file.metadata()['digest']}\n".encode())
    if not paths:
        raise FileNotFoundError(
            f"{labels} has no sampled answers to {split} questions: make them with `tokenscale resample "
            f"split={split}`, or give labels.soft=false"
        )
    return content.hexdigest()[:16]


def check_resampled(labels: Path, fingerprints: Mapping[str, str], split: str = HELD_OUT) -> None:
    """Raise ValueError for files that are damaged or of other labels, without reading scores."""
    for path in _list_files(locate_resampled(labels, split)):
        with _opening(path) as file:
            origin = _read_origin(file)
        check_fingerprints(
            fingerprints, origin["fingerprints"], "the labels", str(path), "delete it, or resample again"
        )


def read_resampled(labels: Path, table: OutcomeTable, split: str = HELD_OUT) -> Resampled | None:
    """Read all scores of sampled answers to the questions of a split, for the runs that all files have.

    `table` are the outcomes of the split. Returns None if there are none. Questions that are no longer in the
    split, after another division of the images, are left out with a warning. Raises ValueError for damaged
    files and those of other labels.
    """
    check_resampled(labels, table.fingerprints, split)
    row_of = {sample: row for row, sample in enumerate(table.sample_id)}
    scores: dict[int, Floats] = {}
    num_others = 0
    for path in _list_files(locate_resampled(labels, split)):
        part = Part.read(path)
        if part.score.shape[2] != len(table.scales):
            raise ValueError(
                f"{path} has scores at {part.score.shape[2]} scales, the labels have {len(table.scales)}: "
                "delete it, or resample again"
            )
        num_others += sum(sample not in row_of for sample in part.samples)
        scores |= {
            row_of[sample]: part.score[:, column]
            for column, sample in enumerate(part.samples)
            if sample in row_of
        }
    if num_others:
        log.warning("%d resampled questions are not in the %s split now and do not count", num_others, split)
    if not scores:
        return None
    num_runs = min(map(len, scores.values()))
    return Resampled(np.array(list(scores)), np.stack([runs[:num_runs] for runs in scores.values()], axis=1))


def _list_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
