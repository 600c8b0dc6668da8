"""Writing of a label folder: shards are complete or absent, and one process writes at a time.

`m3_backbone.outcomes.manifest` describes the contents of the folder.
"""

import json
import logging
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import save
from torch import Tensor

from experiments.labels.blocks import Answered, Limits, Plan
from experiments.labels.division import NEAR_TIE, divide_shards, get_skipped, read_ids
from experiments.labels.files import RESAMPLED, ShardFolder, hold
from experiments.tasks.base import describe_differences
from m3_backbone.features import ImageFeatures
from m3_backbone.outcomes.manifest import (
    EMBEDDINGS,
    MANIFEST,
    OLD_SKIPPED_FILE,
    SKIPPED_FILE,
    SPLITS_FILE,
    find_shard,
    read_manifest,
    seal,
    write_splits,
)
from m3_backbone.outcomes.options import Options
from m3_backbone.outcomes.shards import (
    SCHEMA_VERSION,
    digest_file,
    is_intact,
    naming,
    read_content,
    read_header,
    to_feature_table,
    write_bytes,
    write_shard,
    write_text,
)
from m3_backbone.outcomes.table import HELD_OUT, OutcomeTable

log = logging.getLogger(__name__)

_OLD_LATENCY = "latency.json"  # earlier versions timed answers while labelling
SHARD_KINDS = ("features", "outcomes")


@dataclass(frozen=True)
class KeptInputs:
    """What labelling keeps for predictors, besides the answers.

    `feature_scales` are the scales whose visual tokens are kept; None: `Backbone.feature_scales`.
    `decoder_state` keeps the state of the decoder after image and question at the coarsest scale.
    `thumbnail_size` keeps each image resized to a square with sides of that many pixels. `self_asking` is the
    prompt in which the model is asked at the coarsest scale whether it can answer, with `{question}` for the
    question (`m3_backbone.asking`); None: it is not asked.
    """

    feature_scales: tuple[int, ...] | None = None
    decoder_state: bool = False
    thumbnail_size: int | None = None
    self_asking: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "feature_scales": list(self.feature_scales or ())}


class LabelFolder(ShardFolder):
    """Writer of a label folder, which refuses labels of another backbone or other data.

    A shard is a file of features and a file of outcomes, written in this order. The metadata of the outcomes
    hold the digest of the features and the skipped samples; a shard without outcomes does not count and is
    made again. `manifest["shards"]` lists the shards of finished labellings; an unfinished labelling adds
    shards that are not listed yet.

    Args:
        data: description of the data (`tasks.base.Task.content`), to name what differs.
        division: how the images are divided into splits; a new division answers nothing again.
        options: names and costs of the options of imported outcomes; None for those of a backbone.
        command: the command that resumes after an error, for messages.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprints: Mapping[str, str],
        scales: tuple[int, ...],
        kept: KeptInputs,
        data: Mapping[str, Any] | None = None,
        division: Mapping[str, Any] | None = None,
        options: Options | None = None,
        command: str = "the same label command",
    ) -> None:
        super().__init__(Path(path), command)
        self.fingerprints = dict(fingerprints)
        self.scales = scales
        self.kept = kept
        self.data = json.loads(json.dumps(data or {}))
        self.division = json.loads(json.dumps(division or {}))
        self.options = options
        self.manifest: dict[str, Any] = {}
        # The folder to which `overwrite` has moved the earlier labels.
        self.replaced: Path | None = None

    def open(self) -> bool:
        """Read the manifest; returns whether there is one. Raises ValueError as `refuse_other` does."""
        if not (self.path / MANIFEST).exists():
            return False
        manifest = read_manifest(self.path)
        self.refuse_other(manifest)
        self.manifest = manifest
        return True

    def refuse_other(self, manifest: Mapping[str, Any], ignored: Container[str] = ()) -> None:
        """Raise ValueError, naming the differences, for the manifest of another backbone or other data."""
        own = {**self.fingerprints, "scales": list(self.scales), **self.kept.to_json()}
        stored = {
            **manifest["fingerprints"],
            "scales": manifest.get("scales"),
            **{key: manifest.get(key, default) for key, default in asdict(KeptInputs()).items()},
        }
        differing = [
            key for key in {**stored, **own} if stored.get(key) != own.get(key) and key not in ignored
        ]
        if not differing:
            return
        details = [
            f"{key} ({stored.get(key)} there, {own.get(key)} here)" for key in differing if key != "data"
        ]
        way_out = ""
        if "data" in differing:
            details.append(f"data ({describe_differences(manifest.get('data', {}), self.data)})")
            way_out = "give these data another name with task.name=NAME, "
        raise ValueError(
            f"the labels in {self.path} were made with other {', '.join(details)}: {way_out}label into "
            "another folder with paths.labels=FOLDER, or replace these with overwrite=true, which keeps them "
            "beside the new ones"
        )

    @property
    def shard_size(self) -> int:
        """Samples per shard, as set when the labelling was begun."""
        return self.manifest["shard_size"]

    def has(self, limit: Limits) -> bool:
        """Whether every sample within `limit` is labelled, in undamaged files. Reads the manifest."""
        return self._is_whole_labelling(limit, is_complete=True) and all(
            is_intact(self.path / name, digest) for name, digest in self.manifest["files"].items()
        )

    def is_begun(self, limit: Limits) -> bool:
        """Whether an unfinished labelling within `limit` was begun here. Reads the manifest."""
        return self._is_whole_labelling(limit, is_complete=False)

    def _is_whole_labelling(self, limit: Limits, *, is_complete: bool) -> bool:
        """Whether the manifest has this limit and division, and all listed shards are undamaged."""
        return bool(
            self.open()
            and self.manifest["complete"] == is_complete
            and self.manifest["limit"] == dict(limit)
            and self.manifest["division"] == self.division
            and all(self.is_whole(name, shard) for name, shard in self.manifest["shards"].items())
        )

    def is_whole(self, name: str, shard: Mapping[str, str]) -> bool:
        """Whether both files of a shard exist with the digests in the manifest; logs damaged ones."""
        for kind in SHARD_KINDS:
            path = find_shard(self.path, kind, name)
            if not is_intact(path, shard[kind]):
                if path.exists():
                    log.warning("%s is damaged", path)
                return False
        return True

    def locked(self, part: str = "", timeout: float | None = 0) -> AbstractContextManager[None]:
        """Hold the lock of the folder, or of one part of the work on it (`files.hold`)."""
        return self.holding(hold(self.path, part, timeout))

    def begin(
        self,
        *,
        names: Mapping[str, str],
        limit: Limits,
        shard_size: int,
        overwrite: bool = False,
    ) -> None:
        """Write the manifest of an unfinished labelling, unless it was begun before with the same limits.

        It lists the undamaged shards of earlier labellings, finished or not.
        """
        shards: dict[str, Any] = {}
        files: dict[str, str] = {}
        if not overwrite and self.open():
            if self.is_begun(limit):
                return
            shard_size = self.manifest["shard_size"]
            listed = self.manifest["shards"].items()
            shards = {name: shard for name, shard in listed if self.is_whole(name, shard)}
            # The unfinished labelling may have had other limits or another division.
            shards |= self._find_unlisted(shards)
            known = self.manifest.get("files", {})
            files = {name: digest for name, digest in known.items() if name == EMBEDDINGS}
        else:
            self._move_aside()
        former = {"former": self.manifest["former"]} if "former" in self.manifest else {}
        options = {} if self.options is None else {"options": asdict(self.options)}
        self.manifest = {
            "schema": SCHEMA_VERSION,
            **names,
            "fingerprints": self.fingerprints,
            "data": self.data,
            "division": self.division,
            "scales": list(self.scales),
            **options,
            # Inputs that are not kept have no key.
            **{key: value for key, value in self.kept.to_json().items() if value not in (None, False)},
            "limit": dict(limit),
            "shard_size": shard_size,
            **former,
            "shards": shards,
            "files": files,
            "complete": False,
        }
        with self.writing():
            for kind in SHARD_KINDS:
                (self.path / kind).mkdir(exist_ok=True)
        self.write_manifest()

    def _find_unlisted(self, listed: Container[str]) -> dict[str, Any]:
        """Return the undamaged shards of an unfinished labelling that are not in `listed`."""
        unlisted = {}
        for path in sorted((self.path / "outcomes").glob("*.parquet")):
            if path.stem not in listed and (shard := self.describe_shard(path.stem)) is not None:
                unlisted[path.stem] = shard
        return unlisted

    def describe_shard(self, name: str) -> dict[str, str] | None:
        """Return the manifest entry of a shard: digests of samples and files. None if missing or damaged."""
        path = find_shard(self.path, "outcomes", name)
        try:
            header = read_header(path)
            if header["fingerprints"] != self.fingerprints or header["scales"] != list(self.scales):
                return None
            if not is_intact(find_shard(self.path, "features", name), header["features"]):
                return None
            with naming(path):
                pq.ParquetFile(path, page_checksum_verification=True).read()
            return {
                "samples": header["digest"],
                "outcomes": digest_file(path),
                "features": header["features"],
            }
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:
            log.warning("shard %s is made again: %s", name, error)
            return None

    def _move_aside(self) -> None:
        """Move the labels in this folder, if any, into a folder beside it."""
        shards = [path for kind in SHARD_KINDS for path in sorted((self.path / kind).glob("*.parquet"))]
        answers = sorted(self.path.glob(f"{RESAMPLED}*/*.safetensors"))
        # Records of test evaluations, locks and unknown files stay. The manifest is moved last, so that an
        # interrupted move is noticed.
        names = (SKIPPED_FILE, OLD_SKIPPED_FILE, EMBEDDINGS, SPLITS_FILE, _OLD_LATENCY, MANIFEST)
        self.replaced = self.move_aside([*shards, *answers, *(self.path / name for name in names)])
        if self.replaced is not None:
            log.warning("the former labels of %s are kept in %s", self.path, self.replaced)

    def read_answered(self, retried: Container[str] = ()) -> Answered:
        """Return the samples in the shards of the manifest, without skipped samples of images `retried`."""
        samples: dict[str, set[str]] = {}
        for name in self.manifest["shards"]:
            for image_id, sample_id in read_ids(find_shard(self.path, "outcomes", name)):
                samples.setdefault(image_id, set()).add(sample_id)
            for row in get_skipped(self._read_header(name)):
                if row["image_id"] not in retried:
                    samples.setdefault(row["image_id"], set()).add(row["sample_id"])
        return Answered(
            {image_id: frozenset(ids) for image_id, ids in samples.items()}, self.manifest["shards"]
        )

    def list_unreadable(self) -> list[str]:
        """Return the ids of images that could not be read when labelled, and are in no other shard."""
        unreadable: dict[str, None] = {}
        for name in self.manifest["shards"]:
            unreadable |= dict.fromkeys(self._read_header(name).get("unreadable", ()))
        if not unreadable:
            return []
        answered = {
            image_id
            for name in self.manifest["shards"]
            for image_id, _ in read_ids(find_shard(self.path, "outcomes", name))
        }
        return [image_id for image_id in unreadable if image_id not in answered]

    def _read_header(self, name: str) -> dict[str, Any]:
        return read_header(find_shard(self.path, "outcomes", name))

    def holds(self, name: str, digest: str) -> bool:
        """Whether the shard of a block exists, undamaged, and has the samples of this digest."""
        shard = self.describe_shard(name)
        return shard is not None and shard["samples"] == digest

    def write_shard(
        self,
        name: str,
        digest: str,
        outcomes: OutcomeTable,
        features: Mapping[str, ImageFeatures],
        skipped: list[dict[str, Any]],
        unreadable: list[str],
    ) -> None:
        """Write features, then outcomes. An existing shard counts as missing until both are written."""
        feature_file, outcome_file = (find_shard(self.path, kind, name) for kind in SHARD_KINDS)
        with self.writing():
            outcome_file.unlink(missing_ok=True)
            write_shard(feature_file, to_feature_table(features), {**outcomes.header, "digest": digest})
            header = {
                **outcomes.header,
                "digest": digest,
                "features": digest_file(feature_file),
                "skipped": skipped,
                "unreadable": unreadable,
            }
            write_shard(outcome_file, outcomes.to_arrow(), header)

    def write_embeddings(self, embeddings: Tensor) -> None:
        """Write the decoder's token embeddings `[vocab, hidden]`, in their own dtype."""
        with self.writing():
            write_bytes(
                self.path / EMBEDDINGS, save({"token_embeddings": embeddings.detach().cpu().contiguous()})
            )

    def has_embeddings(self) -> bool:
        """Whether the token embeddings exist, with the digest in the manifest if it has one."""
        path, digest = self.path / EMBEDDINGS, self.manifest.get("files", {}).get(EMBEDDINGS)
        return path.exists() if digest is None else is_intact(path, digest)

    @property
    def skipped_file(self) -> Path:
        """File of the skipped samples, under the name that the manifest has for it."""
        is_old = OLD_SKIPPED_FILE in self.manifest.get("files", {})
        return self.path / (OLD_SKIPPED_FILE if is_old else SKIPPED_FILE)

    def read_skipped(self) -> list[dict[str, Any]]:
        """Read the skipped samples with their reasons, checked against the manifest that was read."""
        path = self.skipped_file
        content = read_content(path, self.manifest["files"].get(path.name))
        return [json.loads(line) for line in content.splitlines()]

    def finish(self, work: Plan) -> None:
        """List the shards of the planned blocks, divide the images, and mark the labels as complete.

        Raises ValueError if not one sample could be answered.
        """
        shards = dict(self.manifest["shards"])
        for name in work.digests:
            shard = self.describe_shard(name)
            assert shard is not None
            shards[name] = shard
        division = divide_shards(self.path, shards, work, self.scales)
        rows = division.skipped
        self._write_text(SKIPPED_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if not any(division.counts.values()):
            reason = rows[0]["reason"] if rows else "the task has no samples"
            raise ValueError(
                f"not one sample could be labelled (the first reason in {self.path / SKIPPED_FILE}: {reason})"
                ": fix this and run the same command again"
            )
        with self.writing():
            write_splits(self.path, division.images)
        self.manifest |= {
            "counts": division.counts,
            "num_clusters": division.num_clusters,
            "splits": division.digests,
            # No scores of the test split: anyone may read this file, also while tuning prompts.
            "accuracy": {
                split: means
                for split, means in division.accuracy.items()
                if division.counts[split] and split != HELD_OUT
            },
            "near_ties": {"below_nats": NEAR_TIE, "num_answers": division.num_near_ties},
            "num_skipped": len(rows),
            "shards": shards,
            "files": {
                name: digest_file(self.path / name) for name in (SPLITS_FILE, EMBEDDINGS, SKIPPED_FILE)
            },
            "complete": True,
        }
        self.write_manifest()
        (self.path / OLD_SKIPPED_FILE).unlink(missing_ok=True)

    def write_manifest(self) -> None:
        """Write the manifest."""
        self._write_text(MANIFEST, json.dumps(seal(self.manifest), indent=2) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with self.writing():
            write_text(self.path / name, text)
