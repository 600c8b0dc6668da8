"""Small data sets in the layout and with the columns in which lmms-eval's tasks find theirs on the hub."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Images

STRING, INT = Value("string"), Value("int64")


def paint(number: int) -> Images.Image:
    """Return an image of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (24 + number, 40, 3), dtype=np.uint8)
    return Images.fromarray(pixels)


def encode(image: Images.Image) -> str:
    """Return a PNG file in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write(path: Path, rows: list[dict[str, Any]], readme: str = "", **types: Any) -> Path:
    """Write rows as a Parquet file of a data set, whose folder has a README if it names configurations.

    Columns are text, and `image` an image, unless `types` says otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {
        **dict.fromkeys(rows[0], STRING),
        **({"image": Image()} if "image" in rows[0] else {}),
        **types,
    }
    Dataset.from_list(rows, features=Features(features)).to_parquet(str(path))
    folder = path.parents[1]
    if readme:
        (folder / "README.md").write_text(f"---\nconfigs:\n{readme}---\n")
    return folder


def configuration(name: str, split: str, path: str) -> str:
    return f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"


def write_textvqa(root: Path) -> Path:
    rows = [
        {
            "image_id": f"image{number // 2}",
            "question_id": number,
            "question": f"what does sign {number} say?",
            "image": paint(number // 2),
            "answers": ["stop"] * 6 + ["STOP sign"] * 3 + ["go"] if number % 2 else ["7"] * 2 + ["seven"] * 8,
            "ocr_tokens": ["stop"],
            "set_name": "val",
        }
        for number in range(12)
    ]
    path = root / "textvqa" / "data" / "validation-00000-of-00001.parquet"
    lists = {"answers": List(STRING), "ocr_tokens": List(STRING)}
    return write(path, rows, question_id=Value("int32"), **lists)


def write_documents(root: Path, name: str, config: str) -> Path:
    """DocVQA, or InfographicVQA, which lies in the same repository."""
    rows: list[dict[str, Any]] = [
        {
            "questionId": str(100 + number),
            "question": f"What is the date on page {number}?",
            "image": paint(number // 3),
            "answers": ["January 8, 1993", "1/8/93"] if number % 2 else ["$1,250"],
            "data_split": "val",
        }
        for number in range(12)
    ]
    types: dict[str, Any] = {"answers": List(STRING)}
    if config == "DocVQA":
        types["question_types"] = List(STRING)
        rows = [
            row | {"question_types": ["form", "layout"][: 1 + number % 2]} for number, row in enumerate(rows)
        ]
    else:
        types |= {"answer_type": List(STRING), "operation/reasoning": List(STRING)}
        extra = {"answer_type": ["single span"], "operation/reasoning": [], "ocr": "{}"}
        rows = [row | extra for row in rows]
    path = root / name / config / "validation-00000-of-00001.parquet"
    return write(path, rows, configuration(config, "validation", f"{config}/validation-*"), **types)


def write_chartqa(root: Path) -> Path:
    rows = [
        {
            "type": "human_test" if number % 2 else "augmented_test",
            "question": f"What is bar {number}?",
            "answer": ["100", "Japan", "12%", "0.5"][number % 4],
            "image": paint(number // 2),
        }
        for number in range(12)
    ]
    return write(root / "chartqa" / "data" / "test-00000-of-00001.parquet", rows)


def write_ai2d(root: Path) -> Path:
    rows = [
        {
            "question": f"What does label {number} stand for?",
            "options": ["root", "leaf", "stem", "flower"],
            "answer": str(number % 4),
            "image": paint(number // 2),
        }
        for number in range(12)
    ]
    path = root / "ai2d" / "data" / "test-00000-of-00001.parquet"
    return write(path, rows, options=List(STRING))


def write_pope(root: Path) -> Path:
    rows = [
        {
            "id": str(number),
            "question_id": str(number),
            "question": f"Is there a cat in image {number // 6}?",
            "answer": "yes" if number % 2 else "no",
            "image_source": f"COCO_val2014_{number // 6:012d}",
            "image": paint(number // 6),
            "category": ("adversarial", "popular", "random")[number % 3],
        }
        for number in range(18)
    ]
    return write(root / "pope" / "data" / "test-00000-of-00001.parquet", rows)


def write_ocrbench(root: Path) -> Path:
    rows = [
        {
            "dataset": "HME100k" if number % 4 == 3 else "IIIT5K",
            "question": "What is written in the image?",
            "question_type": "Regular Text Recognition",
            "answer": ["CENTRE", "center"] if number % 2 else ["a + b"],
            "image": paint(number),
        }
        for number in range(10)
    ]
    path = root / "ocrbench" / "data" / "test-00000-of-00001.parquet"
    return write(path, rows, answer=List(STRING))


def write_vstar_bench(root: Path) -> Path:
    rows = [
        {
            "image": paint(number),
            "text": f"What color is bag {number}? (A) red (B) green (C) blue (D) black",
            "category": "direct_attributes" if number % 2 else "relative_position",
            "label": "ABCD"[number % 4],
            "question_id": str(number),
        }
        for number in range(10)
    ]
    return write(root / "vstar_bench" / "data" / "test-00000-of-00001.parquet", rows)


def write_mmstar(root: Path) -> Path:
    rows = [
        {
            "index": number,
            "question": f"Which option?\nOptions: A: one, B: two, C: three, D: {number}",
            "image": paint(number),
            "answer": "ABCD"[number % 4],
            "category": "math" if number % 2 else "coarse perception",
            "l2_category": "geometry" if number % 2 else "image emotion",
        }
        for number in range(10)
    ]
    path = root / "mmstar" / "data" / "mmstar.parquet"
    return write(path, rows, configuration("val", "val", "data/mmstar.parquet"), index=INT)


def write_mmbench(root: Path) -> Path:
    """Questions with their rotations, whose index is larger by millions."""
    rows = [
        {
            "index": number + 1_000_000 * turn,
            "question": f"What is shown in {number}?",
            "hint": "nan",
            "answer": "AB"[(number + turn) % 2],
            "A": "dog" if turn == 0 else "cat",
            "B": "cat" if turn == 0 else "dog",
            "C": "nan",
            "D": "nan",
            "category": "object_localization",
            "image": paint(number),
            "source": "reasoning",
            "L2-category": "finegrained_perception",
            "comment": "nan",
            "split": "dev",
        }
        for number in range(6)
        for turn in range(2)
    ]
    path = root / "mmbench" / "en" / "dev-00000-of-00001.parquet"
    return write(path, rows, configuration("en", "dev", "en/dev-*"), index=INT)


def write_seedbench(root: Path) -> Path:
    rows = [
        {
            "answer": "ABCD"[number % 4],
            "choice_a": "one",
            "choice_b": "two",
            "choice_c": "three",
            "choice_d": "four",
            "data_id": [str(number)],
            "data_type": "video" if number == 9 else "image",
            "question": f"How many towels are there in {number}?",
            "question_id": str(number),
            "question_type_id": 5,
            "image": [paint(number)] * (8 if number == 9 else 1),
            "segment": [],
        }
        for number in range(10)
    ]
    path = root / "seedbench" / "data" / "test-00000-of-00001.parquet"
    lists = {"data_id": List(STRING), "image": List(Image()), "segment": List(INT)}
    return write(path, rows, question_type_id=Value("int16"), **lists)


def write_mmmu(root: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for number in range(10):
        is_open = number % 5 == 4
        rows.append(
            {
                "id": f"validation_{'Math' if number % 2 else 'Art'}_{number}",
                "question": f"<image 1> What is {number}?" + (" <image 2>" if number == 3 else ""),
                "options": "[]" if is_open else "['first', 'second', 'third', 'fourth']",
                "explanation": "",
                "image_1": paint(number),
                "image_2": paint(20 + number) if number == 3 else None,
                **{f"image_{other}": None for other in range(3, 8)},
                "img_type": "['Diagrams']",
                "answer": "42" if is_open else "ABCD"[number % 4],
                "topic_difficulty": "Easy",
                "question_type": "open" if is_open else "multiple-choice",
                "subfield": "Geometry",
            }
        )
    path = root / "mmmu" / "data" / "validation-00000-of-00001.parquet"
    return write(path, rows, **{f"image_{place}": Image() for place in range(1, 8)})


def write_realworldqa(root: Path) -> Path:
    rows = [
        {
            "image": paint(number),
            "question": f"Which way does car {number} turn?\nA. Left\nB. Right\nC. Straight",
            "answer": "ABC"[number % 3] if number % 4 else "3",
            "image_path": f"{number}.webp",
        }
        for number in range(10)
    ]
    return write(root / "realworldqa" / "data" / "test-00000-of-00001.parquet", rows)


def write_hrbench(root: Path) -> Path:
    """Images in base64, each question in two orders of its choices."""
    rows = [
        {
            "index": number,
            "question": f"What is the number on sign {number // 2}?",
            "answer": "AB"[number % 2],
            "category": "single" if number < 6 else "cross",
            **dict(zip("ABCD", ("1", "2", "3", "4"), strict=True)),
            "cycle_category": str(number % 2),
            "image": encode(paint(number // 2)),
        }
        for number in range(12)
    ]
    path = root / "hrbench" / "data" / "hr_bench_4k.parquet"
    name = "hrbench_version_split"
    readme = configuration(name, "hrbench_4k", "data/hr_bench_4k.parquet")
    return write(path, rows, readme, index=INT, image=STRING)


def write_gqa(root: Path) -> Path:
    """Questions and images in two configurations; the task reads the images from lmms-lab-encoder/GQA."""
    rows = [
        {
            "id": str(number),
            "imageId": f"n{number // 3}",
            "question": f"Is sign {number} left of the door?",
            "answer": "yes" if number % 2 else "no",
            "types": {"structural": "verify" if number % 2 else "query"},
        }
        for number in range(12)
    ]
    folder = root / "lmms-lab-encoder" / "GQA"
    names = ("testdev_balanced_instructions", "testdev_balanced_images")
    write(folder / names[0] / "testdev.parquet", rows, types={"structural": STRING})
    images = [{"id": f"n{number}", "image": paint(number)} for number in range(4)]
    readme = "".join(configuration(name, "testdev", f"{name}/testdev.parquet") for name in names)
    return write(folder / names[1] / "testdev.parquet", images, readme)


def write_scienceqa(root: Path) -> Path:
    rows = [
        {
            "image": paint(number),
            "question": f"Which part is {number}?",
            "choices": ["root", "leaf", "stem"],
            "answer": number % 3,
            "hint": "" if number % 2 else "Look at the plant.",
            "subject": "natural science",
        }
        for number in range(10)
    ]
    path = root / "scienceqa" / "ScienceQA-IMG" / "test-00000-of-00001.parquet"
    readme = configuration("ScienceQA-IMG", "test", "ScienceQA-IMG/test-*")
    return write(path, rows, readme, choices=List(STRING), answer=Value("int8"))


def write_vizwiz(root: Path) -> Path:
    rows = [
        {
            "question_id": f"VizWiz_val_{number:08d}.jpg",
            "image": paint(number),
            "question": f"what is can {number}?",
            "answers": ["soup"] * 7 + ["tomato soup"] * 2 + ["unanswerable"],
            "category": "other",
        }
        for number in range(10)
    ]
    path = root / "vizwiz" / "data" / "val-00000-of-00001.parquet"
    return write(path, rows, answers=List(STRING))


def write_vmcbench(root: Path) -> Path:
    rows = [
        {
            "index": number,
            "question": f"What does line {number} say?",
            **dict(zip("ABCD", ("one", "two", "three", "four"), strict=True)),
            "answer": "ABCD"[number % 4],
            "category": "TextVQA" if number % 2 else "MathVista",
            "image": paint(number),
        }
        for number in range(10)
    ]
    return write(root / "vmcbench" / "data" / "dev-00000-of-00001.parquet", rows, index=INT)


METADATA = ("language", "source", "category", "task", "context", "grade")


def write_mathvista(root: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "pid": str(number),
            "question": f"How many bars are there in {number}?",
            "image": f"images/{number}.jpg",
            "decoded_image": paint(number),
            "choices": ["123", "10", "4567"] if number % 2 else None,
            "unit": None,
            "precision": None,
            "answer": "10" if number % 2 else "7",
            "question_type": "multi_choice" if number % 2 else "free_form",
            "answer_type": "text" if number % 2 else "integer",
            "metadata": {"split": "testmini", **dict.fromkeys(METADATA, "figure"), "skills": ["counting"]},
            "query": f"How many bars are there in {number}?",
        }
        for number in range(10)
    ]
    path = root / "mathvista" / "data" / "testmini-00000-of-00001.parquet"
    types: dict[str, Any] = {"choices": List(STRING), "metadata": dict.fromkeys(METADATA, STRING)}
    types["metadata"] |= {"split": STRING, "skills": List(STRING)}
    return write(path, rows, image=STRING, decoded_image=Image(), precision=Value("float64"), **types)
