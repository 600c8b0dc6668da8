"""Questions about videos: real files made here, whose frames are scenes or plain colours."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import compare_backbones, train
from experiments.labels.division import count_clusters
from experiments.labels.labelling import label
from experiments.tasks.base import SPLITS
from experiments.tasks.images import UnreadableImage
from experiments.tasks.scenes import Scenes
from experiments.tasks.sizes import count_images
from experiments.tasks.video import FrameChoice
from experiments.tasks.video_jsonl import VideoJsonl
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.manifest import read_manifest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenscale[video]'")


def write_video(path, frames, rate=1, gap=12):
    """A lossless video of these images, `rate` frames a second, with a keyframe every `gap` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "rgb24"
        stream.codec_context.gop_size = gap
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_rows(folder, rows):
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_task(folder, **arguments):
    given = {"name": "mine", "metric": "exact", "questions": folder / "questions.jsonl", "videos": folder}
    return VideoJsonl(**given | arguments)


def list_samples(task):
    return [sample for split in SPLITS for sample in task.samples(split)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with a video of four scenes, a question about each, and the scenes."""
    folder = tmp_path_factory.mktemp("videos")
    source = Scenes(num_images={"train": 4, "calibration": 1, "test": 1}, questions_per_image=1)
    samples = list(source.samples("train"))
    images = [source.image(sample.image_id) for sample in samples]
    write_video(folder / "a.mp4", images)
    write_rows(
        folder,
        [
            {
                "question_id": f"frame-{number}",
                "video": "a.mp4",
                "text": sample.question,
                "references": list(sample.references),
                "start": number,
                "end": number + 1,
            }
            for number, sample in enumerate(samples)
        ],
    )
    return folder, samples, images


def test_question_about_one_frame_shows_that_frame(scenes):
    folder, asked, images = scenes
    task = make_task(folder, num_frames=1)
    samples = {sample.sample_id: sample for sample in list_samples(task)}
    assert len({sample.split for sample in samples.values()}) == 1  # parts of one video
    assert len({sample.attributes["cluster"] for sample in samples.values()}) == 1
    for number, (original, image) in enumerate(zip(asked, images, strict=True)):
        sample = samples[f"mine/frame-{number}"]
        assert (sample.question, sample.references) == (original.question, original.references)
        assert sample.attributes["num_frames"] == 1
        assert np.array_equal(task.image(sample.image_id), image)


def test_collage_has_the_frames_in_reading_order(scenes, tmp_path):
    folder, _, images = scenes
    width, height = images[0].size
    write_rows(tmp_path, [{"question_id": 1, "video": "a.mp4", "text": "what?", "answer": "a"}])
    task = make_task(tmp_path, videos=folder, num_frames=4)
    (sample,) = list_samples(task)
    collage = np.asarray(task.image(sample.image_id))
    assert collage.shape == (2 * height, 2 * width, 3)
    for number, image in enumerate(images):
        row, column = divmod(number, 2)
        cell = collage[row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert np.array_equal(cell, image)
    small = make_task(tmp_path, videos=folder, num_frames=4, columns=4, frame_side=width // 2)
    (other,) = list_samples(small)
    assert small.image(other.image_id).size == (2 * width, height // 2)


def test_frames_are_uniform_or_every_n_seconds():
    assert FrameChoice(4).list_times(10, 30) == [12.5, 17.5, 22.5, 27.5]
    assert FrameChoice(6, every=5).list_times(10, 30) == [10, 15, 20, 25]
    with pytest.raises(ValueError, match=r"30\.0 s have 15 frames at one every 2 s, .* room for 6"):
        FrameChoice(6, every=2).list_times(0, 30)
    assert FrameChoice(6).grid == (3, 2)
    assert FrameChoice(5, columns=5).grid == (5, 1)


def test_tasks_with_other_frames_have_the_same_samples_in_the_same_splits(tmp_path):
    for number in range(12):
        write_video(tmp_path / f"{number}.mp4", [Image.new("RGB", (16, 16), (20 * number, 0, 0))])
    rows = [{"question_id": n, "video": f"{n}.mp4", "text": "what?", "answer": "red"} for n in range(12)]
    write_rows(tmp_path, rows)
    few, many = (make_task(tmp_path, num_frames=num_frames) for num_frames in (1, 9))
    assert [(s.sample_id, s.split) for s in list_samples(few)] == [
        (s.sample_id, s.split) for s in list_samples(many)
    ]
    assert few.fingerprint != many.fingerprint
    assert not {s.image_id for s in list_samples(few)} & {s.image_id for s in list_samples(many)}


def test_parts_of_a_video_are_in_one_split_and_count_as_one(tmp_path):
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", [Image.new("RGB", (16, 16), (90 * number, 0, 0))] * 4)
    rows = [
        {"question_id": n, "video": f"{n // 3}.mp4", "text": "what?", "answer": "red", "start": n % 3}
        for n in range(6)
    ]
    splits = ("test", "test", "test", "test", "train", "test")
    write_rows(tmp_path, [{**row, "split": split} for row, split in zip(rows, splits, strict=True)])
    task = make_task(tmp_path)
    assert len(list_samples(task)) == 5 and count_images(task, "test") == 2
    ((reason,),) = [[row["reason"] for row in task.skipped]]
    assert "came before with split test" in reason
    folder = tmp_path / "labels"
    backbone = LlavaBackbone("tiny_m3", dtype="float32", max_new_tokens=4)
    label(task=task, backbone=backbone, folder=folder, num_workers=0)
    assert read_manifest(folder)["counts"]["test"] == 5 and count_clusters(folder, "test") == 2


def test_part_of_a_long_video_is_read_by_seeking(tmp_path):
    """Ten minutes; the red of a frame is its second, modulo 250, and it has a keyframe every 50 s."""
    seconds = [Image.new("RGB", (16, 16), (second % 250, 60, second // 250)) for second in range(600)]
    write_video(tmp_path / "long.mp4", seconds, gap=50)
    write_rows(
        tmp_path,
        [{"question_id": 1, "video": "long.mp4", "text": "what?", "answer": "a", "start": 545, "end": 575}],
    )
    task = make_task(tmp_path, num_frames=6, every=5, columns=6)
    (sample,) = list_samples(task)
    assert sample.image_id.endswith("/545-575/6x5s")
    colors = np.asarray(task.image(sample.image_id))[0, ::16]
    assert colors.tolist() == [[second % 250, 60, second // 250] for second in range(545, 575, 5)]


@pytest.mark.parametrize(
    "name, content, arguments, reason",
    [
        ("none.mp4", None, {}, "no such file"),
        ("empty.mp4", b"", {}, "the file is empty"),
        ("text.mp4", b"no video at all" * 100, {}, "not a readable video"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", {}, "not a readable video"),
        ("a.mp4", "cut", {}, "not a readable video"),
        ("a.mp4", "whole", {"max_seconds": 2.5}, r"too long: 4 s \(at most 2\.5\)"),
        ("a.mp4", "whole", {"max_pixels": 5000}, "too large: frames of"),
        ("a.mp4", "whole", {"every": 0.5}, "4.0 s have 8 frames"),
        ("../a.mp4", None, {}, "leads out of the image folder"),
    ],
)
def test_unreadable_video_is_named_with_the_reason(scenes, tmp_path, name, content, arguments, reason):
    if content in ("cut", "whole"):
        whole = (scenes[0] / "a.mp4").read_bytes()
        content = whole if content == "whole" else whole[: len(whole) // 3]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    write_rows(tmp_path, [{"question_id": 1, "video": name, "text": "what?", "answer": "a"}])
    task = make_task(tmp_path, **arguments)
    (sample,) = list_samples(task)
    with pytest.raises(UnreadableImage, match=reason) as refused:
        task.image(sample.image_id)
    assert refused.value.name == name and str(tmp_path) not in str(refused.value)


def test_a_video_that_changes_after_the_questions_were_read_is_named(scenes, tmp_path):
    content = (scenes[0] / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content)
    write_rows(tmp_path, [{"question_id": 1, "video": "a.mp4", "text": "what?", "answer": "a"}])
    task = make_task(tmp_path)
    (sample,) = list_samples(task)
    (tmp_path / "a.mp4").write_bytes(content + b"0")
    with pytest.raises(UnreadableImage, match=r"'a\.mp4': the file has changed since"):
        task.image(sample.image_id)


def test_parts_that_differ_by_milliseconds_are_two_images(scenes, tmp_path):
    parts = [(1000.125, 1000.25), (1000.125, 1000.255)]
    rows = [
        {
            "question_id": start + end,
            "video": "a.mp4",
            "text": "what?",
            "answer": "a",
            "start": start,
            "end": end,
        }
        for start, end in parts
    ]
    write_rows(tmp_path, rows)
    ids = {sample.image_id.split("/")[1] for sample in list_samples(make_task(tmp_path, videos=scenes[0]))}
    assert ids == {"1000.125-1000.25", "1000.125-1000.255"}


def test_part_that_is_no_time_is_skipped_with_the_reason(scenes, tmp_path):
    rows = [
        {"question_id": 1, "video": "a.mp4", "text": "what?", "answer": "a", "start": "soon"},
        {"question_id": 3, "video": "a.mp4", "text": "what?", "answer": "a", "end": 10**400},
        {"question_id": 2, "video": "a.mp4", "text": "what?", "answer": "a", "start": 9, "end": 12},
    ]
    write_rows(tmp_path, rows)
    task = make_task(tmp_path, videos=scenes[0])
    (sample,) = list_samples(task)
    assert [row["reason"] for row in task.skipped] == [
        "start is 'soon', not a number of seconds",
        f"end is '1{39 * '0'}', not a number of seconds",
    ]
    with pytest.raises(UnreadableImage, match="no part from 9 to 4 s: it has 4"):
        task.image(sample.image_id)


@pytest.mark.long
def test_more_frames_or_more_tokens_a_frame_are_one_comparison(tmp_path, monkeypatch, capsys):
    """Two numbers of frames side by side: fixed scales, trained predictors, costs a question and a frame."""
    monkeypatch.chdir(tmp_path)
    colors, rows = ("red", "green", "blue", "gray"), []
    for number in range(8):
        frames = [Image.new("RGB", (96, 96), color) for color in colors[number % 3 :] + colors[: number % 3]]
        write_video(tmp_path / f"{number}.mp4", [*frames, Image.new("RGB", (96, 96), (number, 0, 0))])
        split = ("train", "calibration", "test", "test")[number % 4]
        row = {"question_id": number, "video": f"{number}.mp4", "text": "What color is the background?"}
        rows.append({**row, "answer": colors[number % 3], "split": split})
    write_rows(tmp_path, rows)
    backbone = LlavaBackbone("tiny_m3", dtype="float32", max_new_tokens=4)
    trained = ["predictor=per_task", "~predictor@baselines.per_task", "~predictor@baselines.question_only"]
    trained += ["paths.store=store", "allow_small=true"]
    for num_frames in (1, 4):
        task = make_task(tmp_path, name=f"frames_{num_frames}", num_frames=num_frames)
        label(task=task, backbone=backbone, folder=f"store/labels/tiny_m3/{task.name}", num_workers=0)
        shown = ("task=video_jsonl", f"task.name={task.name}", f"task.num_frames={num_frames}")
        files = ("task.questions=questions.jsonl", "task.videos=.", "task.metric=exact")
        monkeypatch.setattr(sys, "argv", ["train", *shown, *files, *trained, "hydra.run.dir=train"])
        train.main()
    places = "backbones=[tiny_m3/frames_1,tiny_m3/frames_4]"
    few = ("num_resamples=20", "hydra.run.dir=run")
    monkeypatch.setattr(sys, "argv", ["compare_backbones", places, *trained, *few])
    compare_backbones.main()
    assert "report: " in capsys.readouterr().out
    with (tmp_path / "run" / "tables" / "means_tokens.csv").open(newline="") as file:
        assert "per_task" in [line[0] for line in csv.reader(file)]
    with (tmp_path / "run" / "tables" / "frames.csv").open(newline="") as file:
        (_, *header), *lines = csv.reader(file)
    assert header == ["frames", "tokens", "tokens per frame", "score"]
    assert [line[:4] for line in lines[3:5]] == [
        ["tiny_m3/frames_1, scale 144", "1", "144", "144"],
        ["tiny_m3/frames_4, scale 1", "4", "1", "0.25"],
    ]
    assert lines[7][:4] == ["tiny_m3/frames_4, scale 144", "4", "144", "36"]
    page = (tmp_path / "run" / "backbones.html").read_text()
    assert "tiny_m3/frames_4" in page and "frames_1, frames_4" in page
