"""Labelling a task with a real, small checkpoint: the right rows, whatever happens on the way."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image

from experiments.labels import reading_ahead
from experiments.labels.folder import KeptInputs, LabelFolder
from experiments.labels.label_summary import LabelSummary
from experiments.labels.labelling import label
from experiments.tasks.base import SPLITS, Sample, Split, Task
from experiments.tasks.llava_jsonl import LlavaJsonl
from experiments.tasks.scoring import score
from m3_backbone.asking import ask_whether, count_asking_flops
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.costs import vision_flops
from m3_backbone.outcomes.manifest import unseal
from tests.experiments.labels.test_native_backbone import NativeBackbone
from tests.experiments.tasks.question_files import make_task
from tests.held_out import read_outcomes, read_split
from tests.paths import FIXTURES

CHECKPOINT = FIXTURES / "official_m3" / "llava15" / "checkpoint"
NAMES = {"train": ("a", "b", "c", "d"), "calibration": ("e",), "test": ("f",)}
LIMIT = {"train": 3}


def make_backbone(checkpoint: Path = CHECKPOINT, **arguments: Any) -> LlavaBackbone:
    return LlavaBackbone(checkpoint=checkpoint, **{"name": "small", "max_new_tokens": 2, **arguments})


@pytest.fixture(scope="module")
def backbone() -> LlavaBackbone:
    return make_backbone()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LlavaJsonl:
    """Five questions on each of a few noisy pictures."""
    folder = tmp_path_factory.mktemp("task")
    noise = np.random.default_rng(0).integers(0, 256, (6, 30, 40, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    for pixels, name in zip(noise, "abcdef", strict=True):
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    return make_task(
        folder,
        [
            {
                "question_id": f"{name}{turn}",
                "image": f"{name}.png",
                "text": f"What is {'very ' * turn}strange in picture {name}?",
                "references": ["a cat", "cats"][: 1 + turn % 2],
                "category": f"kind {turn % 2}",
                "split": split,
            }
            for split, names in NAMES.items()
            for name in names
            for turn in range(5)
        ],
    )


@pytest.fixture(scope="module")
def undisturbed(task: LlavaJsonl, backbone: LlavaBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of all but one of the pictures, two pictures to a shard."""
    folder = tmp_path_factory.mktemp("undisturbed") / "labels"
    label_some(task, backbone, folder)
    return folder


def label_some(task: Task, backbone: LlavaBackbone, folder: Path, **arguments: Any) -> LabelSummary:
    settings: dict[str, Any] = {"limit": LIMIT, "shard_size": 10, "num_workers": 0, "images_per_batch": 1}
    return label(task=task, backbone=backbone, folder=folder, **(settings | arguments))


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "labels")


@contextlib.contextmanager
def kept_waiting(task, backbone, folder):
    """Another process holds the folder: a labelling into it waits for the whole block, and then ends."""
    (folder / ".owner").write_text("process 1234 on somewhere")
    other = FileLock(folder / ".lock", thread_local=False)
    other.acquire()
    waiting = threading.Thread(target=label_some, args=(task, backbone, folder))
    waiting.start()
    waiting.join(1.5)  # longer than it waits without a word
    assert waiting.is_alive()
    yield
    other.release()
    waiting.join(60)


def assert_same_labels(first: Path, second: Path) -> None:
    for split in SPLITS:
        ours, theirs = read_split(first, split), read_split(second, split)
        assert ours.outcomes.to_arrow().equals(theirs.outcomes.to_arrow())
        assert ours.inputs.visual.keys() == theirs.inputs.visual.keys()
        for scale, visual in ours.inputs.visual.items():
            assert np.array_equal(visual.tokens, theirs.inputs.visual[scale].tokens)
        assert np.array_equal(ours.inputs.statistics, theirs.inputs.statistics)
        assert torch.equal(ours.inputs.token_embeddings.tensor, theirs.inputs.token_embeddings.tensor)
    assert (first / "skipped.jsonl").read_text() == (second / "skipped.jsonl").read_text()


def test_rows_are_what_the_backbone_answers_one_by_one(undisturbed, task, backbone):
    """Every column, each question asked alone on an image encoded alone."""
    labels = read_split(undisturbed, "test")
    samples = {sample.sample_id: sample for sample in task.samples("test")}
    assert labels.outcomes.scales == backbone.scales
    for row in range(len(labels)):
        sample = samples[labels.outcomes.sample_id[row]]
        picture = task.image(sample.image_id)
        image = backbone.encode([picture])[0]
        assert labels.outcomes.references[row] == list(sample.references)
        assert labels.outcomes.attributes[row] == dict(sample.attributes)
        assert labels.outcomes.kind[row] == sample.attributes["kind"]
        assert labels.outcomes.question[row] == sample.question
        assert labels.outcomes.question_ids[row].tolist() == backbone.question_ids(sample.question)
        for column, scale in enumerate(backbone.scales):
            answer = backbone.answer([image], [sample.question], scale, references=[sample.references])[0]
            assert labels.outcomes.answer[row][column] == answer.text
            assert labels.outcomes.score[row, column] == score(sample.metric, answer.text, sample.references)
            assert labels.outcomes.nll[row, column] == pytest.approx(answer.nll, abs=1e-4)
            assert labels.outcomes.reference_tokens[row, column] == answer.reference_tokens
            assert labels.outcomes.confidence[row, column] == pytest.approx(answer.confidence, abs=1e-4)
            assert labels.outcomes.margin[row, column] == pytest.approx(answer.margin, abs=1e-4)
            num_visual = len(backbone.visual_tokens([image], scale)[0])
            assert labels.outcomes.visual_tokens[row, column] == num_visual
            flops = backbone.prefill_flops(picture.size, sample.question, scale)
            assert labels.outcomes.prefill_flops[row, column] == flops
            assert labels.outcomes.vision_flops is not None
            assert labels.outcomes.vision_flops[row, column] == vision_flops(backbone.checkpoint.config)
        image_row = labels.inputs.image_row[row]
        assert list(labels.inputs.visual) == [1, 9, 36]
        for scale, visual in labels.inputs.visual.items():
            alone = backbone.visual_tokens([image], scale)[0].half().numpy()
            assert np.allclose(visual.tokens[image_row], alone, atol=2e-3)
        statistics = backbone.compute_features([image], ())[0].statistics
        assert labels.inputs.statistic_names == tuple(statistics)
        assert np.allclose(labels.inputs.statistics[image_row], list(statistics.values()), rtol=1e-4)
    assert torch.equal(labels.inputs.token_embeddings.tensor, backbone.token_embeddings().cpu())


@pytest.mark.long
def test_states_of_the_decoder_are_kept_if_asked_and_take_no_further_pass(
    undisturbed, task, backbone, tmp_path
):
    plain, with_states = make_backbone(), make_backbone()
    label_some(task, plain, tmp_path / "plain")
    folder = tmp_path / "states"
    label_some(task, with_states, folder, kept=KeptInputs(decoder_state=True))
    assert with_states.work == plain.work
    for split in SPLITS:
        ours, theirs = read_split(folder, split), read_split(undisturbed, split)
        assert theirs.inputs.decoder_state is None and theirs.outcomes.decoder_state is None
        bare = dataclasses.replace(ours.outcomes, decoder_state=None, first_probability=None)
        assert bare.to_arrow().equals(theirs.outcomes.to_arrow())
        asked = {sample.sample_id: sample for sample in task.samples(split)}
        samples = [asked[sample_id] for sample_id in ours.outcomes.sample_id]
        encoded = backbone.encode([task.image(sample.image_id) for sample in samples])
        states = backbone.prefill(encoded, [sample.question for sample in samples], 1).states
        assert ours.inputs.decoder_state is not None and ours.inputs.first_probability is not None
        assert ours.inputs.decoder_state.dtype == np.float16
        hidden = torch.stack([state.hidden for state in states]).numpy()
        np.testing.assert_allclose(ours.inputs.decoder_state, hidden, atol=5e-3, rtol=1e-3)
        probability = [state.probability for state in states]
        np.testing.assert_allclose(ours.inputs.first_probability, probability, rtol=1e-3)
        assert (ours.inputs.first_probability >= ours.outcomes.confidence[:, 0] * (1 - 1e-5)).all()
    assert json.loads((folder / "manifest.json").read_text())["decoder_state"] is True
    assert "decoder_state" not in json.loads((undisturbed / "manifest.json").read_text())
    with pytest.raises(ValueError, match=r"decoder_state \(True there, False here\)"):
        label_some(task, backbone, folder)
    with pytest.raises(ValueError, match=r"decoder_state \(False there, True here\)"):
        label_some(task, backbone, undisturbed, kept=KeptInputs(decoder_state=True))
    with pytest.raises(ValueError, match="native gives no states of its decoder: set decoder_state=false"):
        label_some(task, NativeBackbone(), tmp_path / "none", kept=KeptInputs(decoder_state=True))  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_the_model_is_asked_whether_it_can_answer_if_wanted(undisturbed, task, backbone, tmp_path):
    prompt, folder = "Can you see it: {question}", tmp_path / "asked"
    label_some(task, backbone, folder, kept=KeptInputs(self_asking=prompt))
    ours, theirs = read_split(folder, "train"), read_split(undisturbed, "train")
    assert theirs.inputs.yes_log_odds is None and theirs.inputs.asking_prompt is None
    bare = dataclasses.replace(ours.outcomes, yes_log_odds=None, asking_flops=None)
    assert bare.to_arrow().equals(theirs.outcomes.to_arrow())
    encoded = backbone.encode([task.image(image_id) for image_id in ours.outcomes.image_id])
    log_odds = ask_whether(backbone, encoded, ours.inputs.question, prompt)
    assert ours.inputs.yes_log_odds is not None
    np.testing.assert_allclose(ours.inputs.yes_log_odds, log_odds, atol=1e-4)
    flops = [count_asking_flops(backbone, (40, 30), text, prompt) for text in ours.inputs.question]
    assert ours.inputs.asking_flops is not None and ours.inputs.asking_flops.tolist() == flops
    assert ours.inputs.asking_prompt == prompt
    with pytest.raises(ValueError, match=r"self_asking \(Can you see it: {question} there, None here\)"):
        label_some(task, backbone, folder)
    with pytest.raises(ValueError, match=r"self_asking_prompt=Really: write \{question\}"):
        label_some(task, backbone, tmp_path / "none", kept=KeptInputs(self_asking="Really"))


def test_every_sample_within_the_limits_has_one_row(undisturbed, task):
    for split in SPLITS:
        samples = list(task.samples(split))
        images = list(dict.fromkeys(sample.image_id for sample in samples))[: LIMIT.get(split)]
        wanted = [sample.sample_id for sample in samples if sample.image_id in images]
        assert read_outcomes(undisturbed, split).sample_id.tolist() == wanted


@pytest.mark.parametrize("arguments", [{"images_per_batch": 5}, {"num_workers": 2}, {"shard_size": 1000}])
def test_batches_workers_and_shards_do_not_change_the_table(arguments, task, backbone, undisturbed, tmp_path):
    label_some(task, backbone, tmp_path, **arguments)
    for split in SPLITS:
        ours, theirs = read_outcomes(tmp_path, split), read_outcomes(undisturbed, split)
        assert np.allclose(ours.nll, theirs.nll, atol=1e-5)
        assert np.allclose(ours.confidence, theirs.confidence, atol=1e-5)
        assert np.allclose(ours.margin, theirs.margin, atol=1e-4)
        assert ours.entropy is not None and theirs.entropy is not None
        assert np.allclose(ours.entropy, theirs.entropy, atol=1e-4)
        measured = {name: getattr(theirs, name) for name in ("nll", "confidence", "margin", "entropy")}
        same = dataclasses.replace(ours, **measured)
        assert same.to_arrow().equals(theirs.to_arrow())


def test_question_batches_do_not_change_the_table(undisturbed, task, tmp_path):
    label_some(task, make_backbone(batch_size=3), tmp_path)
    for split in SPLITS:
        ours, theirs = read_outcomes(tmp_path, split), read_outcomes(undisturbed, split)
        assert ours.answer == theirs.answer
        assert np.array_equal(ours.score, theirs.score)
        assert np.allclose(ours.nll, theirs.nll, atol=1e-5)


@pytest.fixture
def unloadable() -> LlavaBackbone:
    """The backbone, for work that must not load the model."""
    backbone = make_backbone()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    object.__setattr__(backbone.checkpoint, "load_model", refuse)  # of this backbone alone
    return backbone


def test_a_finished_folder_is_left_alone_without_loading_the_model(undisturbed, task, unloadable):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    summary = label_some(task, unloadable, undisturbed)
    assert summary.counts == {split: len(read_outcomes(undisturbed, split)) for split in SPLITS}
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_summary_gives_mean_scores_per_scale_but_of_the_test_split(undisturbed, task, backbone):
    summary = label_some(task, backbone, undisturbed)
    assert set(summary.accuracy) == {"train", "calibration"}
    for split in summary.accuracy:
        expected = read_outcomes(undisturbed, split).score.mean(axis=0)
        assert summary.accuracy[split] == pytest.approx(expected.tolist())
    assert "576" in str(summary) and "calibration" in str(summary) and "held out" in str(summary)
    assert "skipped: 0 samples" in str(summary)
    assert "test" not in json.loads((undisturbed / "manifest.json").read_text())["accuracy"]


def write_png_bomb(path: Path, side: int) -> None:
    """A genuine black picture of side x side pixels at one bit each."""
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


BAD_PICTURES = {
    "bad-bomb.png": "too large",
    "bad-cut.jpg": "damaged",
    "bad-empty.jpg": "the file is empty",
    "bad-missing.jpg": "no such file",
}


def write_pictures(folder: Path) -> None:
    """Good image files, and all bad ones but the missing one."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.save(folder / "good.jpg")
    picture.save(folder / "good.png")
    picture.convert("CMYK").save(folder / "good-cmyk.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "good-16bit.png")
    picture.save(folder / "good-animated.gif", save_all=True, append_images=[picture.rotate(90)])
    (folder / "bad-cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:900])
    (folder / "bad-empty.jpg").write_bytes(b"")
    write_png_bomb(folder / "bad-bomb.png", 30_000)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_pictures_are_skipped_and_the_good_ones_labelled(num_workers, backbone, tmp_path):
    (tmp_path / "images").mkdir()
    write_pictures(tmp_path / "images")
    names = [path.name for path in (tmp_path / "images").iterdir()] + ["bad-missing.jpg"]
    lines: list[Any] = [
        {"question_id": f"{name}/{turn}", "image": name, "text": f"Question {turn}?", "answer": "yes"}
        for name in names
        for turn in range(2)
    ]
    lines += [{"question_id": "too long", "image": "good.jpg", "text": "why " * 4500, "answer": "no"}]
    lines += ["{not JSON", {"question_id": "unanswered", "image": "good.jpg", "text": "What?"}]
    task = make_task(tmp_path, lines, fractions={"train": 0.5, "calibration": 0.2, "test": 0.3})
    summary = label(
        task=task, backbone=backbone, folder=tmp_path / "labels", num_workers=num_workers, images_per_batch=3
    )
    labelled = [
        sample_id
        for split, count in summary.counts.items()
        if count
        for sample_id in read_outcomes(tmp_path / "labels", split).sample_id
    ]
    good = [f"mine/{name}/{turn}" for name in names for turn in range(2) if name.startswith("good")]
    assert sorted(labelled) == sorted(good)

    rows = [json.loads(line) for line in (tmp_path / "labels" / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["sample_id"]: row["reason"] for row in rows if "sample_id" in row}
    for name, word in BAD_PICTURES.items():
        for turn in range(2):
            assert name in reasons[f"mine/{name}/{turn}"] and word in reasons[f"mine/{name}/{turn}"]
    assert "tokens" in reasons["mine/too long"]
    assert len(rows) == 2 * len(BAD_PICTURES) + 3
    assert sum(summary.skipped.values()) == len(rows)
    assert f"skipped: {len(rows)} samples, with reasons in" in str(summary)


def test_a_task_of_unreadable_pictures_ends_with_the_reason(backbone, tmp_path):
    task = make_task(tmp_path, [{"question_id": 1, "image": "lost.png", "text": "What?", "answer": "no"}])
    with pytest.raises(ValueError, match=r"not one sample could be labelled .*no such file"):
        label(task=task, backbone=backbone, folder=tmp_path / "labels", num_workers=0)
    with pytest.raises(ValueError, match="not finished"):
        read_outcomes(tmp_path / "labels")


class TestOtherLabelsInTheFolder:
    def test_changed_weights_are_refused(self, copied, task, tmp_path):
        checkpoint = shutil.copytree(CHECKPOINT.parent, tmp_path / "other") / "checkpoint"
        shard = next(checkpoint.glob("*.safetensors"))
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.chmod(0o644)
        shard.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"other weights \(.* there, .* here\).*paths\.labels=.*overwrite=true"
        ):
            label_some(task, make_backbone(checkpoint), copied)

    def test_changed_prompt_is_refused(self, copied, task):
        with pytest.raises(ValueError, match="were made with other prompt"):
            label_some(task, make_backbone(prompt="short"), copied)

    def test_changed_decoding_is_refused(self, copied, task):
        with pytest.raises(ValueError, match="were made with other decoding"):
            label_some(task, make_backbone(max_new_tokens=1), copied)

    def test_changed_data_is_refused(self, copied, backbone, tmp_path):
        other = make_task(tmp_path, [{"question_id": 1, "image": "a.png", "text": "What?", "answer": "no"}])
        with pytest.raises(ValueError, match=r"other data \(questions: \[.* here\): .*task\.name=NAME"):
            label_some(other, backbone, copied)

    def test_another_feature_scale_is_refused(self, copied, task, backbone):
        with pytest.raises(ValueError, match=r"other feature_scales \(\[1, 9, 36\] there, \[36\] here\)"):
            label_some(task, backbone, copied, kept=KeptInputs((36,)))

    def test_shards_without_a_manifest_are_kept_too(self, copied, task, backbone):
        shards = {path.relative_to(copied) for path in copied.glob("outcomes/*.parquet")}
        (copied / "manifest.json").unlink()
        summary = label_some(task, backbone, copied)
        assert summary.replaced is not None
        assert {path.relative_to(summary.replaced) for path in summary.replaced.glob("outcomes/*")} == shards

    def test_scales_off_the_ladder_are_refused_before_anything_moves(self, copied, task, backbone):
        before = sorted(copied.rglob("*"))
        with pytest.raises(
            ValueError, match=r"feature_scales=\[9, 7\]: .* no scale 7: give some of 1, 9, 36"
        ):
            label_some(task, backbone, copied, kept=KeptInputs((9, 7)), overwrite=True)
        assert sorted(copied.rglob("*")) == before and not list(copied.parent.glob("*replaced*"))

    def test_overwrite_replaces_them(self, copied, task):
        for name in ("notes.txt", "features/notes.txt"):
            (copied / name).write_text("mine")
        before = read_outcomes(copied, "test")
        (copied / "resampled").mkdir()
        (copied / "resampled" / "test-00000.safetensors").write_text("answers")
        summary = label_some(task, make_backbone(max_new_tokens=1), copied, overwrite=True)
        # The labels that were there can still be read, with the answers that belong to them.
        assert summary.replaced is not None and summary.replaced.parent == copied.parent
        assert re.fullmatch(
            rf"{copied.name}\.replaced-\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d", summary.replaced.name
        )
        assert f"the former labels are kept in {summary.replaced}" in str(summary)
        assert read_outcomes(summary.replaced, "test").to_arrow().equals(before.to_arrow())
        assert (summary.replaced / "resampled" / "test-00000.safetensors").read_text() == "answers"
        assert not list((copied / "resampled").iterdir())
        assert (
            read_outcomes(copied, "test").fingerprints["decoding"] != make_backbone().fingerprints["decoding"]
        )
        assert (copied / "notes.txt").exists() and (copied / "features" / "notes.txt").exists()

    def test_nothing_is_taken_over_without_a_manifest(self, copied, undisturbed, task, backbone):
        (copied / "manifest.json").unlink()
        label_some(task, make_backbone(max_new_tokens=1), copied)
        assert not read_outcomes(copied).to_arrow().equals(read_outcomes(undisturbed).to_arrow())
        (copied / "manifest.json").unlink()
        (copied / "token_embeddings.safetensors").write_bytes(b"of something else")
        label_some(task, backbone, copied)
        assert_same_labels(copied, undisturbed)


class TestLimits:
    def test_a_larger_limit_adds_what_is_missing(self, copied, task, backbone, tmp_path):
        more = {**LIMIT, "train": 4}
        kept = copied / "outcomes" / "00000.parquet"
        before = kept.stat().st_mtime_ns
        label_some(task, backbone, copied, limit=more)
        assert kept.stat().st_mtime_ns == before
        label_some(task, backbone, tmp_path / "fresh", limit=more)
        assert_same_labels(copied, tmp_path / "fresh")

    def test_a_smaller_limit_and_the_larger_one_again_need_no_answer(
        self, copied, undisturbed, task, unloadable, tmp_path
    ):
        assert label_some(task, unloadable, copied, limit={**LIMIT, "train": 2}).counts["train"] == 10
        samples = [sample.sample_id for sample in task.samples("train")][:10]
        assert read_outcomes(copied, "train").sample_id.tolist() == samples
        label_some(task, unloadable, copied)
        assert_same_labels(copied, undisturbed)

    def test_an_unknown_split_is_refused(self, copied, task, backbone):
        with pytest.raises(ValueError, match=r"limit names unknown splits \['validation'\]"):
            label_some(task, backbone, copied, limit={"validation": 3})


class TestDivisions:
    """Images are divided into splits by one file; answers do not depend on it."""

    @pytest.fixture
    def undivided(self, tmp_path) -> dict[str, Any]:
        """Three questions on each of twelve pictures; no row names a split."""
        noise = np.random.default_rng(1).integers(0, 256, (12, 30, 40, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir()
        for number, pixels in enumerate(noise):
            Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        rows = [
            {
                "question_id": f"{number}-{turn}",
                "image": f"{number}.png",
                "text": f"What {turn}?",
                "answer": "a",
            }
            for number in range(12)
            for turn in range(3)
        ]
        return {"folder": tmp_path, "lines": rows}

    def test_another_division_answers_nothing_again(self, undivided, backbone, tmp_path, unloadable):
        task = make_task(**undivided)
        label_some(task, backbone, tmp_path / "labels", limit={})
        other = make_task(**undivided, fractions={"train": 0.4, "calibration": 0.3, "test": 0.3}, seed=5)
        assert other.fingerprint == task.fingerprint and other.division != task.division
        summary = label_some(other, unloadable, tmp_path / "labels", limit={})
        label_some(other, backbone, tmp_path / "fresh", limit={})
        assert_same_labels(tmp_path / "labels", tmp_path / "fresh")
        for split in ("train", "calibration"):
            expected = read_outcomes(tmp_path / "fresh", split).score.mean(axis=0)
            assert summary.accuracy[split] == pytest.approx(expected.tolist())
        manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
        fresh = json.loads((tmp_path / "fresh" / "manifest.json").read_text())
        for key in ("counts", "splits", "accuracy", "near_ties", "division"):
            assert manifest[key] == fresh[key]

    def test_another_division_within_limits_answers_new_images_alone(self, undivided, backbone, tmp_path):
        limit = {"train": 4, "calibration": 1, "test": 2}
        task = make_task(**undivided)
        label_some(task, backbone, tmp_path / "labels", limit=limit)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").glob("*/*.parquet")}
        other = make_task(**undivided, seed=5)
        label_some(other, backbone, tmp_path / "labels", limit=limit)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        label_some(other, backbone, tmp_path / "fresh", limit=limit)
        assert_same_labels(tmp_path / "labels", tmp_path / "fresh")
        answered = [
            image_id
            for path in (tmp_path / "labels" / "outcomes").iterdir()
            for image_id in set(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
        ]
        assert len(answered) == len(set(answered)) > 7

    def test_a_killed_labelling_goes_on_with_another_division(
        self, undivided, backbone, tmp_path, monkeypatch
    ):
        """What was finished before the kill is kept, though it was begun for other splits."""
        task, other = make_task(**undivided), make_task(**undivided, seed=5)
        write_shard = LabelFolder.write_shard

        def die(self: Any, name: str, *rest: Any) -> None:
            if name == "00003":
                raise KeyboardInterrupt
            write_shard(self, name, *rest)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LabelFolder, "write_shard", die)
            label_some(task, backbone, tmp_path / "labels", limit={}, shard_size=3)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").glob("outcomes/*")}
        assert len(before) == 3
        label_some(other, backbone, tmp_path / "labels", limit={}, shard_size=3)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        label_some(other, backbone, tmp_path / "fresh", limit={}, shard_size=3)
        assert_same_labels(tmp_path / "labels", tmp_path / "fresh")


class TestAfterAccidents:
    @pytest.mark.parametrize("room", ["outcomes", "features"])
    @pytest.mark.parametrize("accident", ["lost", "cut short", "emptied"])
    def test_a_damaged_shard_is_made_again(self, accident, room, copied, undisturbed, task, backbone):
        path = copied / room / "00001.parquet"
        content = path.read_bytes()
        path.unlink()
        if accident != "lost":
            path.write_bytes(content[: len(content) // 2 if accident == "cut short" else 0])
        label_some(task, backbone, copied)
        assert_same_labels(copied, undisturbed)

    @pytest.mark.parametrize("name", ["splits.parquet", "token_embeddings.safetensors", "skipped.jsonl"])
    def test_what_lies_beside_the_shards_is_made_again(self, name, copied, undisturbed, task, backbone):
        path = copied / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"{")
        label_some(task, backbone, copied)
        assert_same_labels(copied, undisturbed)

    def test_remains_of_a_killed_run_are_cleared_away(self, copied, undisturbed, task, backbone):
        """Killed between the features and the outcomes of a shard: the outcomes are half-written."""
        manifest = unseal(json.loads((copied / "manifest.json").read_text()))
        del manifest["counts"]
        (copied / "manifest.json").write_text(json.dumps({**manifest, "shards": {}, "complete": False}))
        (copied / "outcomes" / "00003.parquet").rename(copied / "outcomes" / ".00003.parquet.1.tmp")
        (copied / "skipped.jsonl").unlink()
        (copied / "token_embeddings.safetensors").unlink()
        label_some(task, backbone, copied)
        assert_same_labels(copied, undisturbed)
        assert not list(copied.rglob("*.tmp"))

    def test_shards_of_other_weights_are_not_taken_over(self, copied, undisturbed, task, backbone, tmp_path):
        label_some(task, make_backbone(max_new_tokens=1), tmp_path / "other")
        shutil.copy(tmp_path / "other" / "outcomes" / "00003.parquet", copied / "outcomes")
        label_some(task, backbone, copied)
        assert_same_labels(copied, undisturbed)

    def test_a_folder_in_use_is_refused_and_the_user_named(self, copied, task, backbone):
        (copied / ".owner").write_text("process 1234 on somewhere")
        with (
            FileLock(copied / ".lock"),
            pytest.raises(ValueError, match="process 1234 on somewhere is labelling into"),
        ):
            label_some(task, backbone, copied, overwrite=True)

    def test_who_wants_the_same_labels_waits_for_them(self, copied, undisturbed, task, backbone, caplog):
        caplog.set_level("INFO")
        shutil.rmtree(copied / "outcomes")  # else nothing is left to do, and nobody to wait for
        with kept_waiting(task, backbone, copied):
            pass
        assert "process 1234 on somewhere is labelling into" in caplog.text
        assert_same_labels(copied, undisturbed)

    def test_labels_that_were_waited_for_stay_finished(self, copied, task, backbone):
        """Others read them as soon as they are there: they must not be begun anew by whoever waited."""
        (copied / "outcomes").rename(copied / "made by the other")
        stamp = (copied / "manifest.json").stat().st_mtime_ns
        with kept_waiting(task, backbone, copied):
            (copied / "made by the other").rename(copied / "outcomes")
        assert (copied / "manifest.json").stat().st_mtime_ns == stamp

    def test_a_full_disk_ends_in_one_message_with_the_command_that_goes_on(
        self, undisturbed, task, backbone, tmp_path
    ):
        """The system lets no file grow beyond a limit: writing fails as it does on a full disk."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OSError, match=r"cannot write to .*labels.*run the command again to resume"):
                label_some(task, backbone, tmp_path / "labels", command="the command")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.rglob("*.tmp"))
        label_some(task, backbone, tmp_path / "labels")
        assert_same_labels(tmp_path / "labels", undisturbed)

    def test_a_reading_process_that_dies_is_told(self, task, backbone, tmp_path, monkeypatch):
        def die(self: Any, image_id: str) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(reading_ahead._Images, "__getitem__", die)
        with pytest.raises(OSError, match=r"a process that reads images died.*num_workers=0"):
            label_some(task, backbone, tmp_path, num_workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_id": "same"}, "sample_id 'same' comes more than once"),
        ({"image_id": "same"}, "samples of image 'same' of calibration are in train too"),
        ({"metric": "vibes"}, "has metric 'vibes'; there are exact"),
        ({"task": 2024}, "mine: task of sample .* is 2024 and not a text: the task must give str"),
        ({"question": None}, "question of sample .* is None and not a text"),
        ({"references": ("a", 5)}, r"references\[1\] of sample .* is 5 and not a text"),
    ],
)
def test_what_a_task_must_not_do_is_found_before_anything_is_labelled(
    change, message, task, backbone, tmp_path, monkeypatch
):
    class BrokenTask(LlavaJsonl):
        def samples(self, split: Split) -> Iterator[Sample]:
            return (dataclasses.replace(sample, **change) for sample in super().samples(split))

    monkeypatch.setattr(task, "__class__", BrokenTask)
    with pytest.raises(ValueError, match=message):
        label_some(task, backbone, tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_shards_of_the_work_fill_one_folder(task, backbone, undisturbed, tmp_path):
    first = label_some(task, backbone, tmp_path, shard="0/2")
    assert first.num_missing == 2 and "2 files of other parts are still missing" in str(first)
    with pytest.raises(ValueError, match="not finished"):
        read_outcomes(tmp_path, "train")
    last = label_some(task, backbone, tmp_path, shard="1/2")
    assert last.num_missing == 0 and last.counts == {"train": 15, "calibration": 5, "test": 5}
    assert_same_labels(tmp_path, undisturbed)
    assert label_some(task, backbone, tmp_path, shard="0/2").counts == last.counts


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "0/0"])
def test_an_impossible_shard_is_refused(text, task, backbone, tmp_path):
    with pytest.raises(ValueError, match="give i/n with i from 0"):
        label_some(task, backbone, tmp_path, shard=text)


def test_shards_and_whole_runs_keep_out_of_each_others_way(task, backbone, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="would replace the files of the other parts"):
        label_some(task, backbone, tmp_path, shard="0/2", overwrite=True)
    with (
        FileLock(tmp_path / ".lock-0-of-2"),
        pytest.raises(ValueError, match=r"is labelling into .* now"),
    ):
        label_some(task, backbone, tmp_path)
    with (
        FileLock(tmp_path / ".lock-0-of-2"),
        pytest.raises(ValueError, match=r"is labelling into .* now"),
    ):
        label_some(task, backbone, tmp_path, shard="0/2")
    monkeypatch.setattr("experiments.labels.labelling.PATIENCE", 0.1)
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match=r"is labelling into .* now"):
        label_some(task, backbone, tmp_path, shard="0/2")
    assert label_some(task, backbone, tmp_path).counts["train"] == 15


def test_near_ties_are_counted(undisturbed):
    margins = np.concatenate([read_outcomes(undisturbed, split).margin for split in SPLITS])
    ties = json.loads((undisturbed / "manifest.json").read_text())["near_ties"]
    assert ties == {"below_nats": 1e-3, "num_answers": int((margins < 1e-3).sum())}


def test_a_backbone_goes_to_other_processes_without_its_weights(backbone):
    image = Image.new("RGB", (30, 40), "red")
    answers = backbone.answer(backbone.encode([image]), ["What color?"], 9)
    content = pickle.dumps(backbone)
    assert len(content) < 500_000
    again = pickle.loads(content)
    assert again.fingerprints == backbone.fingerprints
    assert again.answer(again.encode([image]), ["What color?"], 9) == answers
