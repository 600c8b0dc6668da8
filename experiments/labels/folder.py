"""Label folder as labelling writes it: shards are whole or absent, and there is one writer at a time.

What lies in it is described in `m3_backbone.outcomes.manifest`.
"""

import json
import logging
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import save
from torch import Tensor

from experiments.labels.blocks import Answered, Limits, Plan
from experiments.labels.division import NEAR_TIE, divide_shards, read_ids
from experiments.labels.files import RESAMPLED, ShardFolder, hold
from experiments.tasks.base import describe_differences
from m3_backbone.features import ImageFeatures
from m3_backbone.outcomes.manifest import (
    EMBEDDINGS,
    MANIFEST,
    SET_ASIDE,
    SPLITS_FILE,
    find_shard,
    read_manifest,
    seal,
    write_splits,
)
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


class LabelFolder(ShardFolder):
    """A label folder being written, and the check that it was made by the same backbone and data.

    A shard is a file of features and then one of outcomes, which carries in its metadata the digest of the
    features and the samples that were set aside, and makes the shard count: after a kill in between, both are
    made again. The manifest lists the shards of finished labellings, `manifest["shards"]`, while an
    unfinished one adds to them.

    Args:
        data: what the data are made of (`tasks.base.Task.content`), to name what differs.
        division: how the images are divided into splits. It may change without anything being answered again.
        command: the command that goes on after an error, for messages.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprints: Mapping[str, str],
        scales: tuple[int, ...],
        feature_scales: tuple[int, ...],
        data: Mapping[str, Any] | None = None,
        division: Mapping[str, Any] | None = None,
        command: str = "the same label command",
    ) -> None:
        super().__init__(Path(path), command)
        self.fingerprints = dict(fingerprints)
        self.scales = scales
        self.feature_scales = feature_scales
        self.data = json.loads(json.dumps(data or {}))
        self.division = json.loads(json.dumps(division or {}))
        self.manifest: dict[str, Any] = {}
        # The folder to which `overwrite` has moved the earlier labels.
        self.replaced: Path | None = None

    def open(self) -> bool:
        """Read the manifest, if there is one; refuse one that something else made."""
        if not (self.path / MANIFEST).exists():
            return False
        manifest = read_manifest(self.path)
        self.refuse_other(manifest)
        self.manifest = manifest
        return True

    def refuse_other(self, manifest: Mapping[str, Any], ignored: Container[str] = ()) -> None:
        """Raise ValueError, naming what differs, for the manifest of labels that something else made."""
        kept = {"scales": list(self.scales), "feature_scales": list(self.feature_scales)}
        here = {**self.fingerprints, **kept}
        there = {**manifest["fingerprints"], **{key: manifest.get(key) for key in kept}}
        differing = [
            key for key in {**there, **here} if there.get(key) != here.get(key) and key not in ignored
        ]
        if not differing:
            return
        details = [
            f"{key} ({there.get(key)} there, {here.get(key)} here)" for key in differing if key != "data"
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
        """Samples per shard, as the labelling was begun."""
        return self.manifest["shard_size"]

    def has(self, limit: Limits) -> bool:
        """Whether every sample within `limit` is there, in files that are whole. Reads the manifest."""
        return self._is_whole_labelling(limit, is_complete=True) and all(
            is_intact(self.path / name, digest) for name, digest in self.manifest["files"].items()
        )

    def is_begun(self, limit: Limits) -> bool:
        """Whether an unfinished labelling within `limit` was begun here. Reads the manifest."""
        return self._is_whole_labelling(limit, is_complete=False)

    def _is_whole_labelling(self, limit: Limits, *, is_complete: bool) -> bool:
        """Whether the manifest is that of a labelling of this division, with all listed shards whole."""
        return bool(
            self.open()
            and self.manifest["complete"] == is_complete
            and self.manifest["limit"] == dict(limit)
            and self.manifest["division"] == self.division
            and all(self.is_whole(name, shard) for name, shard in self.manifest["shards"].items())
        )

    def is_whole(self, name: str, shard: Mapping[str, str]) -> bool:
        """Whether both files of a shard are there, with the digests that the manifest gives them."""
        for kind in SHARD_KINDS:
            path = find_shard(self.path, kind, name)
            if not is_intact(path, shard[kind]):
                if path.exists():
                    log.warning("%s is damaged", path)
                return False
        return True

    def locked(self, part: str = "", timeout: float | None = 0) -> AbstractContextManager[None]:
        """Hold the folder, or one part of the work on it, against other runs (`files.hold`)."""
        return self.holding(hold(self.path, part, timeout))

    def begin(
        self,
        *,
        names: Mapping[str, str],
        limit: Limits,
        shard_size: int,
        overwrite: bool = False,
    ) -> None:
        """Write the manifest of an unfinished labelling, unless this very labelling was begun before.

        Shards of earlier labellings, finished or not, are listed in it as far as they are whole.
        """
        shards: dict[str, Any] = {}
        files: dict[str, str] = {}
        if not overwrite and self.open():
            if self.is_begun(limit):
                return
            shard_size = self.manifest["shard_size"]
            listed = self.manifest["shards"].items()
            shards = {name: shard for name, shard in listed if self.is_whole(name, shard)}
            # What was unfinished may have been begun with other limits, or another division.
            shards |= self._find_unlisted(shards)
            known = self.manifest.get("files", {})
            files = {name: digest for name, digest in known.items() if name == EMBEDDINGS}
        else:
            self._move_aside()
        former = {"former": self.manifest["former"]} if "former" in self.manifest else {}
        self.manifest = {
            "schema": SCHEMA_VERSION,
            **names,
            "fingerprints": self.fingerprints,
            "data": self.data,
            "division": self.division,
            "scales": list(self.scales),
            "feature_scales": list(self.feature_scales),
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
        """Whole shards that an unfinished labelling has left, without those that are listed."""
        unlisted = {}
        for path in sorted((self.path / "outcomes").glob("*.parquet")):
            if path.stem not in listed and (shard := self.describe_shard(path.stem)) is not None:
                unlisted[path.stem] = shard
        return unlisted

    def describe_shard(self, name: str) -> dict[str, str] | None:
        """Entry of the manifest for a shard: digests of its samples and files. None if it is not whole."""
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
        """Move what labelling wrote here, if there is anything, into a folder beside this one."""
        shards = [path for kind in SHARD_KINDS for path in sorted((self.path / kind).glob("*.parquet"))]
        answers = sorted((self.path / RESAMPLED).glob("*.safetensors"))
        # Records of test evaluations, locks and what is not ours stay; the manifest comes last, so that a
        # kill shows.
        names = (SET_ASIDE, EMBEDDINGS, SPLITS_FILE, _OLD_LATENCY, MANIFEST)
        self.replaced = self.move_aside([*shards, *answers, *(self.path / name for name in names)])
        if self.replaced is not None:
            log.warning("the labels that were in %s are kept in %s", self.path, self.replaced)

    def read_answered(self, retried: Container[str] = ()) -> Answered:
        """Samples in the shards of the manifest, without skipped samples of the images `retried`."""
        samples: dict[str, set[str]] = {}
        for name in self.manifest["shards"]:
            for image_id, sample_id in read_ids(find_shard(self.path, "outcomes", name)):
                samples.setdefault(image_id, set()).add(sample_id)
            for row in self._read_header(name)["set_aside"]:
                if row["image_id"] not in retried:
                    samples.setdefault(row["image_id"], set()).add(row["sample_id"])
        return Answered(
            {image_id: frozenset(ids) for image_id, ids in samples.items()}, self.manifest["shards"]
        )

    def list_unreadable(self) -> list[str]:
        """Ids of images that could not be read when their shard was made, and that no other shard has."""
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
        """Whether the shard of a block is there, whole, and made from the samples of this digest."""
        shard = self.describe_shard(name)
        return shard is not None and shard["samples"] == digest

    def write_shard(
        self,
        name: str,
        digest: str,
        outcomes: OutcomeTable,
        features: Mapping[str, ImageFeatures],
        set_aside: list[dict[str, Any]],
        unreadable: list[str],
    ) -> None:
        """Write features, then outcomes. A shard that was there is no longer whole until the last moment."""
        feature_file, outcome_file = (find_shard(self.path, kind, name) for kind in SHARD_KINDS)
        with self.writing():
            outcome_file.unlink(missing_ok=True)
            write_shard(feature_file, to_feature_table(features), {**outcomes.header, "digest": digest})
            header = {
                **outcomes.header,
                "digest": digest,
                "features": digest_file(feature_file),
                "set_aside": set_aside,
                "unreadable": unreadable,
            }
            write_shard(outcome_file, outcomes.to_arrow(), header)

    def write_embeddings(self, embeddings: Tensor) -> None:
        """Keep the decoder's token embeddings [vocab, hidden], in the type they come in."""
        with self.writing():
            write_bytes(
                self.path / EMBEDDINGS, save({"token_embeddings": embeddings.detach().cpu().contiguous()})
            )

    def has_embeddings(self) -> bool:
        """Whether the token embeddings are there, and whole as far as the manifest knows."""
        path, digest = self.path / EMBEDDINGS, self.manifest.get("files", {}).get(EMBEDDINGS)
        return path.exists() if digest is None else is_intact(path, digest)

    def read_set_aside(self) -> list[dict[str, Any]]:
        """The skipped samples with their reasons. Takes the digest from the manifest that was read."""
        content = read_content(self.path / SET_ASIDE, self.manifest["files"].get(SET_ASIDE))
        return [json.loads(line) for line in content.splitlines()]

    def finish(self, work: Plan) -> None:
        """List the shards of the planned blocks, divide the images, and call the labelling complete."""
        shards = dict(self.manifest["shards"])
        for name in work.digests:
            shard = self.describe_shard(name)
            assert shard is not None
            shards[name] = shard
        division = divide_shards(self.path, shards, work, self.scales)
        rows = division.set_aside
        self._write_text(SET_ASIDE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if not any(division.counts.values()):
            reason = rows[0]["reason"] if rows else "the task has no samples"
            raise ValueError(
                f"not one sample could be labelled (the first reason in {self.path / SET_ASIDE}: {reason}): "
                "mend this and give the same command again"
            )
        with self.writing():
            write_splits(self.path, division.images)
        self.manifest |= {
            "counts": division.counts,
            "splits": division.digests,
            # No scores of the test split: this file is open to everybody, also while prompts are being tuned.
            "accuracy": {
                split: means
                for split, means in division.accuracy.items()
                if division.counts[split] and split != HELD_OUT
            },
            "near_ties": {"below_nats": NEAR_TIE, "num_answers": division.num_near_ties},
            "num_set_aside": len(rows),
            "shards": shards,
            "files": {name: digest_file(self.path / name) for name in (SPLITS_FILE, EMBEDDINGS, SET_ASIDE)},
            "complete": True,
        }
        self.write_manifest()

    def write_manifest(self) -> None:
        """Write the manifest."""
        self._write_text(MANIFEST, json.dumps(seal(self.manifest), indent=2) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with self.writing():
            write_text(self.path / name, text)
