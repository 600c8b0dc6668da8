"""One flipped bit in a file that is read is refused by name, made again or harmless: `make test-slow`."""

import itertools
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.labels.held_out import EvaluationLog
from experiments.labels.latency import Latency
from experiments.labels.resampled import Part
from experiments.results.run_folders import find_runs
from experiments.training.trained import load_trained
from m3_backbone.outcomes.manifest import SKIPPED_FILE, SPLITS, read_manifest
from m3_backbone.outcomes.shards import digest_file
from predictor.adaptive.model import AdaptiveM3
from predictor.training import AtomicCheckpointIO, find_whole
from tests.held_out import read_split
from tests.label_folders import open_label_folder
from tests.slow.test_kills import JOB, LABELS, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TASK = (*JOB[1:3], "allow_small=true")
EDGE = 1000  # bytes at both ends of a file: headers are there, and half of the flips
# Of the files of a kind, and what is read from them, as values that can be compared.
Kind = tuple[list[Path], Callable[[], Any]]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with everything that commands leave and read again."""
    folder = tmp_path_factory.mktemp("flips")
    timed = ("latency.num_images=4", "latency.num_rounds=1")
    finish(folder, "run", *(word for word in JOB if not word.startswith("latency")), *timed)
    finish(folder, "resample", *JOB[1:3], "num_images=null", "num_runs=2", "hydra.run.dir=other")
    finish(folder, "publish", *JOB[1:3], "predictor.max_epochs=3", "folder=model", "hydra.run.dir=other")
    layer = torch.nn.Linear(8, 8)
    AtomicCheckpointIO().save_checkpoint({"state_dict": layer.state_dict(), "epoch": 1}, folder / "best.ckpt")
    reason = {"sample_id": "a", "image_id": "b", "reason": "the image cannot be read"}
    content = "".join(json.dumps({**reason, "sample_id": str(number)}) + "\n" for number in range(9))
    rewrite_skipped(folder / LABELS, content)
    return folder


def rewrite_skipped(labels: Path, content: str) -> None:
    """Skipped samples, of which the pictures of `scenes` have none."""
    target = open_label_folder(labels)
    (labels / SKIPPED_FILE).write_text(content, encoding="utf-8")
    target.manifest["files"] |= {SKIPPED_FILE: digest_file(labels / SKIPPED_FILE)}
    target.write_manifest()


def list_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    assert paths
    return paths


def find_kinds(folder: Path) -> dict[str, Kind]:
    labels, run = folder / LABELS, folder / "run"
    (timings,) = (folder / "store/latency").rglob("*.json")
    (resampled,) = (labels / "resampled").glob("*.safetensors")
    (records,) = folder.rglob("evaluations/*/*.jsonl")
    (trained,) = (folder / "store/predictors/tiny_m3/scenes/cross_attention").glob("[!.]*")
    part_of_labels = {
        "manifest": [labels / "manifest.json"],
        "splits": [labels / "splits.parquet"],
        "outcomes": list_files(labels / "outcomes"),
        "features": list_files(labels / "features"),
        "token embeddings": [labels / "token_embeddings.safetensors"],
    }
    return {
        **{name: (paths, lambda: read_labels(labels)) for name, paths in part_of_labels.items()},
        "skipped samples": ([labels / SKIPPED_FILE], lambda: open_label_folder(labels).read_skipped()),
        "predictor": (list_files(trained), lambda: read_predictor(trained, labels)),
        "timings": ([timings], lambda: read_timings(timings)),
        "records": ([records, *list_files(records.with_suffix(".images"))], lambda: read_records(records)),
        "resampled answers": ([resampled], lambda: read_part(resampled)),
        "checkpoint": ([folder / "best.ckpt"], lambda: read_checkpoint(folder / "best.ckpt")),
        "published model": (
            [path for path in list_files(folder / "model") if path.suffix != ".md"],
            lambda: read_published(folder / "model", labels),
        ),
        "finished run": ([run / "metrics.json", run / "draws.safetensors"], lambda: read_run(run)),
    }


def read_labels(labels: Path) -> Any:
    manifest = {key: value for key, value in read_manifest(labels).items() if key != "files"}
    values: list[Any] = [manifest]
    for split in SPLITS:
        part = read_split(labels, split)
        visual = [part.inputs.visual_at(scale).tokens.tobytes() for scale in manifest["feature_scales"]]
        embeddings = part.inputs.token_embeddings.tensor.numpy().tobytes()
        outcomes = part.outcomes.to_arrow().to_pydict()
        values += [outcomes, visual, part.inputs.statistics.tobytes(), embeddings]
    return values


def read_predictor(trained: Path, labels: Path) -> Any:
    found = load_trained(trained)
    estimates = found.predictor.predict(read_split(labels, "calibration").inputs)
    hybrid = found.hybrid
    assert hybrid is not None
    return [
        *(asdict(found.record), estimates.tobytes(), found.prices.default, found.prices.points),
        *(
            hybrid.cost.tobytes(),
            hybrid.score.tobytes(),
            hybrid.price.tobytes(),
            hybrid.gain.current.tobytes(),
        ),
    ]


def read_timings(path: Path) -> Any:
    timings = Latency.read(path)
    overhead = {name: samples.tobytes() for name, samples in timings.overhead.items()}
    return [timings.job, timings.dtype, timings.vision.tobytes(), timings.answer.tobytes(), overhead]


def read_records(path: Path) -> Any:
    log = EvaluationLog(path)
    lines = log.read()
    return [lines, [log.read_images(str(line["images"])) for line in lines]]


def read_part(path: Path) -> Any:
    part = Part.read(path)
    return [part.fingerprints, part.variation, part.samples, part.score.tolist()]


def read_checkpoint(path: Path) -> Any:
    found = find_whole([path])
    assert not found or found == [path]
    return [
        {name: value.tolist() for name, value in torch.load(each)["state_dict"].items()} for each in found
    ]


def read_published(folder: Path, labels: Path) -> Any:
    model = AdaptiveM3.from_pretrained(folder)
    names = ("name", "dtype", "attn_implementation", "max_new_tokens", "batch_size", "image_batch_size")
    arguments = {name: getattr(model.backbone, name) for name in names}
    estimates = model.predictor.predict(read_split(labels, "calibration").inputs)
    return [arguments, estimates.tobytes(), model.prices.default, model.prices.points]


def read_run(folder: Path) -> Any:
    (run,) = find_runs([folder])
    return [dict(run.metrics), run.settings, {name: drawn.tobytes() for name, drawn in run.resamples.items()}]


KINDS = {
    **{"manifest": 80, "splits": 60, "outcomes": 100, "features": 100, "token embeddings": 60},
    **{"skipped samples": 60, "predictor": 120, "timings": 80, "records": 80, "resampled answers": 80},
    **{"checkpoint": 80, "published model": 100, "finished run": 120},
}
# Time of the last change of a file: digests are kept as long as it stays.
_CLOCK = itertools.count(10**18, 10**9)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    moment = next(_CLOCK)
    os.utime(path, ns=(moment, moment))


@pytest.mark.parametrize("kind", KINDS)
def test_flips(store, kind, caplog):
    caplog.set_level(logging.WARNING)
    paths, read = find_kinds(store)[kind]
    expected = read()
    rng = random.Random(kind)
    ends: Counter[str] = Counter()
    silent = []
    for _ in range(KINDS[kind]):
        path = rng.choice(paths)
        whole = path.read_bytes()
        place = rng.randrange(len(whole))
        if rng.random() < 0.5:
            place = rng.choice(
                [rng.randrange(min(EDGE, len(whole))), -1 - rng.randrange(min(EDGE, len(whole)))]
            )
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        write(path, bytes(content))
        caplog.clear()
        try:
            if read() == expected:
                ends["no effect"] += 1
            elif str(path) in caplog.text:
                ends["said"] += 1
            else:
                silent.append((path.name, place % len(whole), bytes(whole[place - 20 : place + 20])))
        except (ValueError, OSError) as error:
            ends["refused"] += 1
            assert str(path) in str(error), (path.name, place, error)
            assert len(str(error).splitlines()) == 1, error
        finally:
            write(path, whole)
    assert not silent, f"{len(silent)} of {KINDS[kind]} changed silently: {silent[:3]}"
    assert ends["refused"] + ends["said"] > ends["no effect"]
    assert read() == expected
