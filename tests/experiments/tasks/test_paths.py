"""Paths as data and people write them: other forms of a name, and what is missing."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from experiments.tasks.images import UnreadableImage
from tests.experiments.tasks.question_files import GOOD, make_task, read_all, write_lines

NFC, NFD = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


@pytest.mark.parametrize(
    ("there", "written"),
    [
        (NFC, NFD),
        (NFD, NFC),
        (NFC, NFC),
        (NFD, NFD),
        ("sub/a.png", "sub\\a.png"),
        ("a.png", ".\\a.png"),
        (f"sub/{NFD}", f"sub\\{NFC}"),
        ("back\\slash.png", "back\\slash.png"),
    ],
)
def test_an_image_is_found_under_its_other_form_and_has_one_id(tmp_path, there, written):
    save_image(tmp_path / "images" / there)
    rows = [{**GOOD, "image": written}, {**GOOD, "question_id": 8, "image": there}]
    task = make_task(tmp_path, rows)
    samples = read_all(task)
    assert [sample.image_id for sample in samples] == [there, there]
    assert task.image(samples[0].image_id).size == (4, 3)


@pytest.mark.parametrize(
    "written", ["..\\secret.png", "sub\\..\\..\\secret.png", "C:\\secret.png", f"../{NFC}"]
)
def test_no_other_form_leads_out_of_the_folder(tmp_path, written):
    save_image(tmp_path / "secret.png")
    save_image(tmp_path / NFD)
    task = make_task(tmp_path, [{**GOOD, "image": written}])
    (sample,) = read_all(task)
    with pytest.raises(UnreadableImage) as error:
        task.image(sample.image_id)
    assert "there is" not in str(error.value)


@pytest.mark.parametrize(
    ("there", "written"),
    [
        ("Upper.PNG", "upper.png"),
        ("a.png", "a.png "),
        ("a.png", "images/a.png"),
        ("a.png", "/data/images/a.png"),
        ("sub/a.png", "train/sub/a.png"),
        ("a b.png", "a%20b.png"),
        ("a.png", "a.jpg"),
        ("sub/a.png", "sub/A.jpeg"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_one_that_is(tmp_path, there, written):
    save_image(tmp_path / "images" / there)
    task = make_task(tmp_path, [GOOD])
    with pytest.raises(UnreadableImage) as error:
        task.image(written)
    assert str(error.value).endswith(f"; there is {there!r}")


def test_a_damaged_image_is_not_said_to_be_elsewhere(tmp_path):
    task = make_task(tmp_path, [GOOD])
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableImage) as error:
        task.image("a.png")
    assert "there is" not in str(error.value)


def test_all_that_is_missing_is_named_at_once(tmp_path):
    names = {"questions": ["q1.jsonl", "q2.jsonl"], "references": "r.json", "images": "pictures"}
    with pytest.raises(FileNotFoundError) as error:
        make_task(tmp_path, [GOOD], **names)
    assert str(error.value) == (
        "task mine: no file q1.jsonl; no file q2.jsonl; no file r.json; no image folder pictures; "
        "give the right paths with task.questions=... and task.references=... and task.images=..."
    )


def test_the_nearest_name_is_offered(tmp_path):
    (tmp_path / "holiday" / "images").mkdir(parents=True)
    write_lines(tmp_path / "holiday" / "questions.jsonl", [GOOD])
    with pytest.raises(FileNotFoundError) as error:
        make_task(
            tmp_path,
            [],
            questions=tmp_path / "holiday" / "question.jsonl",
            images=tmp_path / "holidays" / "images",
        )
    assert f"question.jsonl (there is {tmp_path}/holiday/questions.jsonl)" in str(error.value)
    assert f"no image folder {tmp_path}/holidays/images (there is {tmp_path}/holiday)" in str(error.value)


def test_the_variable_of_benchmarks_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENSCALE_DATA", str(tmp_path / "data"))
    with pytest.raises(
        NotADirectoryError, match=r"the environment variable TOKENSCALE_DATA \(now .*/data\), or"
    ):
        make_task(tmp_path, [GOOD], images=tmp_path / "data" / "gqa" / "images")
