"""Hugging Face data sets as tasks, from local files."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.labels.labelling import label
from experiments.tasks.base import SPLITS
from experiments.tasks.hf_dataset import HfDataset
from experiments.tasks.scenes import Scenes
from m3_backbone.images import UnreadableImage
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.table import OutcomeTable
from tests.bombs import make_png
from tests.held_out import read_outcomes

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def paint(color: str) -> bytes:
    return encode(Image.new("RGB", (8, 6), color))


def list_samples(task: HfDataset) -> list[Any]:
    return [sample for split in SPLITS for sample in task.samples(split)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(num_images={"train": 6, "calibration": 2, "test": 4}, questions_per_image=2, image_size=96)


@pytest.fixture(scope="module")
def scene_file(scenes, tmp_path_factory) -> Path:
    """Questions of scenes, the image in every row as in data sets of the hub."""
    rows = [
        {
            "image": {"bytes": encode(scenes.image(sample.image_id)), "path": None},
            "prompt": sample.question,
            "answers": {"text": list(sample.references)},
            "kind": sample.attributes["kind"],
        }
        for split in SPLITS
        for sample in scenes.samples(split)
    ]
    return write(tmp_path_factory.mktemp("data") / "scenes.parquet", rows)


def make_scenes_task(path: Path, **arguments: Any) -> HfDataset:
    fields = {"question": "prompt", "answer": "answers.text", "category": "kind"}
    return HfDataset(name="parquet", path=path, metric="exact", **{**fields, **arguments})


@pytest.mark.long
def test_labels_of_a_parquet_file_equal_those_of_the_same_images_and_questions(scenes, scene_file, tmp_path):
    task = make_scenes_task(scene_file)
    backbone = LlavaBackbone("tiny_m3", dtype="float32")
    tables = {}
    for name, source in (("scenes", scenes), ("parquet", task)):
        label(task=source, backbone=backbone, folder=tmp_path / name, num_workers=0)
        table = read_outcomes(tmp_path / name)
        tables[name] = sorted(
            zip(table.question, table.answer, table.score.tolist(), table.kind, strict=True)
        )
    assert tables["parquet"] == tables["scenes"] and len(tables["parquet"]) == 24
    table = OutcomeTable.read(tmp_path / "parquet", "train")
    # All questions about one image, which stands in the file twice, are in one split.
    assert len(set(table.image_id)) == len(table) / 2


def test_fingerprint_is_that_of_the_content_and_not_of_the_place(scene_file, tmp_path):
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(scene_file.read_bytes())
    task = make_scenes_task(scene_file)
    assert make_scenes_task(copy).fingerprint == task.fingerprint
    rows = pq.read_table(scene_file).to_pylist()
    rows[0]["answers"] = {"text": ["another answer"]}
    assert make_scenes_task(write(tmp_path / "b.parquet", rows)).fingerprint != task.fingerprint
    assert make_scenes_task(scene_file, revision="abc").fingerprint != task.fingerprint


def test_the_same_samples_come_from_arrow_and_from_saved_data_and_image_folders(tmp_path):
    colors = ("red", "green", "blue")
    rows = [{"image": paint(color), "question": f"{color}?", "answer": color} for color in colors]
    path = write(tmp_path / "a.parquet", rows)
    data = datasets.Dataset.from_parquet(str(path)).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "saved")
    folder = tmp_path / "images"
    folder.mkdir()
    for color in colors:
        (folder / f"{color}.png").write_bytes(paint(color))
    lines = [f"{color}.png,{color}?,{color}" for color in colors]
    (folder / "metadata.csv").write_text("\n".join(["file_name,question,answer", *lines]))
    listed = tmp_path / "listed.jsonl"
    listed.write_text(
        "".join(f'{{"image": "images/{c}.png", "question": "{c}?", "answer": "{c}"}}\n' for c in colors)
    )
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    tasks = [
        HfDataset(name="a", path=p, metric="exact") for p in (path, tmp_path / "saved", arrow, folder, listed)
    ]
    contents = [
        {(s.question, s.references, s.image_id, task.image(s.image_id).tobytes()) for s in list_samples(task)}
        for task in tasks
    ]
    assert all(content == contents[0] for content in contents) and len(contents[0]) == 3


def test_bad_rows_are_skipped_with_their_reasons(tmp_path):
    image = {"bytes": paint("red"), "path": None}
    rows: list[dict[str, Any]] = [
        {"image": image, "question": "what?", "answer": "red"},
        {"image": None, "question": "text only?", "answer": "yes"},
        {"image": {"bytes": b"x" * 2_000_000, "path": None}, "question": "large?", "answer": "yes"},
        {"image": image, "question": None, "answer": "red"},
        {"image": image, "question": "unanswered?", "answer": None},
        {"image": {"bytes": None, "path": "../secret.png"}, "question": "out?", "answer": "red"},
        {"image": {"bytes": None, "path": "gone.png"}, "question": "gone?", "answer": "red"},
        {"image": {"bytes": None, "path": "a\0.png"}, "question": "null?", "answer": "red"},
        {"image": {"bytes": None, "path": "file.png"}, "question": "file?", "answer": "red"},
        {
            "image": {"bytes": make_png(20_000, 20_000, b"0"), "path": None},
            "question": "bomb?",
            "answer": "red",
        },
    ]
    (tmp_path / "file.png").write_bytes(paint("blue"))
    path = write(tmp_path / "bad.parquet", rows)
    task = HfDataset(name="bad", path=path, metric="exact", max_image_bytes=1_000_000)
    samples = {sample.question: sample for sample in list_samples(task)}
    assert {row["row"]: row["reason"] for row in task.skipped} == {
        2: "no image",
        3: "the image has 2,000,000 bytes (at most 1,000,000)",
        4: "no question",
        5: "no reference answer",
        6: "the path of the image leads out of the image folder (task.image_folder)",
        7: "no image file 'gone.png' in the image folder",
        8: "the path of the image is not usable",
    }
    assert set(samples) == {"what?", "bomb?", "file?"}
    (tmp_path / "file.png").write_bytes(paint("green"))
    with pytest.raises(UnreadableImage, match=r"the file 'file\.png' has changed since the rows were read"):
        task.image(samples["file?"].image_id)
    with pytest.raises(UnreadableImage, match="too large"):
        task.image(samples["bomb?"].image_id)


def test_a_wrong_column_is_an_error_that_lists_the_columns(scene_file, tmp_path):
    with pytest.raises(
        ValueError, match=r"task.question=question: .* has no such column: give one of 'image'"
    ):
        HfDataset(name="wrong", path=scene_file, metric="exact")
    with pytest.raises(ValueError, match=r"task.path=.*no file or folder"):
        HfDataset(name="wrong", path=tmp_path / "missing.parquet", metric="exact")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"task.path=.*broken.parquet: the data set cannot be loaded"):
        HfDataset(name="wrong", path=tmp_path / "broken.parquet", metric="exact")


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("answer", ["B", "blue", 1])
def test_choices_become_lines_and_answers_letters(tmp_path, as_list, answer):
    choices = {"choices": ["red", "blue"]} if as_list else {"A": "red", "B": "blue", "C": None}
    row = {"image": paint("blue"), "question": "Which?", "answer": answer, **choices}
    path = write(tmp_path / "choices.parquet", [row])
    columns = "choices" if as_list else ["A", "B", "C"]
    task = HfDataset(name="c", path=path, metric="multiple_choice_letter", choices=columns)
    (sample,) = list_samples(task)
    assert sample.question == "Which?\nA. red\nB. blue" and sample.references == ("B",)
    assert task.score(sample, "B") == 1 and task.score(sample, "A") == 0


def test_splits_of_the_data_set_are_the_division_and_keep_an_image_in_one(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    train = [
        {"image": paint(f"#{n:06x}"), "question": f"q{n}?", "answer": n % 2} for n in range(20)
    ]  # the first image is in both
    write(folder / "train-00000-of-00001.parquet", train)
    write(
        folder / "test-00000-of-00001.parquet", [{"image": paint("#000000"), "question": "t?", "answer": 1}]
    )
    with pytest.raises(ValueError, match=r"has several splits: give task.split=..., one of train, test"):
        HfDataset(name="s", path=folder, metric="exact")
    task = HfDataset(name="s", path=folder, metric="exact", split={"train": "train", "test": "test"})
    by_split = {split: list(task.samples(split)) for split in SPLITS}
    assert [sample.question for sample in by_split["test"]] == ["t?"]
    assert task.skipped == [{"split": "train", "row": 1, "reason": "its image is in test too"}]
    # A seventh of train becomes calibration: 0.1 of 0.6 + 0.1.
    assert [len(by_split[split]) for split in SPLITS] == [16, 3, 1]
    assert task.official_split.is_whole and task.divided_by is None


def test_class_labels_are_their_names(tmp_path):
    path = tmp_path / "labels"
    answer, text = datasets.ClassLabel(names=["no", "yes"]), datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": text, "answer": answer})
    rows = {"image": [Image.new("RGB", (4, 4))], "question": ["Is it?"], "answer": [1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    (sample,) = list_samples(HfDataset(name="l", path=path, metric="yes_no"))
    assert sample.references == ("yes",)
