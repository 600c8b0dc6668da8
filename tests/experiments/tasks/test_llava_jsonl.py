"""llava_jsonl: rows become samples, images stay in one split, questions are asked as the arguments say."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.tasks.base import SPLITS, Sample, Task
from experiments.tasks.images import UnreadableImage
from tests.experiments.tasks.question_files import GOOD, make_task, read_all, write_lines


def rows_on_images(num_images: int, **more: Any) -> list[dict[str, Any]]:
    """Three questions on each image, interleaved, as files often are."""
    return [
        {
            "question_id": 3 * image + turn,
            "image": f"{image}.png",
            "text": f"Question {turn}?",
            "answer": "yes",
            **more,
        }
        for turn in range(3)
        for image in range(num_images)
    ]


def test_a_good_row_is_a_sample(tmp_path):
    task = make_task(tmp_path, [GOOD], fractions={"test": 1.0})
    assert isinstance(task, Task)
    assert list(task.samples("test")) == [
        Sample(
            sample_id="mine/7",
            image_id="a.png",
            task="mine",
            split="test",
            question="What is this?\nShort.",
            references=("a cat",),
            metric="exact",
            attributes={"kind": "animals"},
        )
    ]
    assert task.skipped == []


def test_images_are_opened_in_the_folder_only(tmp_path):
    task = make_task(tmp_path, [GOOD, {**GOOD, "question_id": 8, "image": "../secret.png"}])
    for path in (tmp_path / "images" / "a.png", tmp_path / "secret.png"):
        Image.new("L", (4, 3)).save(path)
    assert len(read_all(task)) == 2
    assert task.image("a.png").size == (4, 3) and task.image("a.png").mode == "RGB"
    with pytest.raises(UnreadableImage, match="leads out"):
        task.image("../secret.png")
    with pytest.raises(UnreadableImage, match="too large"):
        make_task(tmp_path, [GOOD], max_pixels=11).image("a.png")
    (tmp_path / "images" / "folder.png").mkdir()
    with pytest.raises(UnreadableImage, match=r"'folder\.png': not a file$"):
        task.image("folder.png")


def assert_divided(samples: list[Sample]) -> dict[str, set[str]]:
    images: dict[str, set[str]] = {split: set() for split in SPLITS}
    previous = None
    for sample in samples:
        if sample.image_id != previous:
            assert sample.image_id not in images[sample.split], "questions of one image lie apart"
        images[sample.split].add(sample.image_id)
        previous = sample.image_id
    assert sum(map(len, images.values())) == len(set().union(*images.values())), "an image is in two splits"
    return images


def test_images_are_divided_by_hash(tmp_path):
    task = make_task(tmp_path, rows_on_images(300), fractions={"train": 0.5, "calibration": 0.2, "test": 0.3})
    images = assert_divided(read_all(task))
    assert [len(images[split]) / 300 for split in SPLITS] == pytest.approx([0.5, 0.2, 0.3], abs=0.08)
    other = make_task(
        tmp_path, rows_on_images(300), fractions={"train": 0.5, "calibration": 0.2, "test": 0.3}, seed=1
    )
    assert assert_divided(read_all(other)) != images


def test_one_image_under_two_names_is_one_image(tmp_path):
    names = ["x/a.png", "x//a.png", "./x/a.png", "x/y/../a.png"]
    samples = read_all(
        make_task(tmp_path, [{**GOOD, "question_id": i, "image": n} for i, n in enumerate(names)])
    )
    assert {sample.image_id for sample in samples} == {"x/a.png"} and len(samples) == 4


def test_own_splits_are_kept(tmp_path):
    lines = [
        {**row, "split": split}
        for index, split in enumerate(["train", "val", "test"])
        for row in [{**GOOD, "question_id": index, "image": f"{index}.png"}]
    ]
    task = make_task(tmp_path, lines)
    assert {split: [s.image_id for s in task.samples(split)] for split in SPLITS} == {
        "train": ["0.png"],
        "calibration": ["1.png"],
        "test": ["2.png"],
    }


def test_calibration_is_carved_from_an_own_train_split(tmp_path):
    train = rows_on_images(200, split="train")
    test = [{**GOOD, "question_id": f"t{i}", "image": f"t{i}.png", "split": "test"} for i in range(50)]
    images = assert_divided(
        read_all(make_task(tmp_path, test + train, fractions={"train": 0.6, "calibration": 0.2, "test": 0.2}))
    )
    assert images["test"] == {f"t{i}.png" for i in range(50)}
    assert len(images["calibration"]) == pytest.approx(50, abs=20)


def test_an_image_that_comes_back_with_another_split_is_skipped(tmp_path):
    lines = [{**GOOD, "split": "train"}, {**GOOD, "question_id": 8, "split": "test"}]
    task = make_task(tmp_path, lines, fractions={"train": 1.0})
    assert [sample.sample_id for sample in read_all(task)] == ["mine/7"]
    assert task.skipped == [
        {
            "file": "questions.jsonl",
            "line": 2,
            "sample_id": "mine/8",
            "reason": "image 'a.png' came before with split train",
        }
    ]


def test_files_can_be_the_division(tmp_path):
    files = {
        split: write_lines(tmp_path / f"{split}.jsonl", [{**GOOD, "image": f"{split}.png"}])
        for split in ("train", "test")
    }
    task = make_task(tmp_path, [], questions=files, fractions={"train": 1.0})
    assert [(s.sample_id, s.split, s.image_id) for s in read_all(task)] == [
        ("mine/train/7", "train", "train.png"),
        ("mine/test/7", "test", "test.png"),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "question_id": st.one_of(st.integers(0, 9), st.text(max_size=3), st.none()),
                "image": st.sampled_from(["a.png", "./a.png", "b.png", "../c.png", "", ".", None, 3, True]),
                "text": st.one_of(st.text(max_size=5), st.none(), st.integers()),
                "answer": st.one_of(
                    st.text(max_size=3), st.integers(), st.lists(st.text(max_size=2), max_size=2), st.none()
                ),
                "split": st.sampled_from(["train", "test", "val", "dev", 1, None]),
                "category": st.one_of(st.text(max_size=3), st.floats(), st.lists(st.integers(), max_size=1)),
            },
        ),
        max_size=15,
    )
)
def test_any_rows_give_samples_and_reasons_and_nothing_else(tmp_path, lines):
    """Every row is either a sample or skipped, once; images are divided; ids are distinct."""
    task = make_task(tmp_path, [*lines, {**GOOD, "question_id": "good"}])
    samples = read_all(task)
    assert_divided(samples)
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert len(samples) + len(task.skipped) == len(lines) + 1
    again = make_task(tmp_path, [*lines, {**GOOD, "question_id": "good"}])
    assert read_all(again) == samples and again.skipped == task.skipped


def test_question_with_context_choices_and_suffix(tmp_path):
    row = {**GOOD, "text": "Which?", "hint": "Look.", "choices": ["cat", "dog"], "answer": 1}
    task = make_task(
        tmp_path,
        [row],
        metric="multiple_choice_letter",
        fields={"choices": "choices", "context": "hint"},
        suffix="\nAnswer with the option's letter.",
    )
    question = "Context: Look.\nWhich?\nA. cat\nB. dog\nAnswer with the option's letter."
    assert [sample.question for sample in read_all(task)] == [question]


def test_image_placeholders_are_taken_out(tmp_path):
    """The prompt has its own: another would ask the model for a second image."""
    rows_ = [
        {**GOOD, "text": "<image>\nWhat is this?"},
        {**GOOD, "question_id": 8, "text": "What is this?\n<image>"},
    ]
    assert [sample.question for sample in read_all(make_task(tmp_path, rows_))] == ["What is this?"] * 2


def test_answers_that_no_model_can_give_are_skipped(tmp_path):
    answers = ["an <image>", 10**400, float("inf"), 10**5000 + 1]
    rows_ = [{**GOOD, "question_id": number, "answer": answer} for number, answer in enumerate(answers[:3])]
    task = make_task(tmp_path, [*rows_, {**GOOD, "question_id": 9}], max_chars=300)
    assert [sample.sample_id for sample in read_all(task)] == ["mine/9"]
    reasons = [row["reason"] for row in task.skipped]
    assert len(reasons) == 3 and "<image>, which no answer can" in reasons[0]


def test_llava_training_format(tmp_path):
    row = {
        "id": "x1",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "a cat"},
        ],
    }
    sample = read_all(make_task(tmp_path, [row]))[0]
    assert (sample.sample_id, sample.question, sample.references) == ("mine/x1", "What is this?", ("a cat",))


def test_fields_can_be_named(tmp_path):
    row = {
        "n": {"id": 5},
        "pic": 12,
        "ask": "What?",
        "gold": {"short": "x"},
        "types": {"structural": "query"},
    }
    fields = {
        "question_id": "n.id",
        "image": "pic",
        "question": "ask",
        "references": "gold.short",
        "kind": "types.structural",
    }
    sample = read_all(make_task(tmp_path, [row], fields=fields, image_name="COCO_{image:012d}.jpg"))[0]
    assert (sample.sample_id, sample.image_id) == ("mine/5", "COCO_000000000012.jpg")
    assert (sample.question, sample.references, sample.attributes["kind"]) == ("What?", ("x",), "query")


def test_nothing_of_a_row_is_evaluated(tmp_path):
    """A format string in the data stays data."""
    row = {**GOOD, "image": "{question_id.__class__}.png", "text": "{0.__class__} ${oc.env:HOME} %s"}
    sample = read_all(make_task(tmp_path, [row]))[0]
    assert (sample.image_id, sample.question) == (row["image"], row["text"])


def test_image_name_that_does_not_fit_a_row_is_its_reason(tmp_path):
    task = make_task(tmp_path, [GOOD, {**GOOD, "question_id": 8, "page": 2}], image_name="{page}/{image}")
    assert [sample.image_id for sample in read_all(task)] == ["2/a.png"]
    assert "does not fit the row: 'page'" in task.skipped[0]["reason"]


def test_kinds_are_counted(tmp_path):
    lines = [{**GOOD, "question_id": i, "category": kind} for i, kind in enumerate(["a", "b", "a", None, 3])]
    kinds = Counter(sample.attributes["kind"] for sample in read_all(make_task(tmp_path, lines)))
    assert kinds == {"a": 2, "b": 1, "default": 1, "3": 1}


def test_the_fingerprint_knows_content_and_arguments_but_no_place(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = make_task(tmp_path / "one", [GOOD]).fingerprint
    assert make_task(tmp_path / "two", [GOOD]).fingerprint == first
    others = [
        make_task(tmp_path / "two", [{**GOOD, "answer": "dog"}]),
        make_task(tmp_path / "one", [GOOD], suffix="x"),
        make_task(tmp_path / "one", [GOOD], metric="anls"),
        make_task(tmp_path / "one", [GOOD], fields={"kind": "text"}),
    ]
    prints = [first, *(task.fingerprint for task in others)]
    assert len(set(prints)) == len(prints)
    for arguments in ({"seed": 1}, {"fractions": {"test": 1.0}}):
        divided = make_task(tmp_path / "one", [GOOD], **arguments)
        assert divided.fingerprint == first
        assert divided.division != make_task(tmp_path / "one", [GOOD]).division


def test_the_fingerprint_stays(tmp_path):
    """Recorded values: labels that are there must not become those of other data."""
    assert make_task(tmp_path, [GOOD]).fingerprint == "a7b7ab7f9cd93e5a"
    named = make_task(tmp_path, [GOOD], fields={"question": "text", "kind": None}, suffix="x")
    assert named.fingerprint == "275bc93fc8c68b52"


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"questions": "nowhere.jsonl"}, FileNotFoundError, "no file nowhere.jsonl"),
        ({"references": "nowhere.json"}, FileNotFoundError, "no file nowhere.json"),
        ({"images": "nowhere"}, NotADirectoryError, "task mine: no image folder nowhere"),
        ({"metric": "bleu"}, ValueError, "unknown metric 'bleu'"),
        ({"fields": {"answer": "x"}}, ValueError, "unknown field 'answer': fields are question_id"),
        ({"fractions": {"train": 0.5}}, ValueError, "sum to 1"),
        ({"questions": {"dev": "x.jsonl"}}, ValueError, "unknown split 'dev'"),
    ],
)
def test_mistakes_in_arguments_are_named(tmp_path, arguments, error, complaint):
    with pytest.raises(error, match=complaint):
        make_task(tmp_path, [GOOD], **arguments)


def test_a_file_given_twice_is_refused(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [GOOD])
    with pytest.raises(ValueError, match="give each file once"):
        make_task(tmp_path, [], questions=[path, path])


def test_orientation_is_applied_only_if_asked_for(tmp_path):
    """EXIF orientation 6: the camera was turned by a quarter."""
    task = make_task(tmp_path, [GOOD])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "a.png", exif=exif)
    turned = make_task(tmp_path, [GOOD], apply_orientation=True)
    assert task.image("a.png").size == (30, 20)
    assert turned.image("a.png").size == (20, 30)
    assert task.fingerprint != turned.fingerprint
