"""The ready-made task configs, each on a few rows in the layout in which its benchmark is published."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from experiments.command_line.script import find_config_dir
from experiments.tasks.base import SPLITS, OfficialSplit, Sample, Task, find_official_split
from experiments.tasks.scoring import score

SHORT = "\nAnswer the question using a single word or phrase."
TEN = ["nokia"] * 9 + ["phone"]


def textvqa_row(question_id: int, image_id: str, set_name: str) -> dict[str, Any]:
    return {
        "question": "what is the BRAND of this phone?",
        "image_id": image_id,
        "image_classes": ["Mobile phone"],
        "image_width": 1024,
        "answers": TEN,
        "question_tokens": ["what", "is"],
        "question_id": question_id,
        "set_name": set_name,
    }


def gqa_row(image_id: str, structural: str, answer: str) -> dict[str, Any]:
    types = {"detailed": "weather", "semantic": "global", "structural": structural}
    return {
        "question": "Is it overcast?",
        "imageId": image_id,
        "answer": answer,
        "fullAnswer": "No.",
        "types": types,
    }


def scienceqa_row(split: str, image: str | None, answer: int) -> dict[str, Any]:
    return {
        "question": "Which is the main persuasive appeal?",
        "choices": ["pathos", "ethos", "logos"],
        "answer": answer,
        "hint": "Look at the picture." if image else "",
        "image": image,
        "subject": "language science",
        "split": split,
    }


def pope_lines(label: str) -> str:
    row = {
        "question_id": 1,
        "image": "COCO_val2014_000000310196.jpg",
        "text": "Is there a cat in the image?",
        "label": label,
    }
    return "\n".join(json.dumps(row | {"question_id": number}) for number in (1, 2))


def docvqa_file(split: str) -> dict[str, Any]:
    row = {
        "questionId": 337,
        "question": "What is the date?",
        "image": f"documents/{split}_1.png",
        "docId": 279,
        "ucsf_document_id": "xnbl0037",
        "answers": ["1/8/93"],
        "data_split": split,
    }
    return {"dataset_name": "docvqa", "dataset_split": split, "data": [row]}


CHART = [
    {"imgname": "1.png", "query": "How many bars?", "label": "14"},
    {"imgname": "1.png", "query": "Sum?", "label": "3.5"},
]
VIZWIZ_ANSWERS = [{"answer": "basil", "answer_confidence": "yes"}] * 10

FILES: dict[str, dict[str, Any]] = {
    "textvqa": {
        "textvqa/TextVQA_0.5.1_train.json": {"data": [textvqa_row(1, "a1", "train")]},
        "textvqa/TextVQA_0.5.1_val.json": {"dataset_type": "val", "data": [textvqa_row(2, "b2", "val")]},
        "textvqa/train_images/a1.jpg": None,
        "textvqa/train_images/b2.jpg": None,
    },
    "gqa": {
        "gqa/testdev_balanced_questions.json": {
            "201307251": gqa_row("n1", "verify", "no"),
            "9": gqa_row("n1", "query", "sky"),
        },
        "gqa/images/n1.jpg": None,
    },
    "pope": {
        **{f"pope/coco_pope_{kind}.json": pope_lines("yes") for kind in ("random", "popular", "adversarial")},
        "coco/val2014/COCO_val2014_000000310196.jpg": None,
    },
    "vizwiz": {
        f"vizwiz/{part}.json": [
            {
                "image": f"VizWiz_{part}_00000000.jpg",
                "question": "what's this?",
                "answers": VIZWIZ_ANSWERS,
                "answer_type": "other",
                "answerable": 1,
            }
        ]
        for part in ("train", "val")
    }
    | {f"vizwiz/{part}/VizWiz_{part}_00000000.jpg": None for part in ("train", "val")},
    "scienceqa": {
        "scienceqa/problems.json": {
            "1": scienceqa_row("train", "image.png", 0),
            "2": scienceqa_row("val", "image.png", 1),
            "3": scienceqa_row("test", "image.png", 2),
            "4": scienceqa_row("test", None, 2),
        },
        **{
            f"scienceqa/images/{split}/{number}/image.png": None
            for split, number in (("train", 1), ("val", 2), ("test", 3))
        },
    },
    "docvqa": {
        **{f"docvqa/{split}/{split}_v1.0.json": docvqa_file(split) for split in ("train", "val")},
        **{f"docvqa/{split}/documents/{split}_1.png": None for split in ("train", "val")},
    },
    "chartqa": {
        **{
            f"chartqa/{part}/{part}_{kind}.json": CHART
            for part in ("train", "val", "test")
            for kind in ("human", "augmented")
        },
        **{f"chartqa/{part}/png/1.png": None for part in ("train", "val", "test")},
    },
}

# One sample of each: id, image, question, references, kind, and an answer that is right.
EXPECTED: dict[str, tuple[str, str, str, tuple[str, ...], str, str]] = {
    "textvqa": (
        "textvqa/TextVQA_0.5.1_val/2",
        "b2.jpg",
        "What is the brand of this phone?" + SHORT,
        tuple(TEN),
        "default",
        "Nokia",
    ),
    "gqa": ("gqa/9", "n1.jpg", "Is it overcast?" + SHORT, ("sky",), "query", "Sky."),
    "pope": (
        "pope/coco_pope_popular/2",
        "COCO_val2014_000000310196.jpg",
        "Is there a cat in the image?" + SHORT,
        ("yes",),
        "coco_pope_popular",
        "Yes",
    ),
    "vizwiz": (
        "vizwiz/val/VizWiz_val_00000000.jpg",
        "val/VizWiz_val_00000000.jpg",
        "What's this?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
        ("basil",) * 10,
        "other",
        "basil",
    ),
    "scienceqa": (
        "scienceqa/3",
        "test/3/image.png",
        "Context: Look at the picture.\nWhich is the main persuasive appeal?\nA. pathos\nB. ethos\nC. logos"
        "\nAnswer with the option's letter from the given choices directly.",
        ("C",),
        "language science",
        "C. logos",
    ),
    "docvqa": (
        "docvqa/val_v1.0/337",
        "val/documents/val_1.png",
        "What is the date?" + SHORT,
        ("1/8/93",),
        "default",
        "1/8/93",
    ),
    "chartqa": (
        "chartqa/test_human/1",
        "test/png/1.png",
        "How many bars?\nAnswer the question with a single word.",
        ("14",),
        "test_human",
        "14.2",
    ),
}


NUM_SAMPLES = {"textvqa": 2, "gqa": 2, "pope": 6, "vizwiz": 2, "scienceqa": 3, "docvqa": 2, "chartqa": 12}


def write_files(root: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (8, 6)).save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_task(name: str, *overrides: str) -> Task:
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose(overrides=[f"+task={name}", *overrides])
    return instantiate(config.task)


def read_all(task: Task) -> list[Sample]:
    return [sample for split in SPLITS for sample in task.samples(split)]


@pytest.mark.parametrize("name", list(EXPECTED))
def test_benchmark_in_its_published_layout(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path))
    write_files(tmp_path, FILES[name])
    task = make_task(name)
    samples = {sample.sample_id: sample for sample in read_all(task)}
    sample_id, image_id, question, references, kind, answer = EXPECTED[name]
    sample = samples[sample_id]
    assert (sample.image_id, sample.question) == (image_id, question)
    assert (sample.references, sample.attributes["kind"]) == (references, kind)
    assert score(sample.metric, answer, sample.references) == 1
    assert all(task.image(sample.image_id).size == (8, 6) for sample in samples.values())
    assert len(samples) == NUM_SAMPLES[name]
    assert [row["reason"] for row in task.skipped] == (["no image"] if name == "scienceqa" else [])


@pytest.mark.parametrize("name", ["textvqa", "vizwiz", "scienceqa", "docvqa", "chartqa"])
def test_published_divisions_are_kept(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path))
    write_files(tmp_path, FILES[name])
    task = make_task(name)
    assert EXPECTED[name][0] in {sample.sample_id for sample in task.samples("test")}
    images = {split: {sample.image_id for sample in task.samples(split)} for split in SPLITS}
    assert len(images["test"]) == 1
    assert len(images["train"] | images["calibration"]) == (2 if name in ("scienceqa", "chartqa") else 1)
    official = "test" if name in ("scienceqa", "chartqa") else "validation"
    assert find_official_split(task, None) == OfficialSplit(official, is_whole=True)
    # Of fewer images it is a part.
    assert find_official_split(task, 100) == OfficialSplit(official, is_whole=False)


@pytest.mark.parametrize(("name", "official"), [("gqa", "testdev balanced"), ("pope", "COCO")])
def test_what_is_divided_by_hash_is_a_part_of_the_official_split(tmp_path, monkeypatch, name, official):
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path))
    write_files(tmp_path, FILES[name])
    assert find_official_split(make_task(name), None) == OfficialSplit(official, is_whole=False)


def test_llavas_own_textvqa_file_with_ocr_tokens(tmp_path, monkeypatch):
    """Its question_id is the image's: its annotation is found by image and question, as LLaVA does."""
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path))
    other = textvqa_row(3, "b2", "val") | {"question": "What time is it?", "answers": ["12:10"] * 10}
    write_files(tmp_path, FILES["textvqa"])
    write_files(tmp_path, {"textvqa/TextVQA_0.5.1_val.json": {"data": [textvqa_row(2, "b2", "val"), other]}})
    prompts = [
        "what is the BRAND of this phone?\nReference OCR token: MIA, NOKIA" + SHORT,
        "Reference OCR token: 12:10\nWhat time is it?" + SHORT,
        "Who made it?" + SHORT,
    ]
    rows = [{"question_id": "b2", "image": "b2.jpg", "text": text, "category": "default"} for text in prompts]
    (tmp_path / "llava_textvqa_val_v051_ocr.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = make_task(
        "textvqa",
        f"task.questions={tmp_path}/llava_textvqa_val_v051_ocr.jsonl",
        f"task.references={tmp_path}/textvqa/TextVQA_0.5.1_val.json",
        "task.suffix=''",
        "task.image_name='{image}'",
        "task.capitalize=false",
    )
    # One file is divided by hash, whatever split the benchmark calls it.
    assert not find_official_split(task, None).is_whole
    samples = read_all(task)
    assert [(s.sample_id, s.question, s.references) for s in samples] == [
        ("textvqa/2", prompts[0], tuple(TEN)),
        ("textvqa/3", prompts[1], ("12:10",) * 10),
    ]
    assert [row["reason"] for row in task.skipped] == ["no references for this question"]


def test_llavas_own_scienceqa_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path))
    write_files(tmp_path, FILES["scienceqa"])
    conversations = [
        {"from": "human", "value": "<image>\nWhich?\nA. a\nB. b"},
        {"from": "gpt", "value": "The answer is A."},
    ]
    rows = [
        {"id": "3", "image": "3/image.png", "conversations": conversations},
        {"id": "4", "conversations": conversations},
    ]
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(rows, indent=1))
    task = make_task(
        "scienceqa",
        f"task.questions={tmp_path}/llava_test_CQM-A.json",
        f"task.references={tmp_path}/scienceqa/problems.json",
        f"task.images={tmp_path}/scienceqa/images/test",
        "task.image_name='{image}'",
        "~task.fields",
    )
    (sample,) = read_all(task)
    assert (sample.sample_id, sample.image_id, sample.references) == ("scienceqa/3", "3/image.png", ("C",))
    assert sample.question.startswith("Which?\nA. a")
    assert task.image(sample.image_id).size == (8, 6)
    assert [row["reason"] for row in task.skipped] == ["no image"]


def test_missing_data_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path))
    (tmp_path / "gqa" / "images").mkdir(parents=True)
    with pytest.raises(InstantiationException, match=r"no file .*gqa/testdev_balanced_questions.json"):
        make_task("gqa")


def test_easy_vqa_config():
    assert make_task("easy_vqa", "task.calibration_fraction=0.2").name == "easy_vqa"
