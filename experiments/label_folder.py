"""The folder that labelling writes: a manifest, shards that are whole or absent, one writer at a time."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import save
from torch import Tensor

from experiments.blocks import Limits
from experiments.label_locks import hold
from experiments.labels.replaced import RESAMPLED, move_aside
from experiments.tasks.base import SPLITS
from m3_backbone.features import ImageFeatures
from m3_backbone.outcomes import HELD_OUT, OutcomeTable
from m3_backbone.shards import (
    SCHEMA_VERSION,
    find_shards,
    naming,
    read_header,
    read_manifest,
    to_feature_table,
    to_matrix,
    write_atomically,
    write_shard,
)

log = logging.getLogger(__name__)

MANIFEST, SET_ASIDE, EMBEDDINGS = "manifest.json", "set_aside.jsonl", "token_embeddings.safetensors"
_OLD_LATENCY = "latency.json"  # earlier versions timed answers while labelling
# With less lead of one token over the next, in nats, another machine may round to another answer.
NEAR_TIE = 1e-3
ROOMS = ("features", "outcomes")


class LabelFolder:
    """The files of one labelling, and what may not differ between two labellings in one folder.

    A shard is a file of features and then one of outcomes, which carries the rows set aside in its metadata
    and makes the shard count: after a kill in between, both are made again.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprints: Mapping[str, str],
        scales: tuple[int, ...],
        feature_scales: tuple[int, ...],
        command: str = "the same label command",
    ) -> None:
        self.path = Path(path)
        self.fingerprints = dict(fingerprints)
        self.scales = scales
        self.feature_scales = feature_scales
        self.command = command
        self.manifest: dict[str, Any] = {}
        # Where the labels went that were here before.
        self.replaced: Path | None = None

    def open(self) -> bool:
        """Read the manifest, if there is one; refuse one that something else made."""
        if not (self.path / MANIFEST).exists():
            return False
        manifest = read_manifest(self.path)
        kept = {"scales": list(self.scales), "feature_scales": list(self.feature_scales)}
        here = {**self.fingerprints, **kept}
        there = {**manifest["fingerprints"], **{key: manifest.get(key) for key in kept}}
        differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if differing:
            details = ", ".join(f"{key} ({there.get(key)} there, {here.get(key)} here)" for key in differing)
            raise ValueError(
                f"the labels in {self.path} were made with other {details}: label into another folder with "
                "paths.labels=FOLDER, or replace these with overwrite=true, which keeps them beside the "
                "new ones"
            )
        self.manifest = manifest
        return True

    @property
    def shard_size(self) -> int:
        """Samples per shard, as the labelling was begun."""
        return self.manifest["shard_size"]

    def has(self, limit: Limits) -> bool:
        """Whether every sample within `limit` is there, each shard whole. Reads the manifest, as `open`."""
        manifest = self.manifest if self.open() else {}
        return bool(
            manifest.get("complete")
            and manifest["limit"] == dict(limit)
            and (self.path / EMBEDDINGS).exists()
            and all(self.holds(name, digest) for name, digest in manifest["shards"].items())
        )

    @contextmanager
    def locked(self, part: str = "", timeout: float | None = 0) -> Iterator[None]:
        """Hold the folder, or one part of the work on it, against other runs; see `label_locks.hold`."""
        with ExitStack() as stack:
            with self.writing():
                stack.enter_context(hold(self.path, part, timeout))
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the system says of a failed write into what to do about it."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise OSError(
                f"cannot write to {self.path}, as a file lies where a folder belongs: give another folder "
                "with paths.labels=FOLDER"
            ) from error
        except OSError as error:
            raise OSError(
                f"cannot write to {self.path}: {error.strerror or error}. What was finished is kept; "
                f"once this is mended, {self.command} goes on from there"
            ) from error

    def begin(
        self,
        *,
        names: Mapping[str, str],
        limit: Limits,
        shard_size: int,
        overwrite: bool = False,
        alone: bool = True,
        is_retried: bool = False,
    ) -> None:
        """Write the manifest of an unfinished labelling, over the remains of a killed or smaller one.

        Not `alone`: other runs may be writing shards at the same time. `is_retried`: shards that are there
        get more samples, which tells these labels from the earlier ones.
        """
        if not overwrite and self.open():
            shard_size = self.manifest["shard_size"]  # another size would make finished shards worthless
            self._refuse_less(limit)
        else:
            self._move_aside()
        num_retries = self.manifest.get("num_retries", 0) + is_retried
        for remains in self.path.rglob(".*.tmp") if alone else ():
            remains.unlink()
        self.manifest = {
            "schema": SCHEMA_VERSION,
            **names,
            "fingerprints": self.fingerprints,
            "scales": list(self.scales),
            "feature_scales": list(self.feature_scales),
            "limit": dict(limit),
            "shard_size": shard_size,
            "complete": False,
        } | ({"num_retries": num_retries} if num_retries else {})
        with self.writing():
            for room in ROOMS:
                (self.path / room).mkdir(exist_ok=True)
        self._write_text(MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    def _move_aside(self) -> None:
        """Move what labelling wrote here, if there is anything, into a folder beside this one."""
        shards = [path for room in ROOMS for split in SPLITS for path in find_shards(self.path, room, split)]
        answers = sorted((self.path / RESAMPLED).glob("*.safetensors"))
        # Records of test evaluations, locks and what is not ours stay; the manifest comes last, so that a
        # kill shows.
        names = (SET_ASIDE, EMBEDDINGS, _OLD_LATENCY, MANIFEST)
        with self.writing():
            self.replaced = move_aside(self.path, [*shards, *answers, *(self.path / name for name in names)])
        if self.replaced is not None:
            log.warning("the labels that were in %s are kept in %s", self.path, self.replaced)

    def _refuse_less(self, limit: Limits) -> None:
        there: Limits = self.manifest["limit"]
        for split, most in limit.items():
            begun = there[split]
            if most is not None and (begun is None or begun > most):
                raise ValueError(
                    f"{self.path} was begun with limit.{split}={begun or 'null'}, more than {most}: "
                    "ask for as many or more, label into another folder with paths.labels=FOLDER, or "
                    "replace these labels with overwrite=true, which keeps them beside the new ones"
                )

    def holds(self, name: str, digest: str) -> bool:
        """Whether a shard is there, whole, and made from the samples of this digest."""
        try:
            headers = [read_header(self._shard(room, name)) for room in ROOMS]
        except FileNotFoundError:
            return False
        except ValueError as error:
            log.warning("shard %s is made again: %s", name, error)
            return False
        return all(head["digest"] == digest and head["fingerprints"] == self.fingerprints for head in headers)

    def _shard(self, room: str, name: str) -> Path:
        return self.path / room / f"{name}.parquet"

    def upgrade_manifest(self, image_set: str) -> None:
        """Bring the manifest of a finished folder of version 0.1 up to date: no test scores, an image set."""
        accuracy = {split: means for split, means in self.manifest["accuracy"].items() if split != HELD_OUT}
        manifest = {**self.manifest, "accuracy": accuracy}
        manifest.setdefault("image_set", image_set)
        if manifest != self.manifest:
            self.manifest = manifest
            self._write_text(MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def outcome_shards(self, names: Iterable[str] | None = None) -> list[Path]:
        """Outcome files of the shards `names`; without names, of all shards in a finished manifest."""
        return [
            self._shard("outcomes", name) for name in (self.manifest["shards"] if names is None else names)
        ]

    def write_shard(
        self,
        name: str,
        digest: str,
        outcomes: OutcomeTable,
        features: Mapping[str, ImageFeatures],
        set_aside: list[dict[str, Any]],
    ) -> None:
        """Write features, then outcomes. A shard that was there is no longer whole until the last moment."""
        header = {**outcomes.header, "digest": digest}
        with self.writing():
            self._shard("outcomes", name).unlink(missing_ok=True)
            write_shard(self._shard("features", name), to_feature_table(features), header)
            header["set_aside"] = set_aside
            write_shard(self._shard("outcomes", name), outcomes.to_arrow(), header)

    def write_embeddings(self, embeddings: Tensor) -> None:
        """Keep the decoder's token embeddings [vocab, hidden], in the type they come in."""
        content = save({"token_embeddings": embeddings.detach().cpu().contiguous()})
        with self.writing():
            write_atomically(self.path / EMBEDDINGS, lambda temporary: temporary.write_bytes(content))

    def read_set_aside(self) -> list[dict[str, Any]]:
        """What was set aside, with reasons."""
        with (self.path / SET_ASIDE).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def has_embeddings(self) -> bool:
        return (self.path / EMBEDDINGS).exists()

    def finish(self, shards: Mapping[str, str], set_aside: Iterable[Mapping[str, Any]]) -> None:
        """Sum up `shards` (name -> digest), list all rows set aside, and call the labelling complete."""
        counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        totals = {split: np.zeros(len(self.scales)) for split in counts}
        num_near_ties = 0
        rows = list(set_aside)
        for name in shards:
            path, split = self._shard("outcomes", name), name.rpartition("-")[0]
            rows += read_header(path)["set_aside"]
            with naming(path):
                table = pq.read_table(path, columns=["sample_id", "score", "margin"])
            num_near_ties += int((to_matrix(table, "margin", len(self.scales), str(path)) < NEAR_TIE).sum())
            scores = to_matrix(table, "score", len(self.scales), str(path))
            counts[split] += len(scores)
            totals[split] += scores.sum(axis=0, dtype=float)
        self._write_text(SET_ASIDE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if not any(counts.values()):
            reason = rows[0]["reason"] if rows else "the task has no samples"
            raise ValueError(
                f"not one sample could be labelled (the first reason in {self.path / SET_ASIDE}: {reason}): "
                "mend this and label with overwrite=true"
            )
        # No scores of the test split: this file is open to everybody, also while prompts are being tuned.
        accuracy = {
            split: (totals[split] / count).tolist()
            for split, count in counts.items()
            if count and split != HELD_OUT
        }
        self.manifest |= {
            "counts": counts,
            "accuracy": accuracy,
            "near_ties": {"below_nats": NEAR_TIE, "num_answers": num_near_ties},
            "num_set_aside": len(rows),
            "shards": dict(shards),
            "complete": True,
        }
        self._write_text(MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with self.writing():
            write_atomically(self.path / name, lambda temporary: temporary.write_text(text, encoding="utf-8"))
