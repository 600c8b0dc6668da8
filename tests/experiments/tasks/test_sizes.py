"""Small data: what is refused before labelling, what a banner says, what is shown of many types."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from experiments.evaluation.needs import describe_left_out, pick_frequent, split_by_type
from experiments.labels.division import check_labels, find_label_banners
from experiments.reporting.failures_display import pick_failures
from experiments.reporting.type_tables import tabulate_types
from experiments.tasks.base import Split
from experiments.tasks.sizes import check_task, find_banners, frame_banners
from m3_backbone.outcomes.manifest import list_images
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.experiments.tasks.question_files import make_task
from tests.predictor.synthetic import make_labels, write_labels

NO_LIMIT = dict.fromkeys(("train", "calibration", "test"))


def make_own(folder, num_images, **arguments):
    lines = [
        {"question_id": number, "image": f"{number % num_images}.png", "text": "What?", "answer": "a"}
        for number in range(2 * num_images)
    ]
    task = make_task(folder, lines, **arguments)
    for number in range(num_images):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{number}.png")
    return task


@pytest.mark.parametrize(
    ("num_images", "message"),
    [
        (
            12,
            "12 images give 7 train / 1 calibration / 4 test; at least 8 of each are needed: bring at least "
            "26 images and set task.fractions='{train: 0.4, calibration: 0.3, test: 0.3}', or go on with "
            "allow_small=true",
        ),
        (
            30,
            "30 images give 18 train / 3 calibration / 9 test; at least 8 of each are needed: set "
            "task.fractions='{train: 0.4, calibration: 0.3, test: 0.3}' or bring more images, or go on with "
            "allow_small=true",
        ),
        (
            24,
            "24 images give 15 train / 2 calibration / 7 test; at least 8 of each are needed: set "
            "task.fractions='{train: 0.34, calibration: 0.33, test: 0.33}' or bring more images, or go on "
            "with allow_small=true",
        ),
    ],
)
def test_the_message_has_the_numbers_and_a_way_out_that_works(tmp_path, num_images, message):
    with pytest.raises(ValueError) as refusal:
        check_task(make_own(tmp_path, num_images), NO_LIMIT)
    assert str(refusal.value) == message
    check_task(make_own(tmp_path, num_images), NO_LIMIT, allow_small=True)


@pytest.mark.parametrize(
    ("num_images", "fractions"),
    [
        (26, {"train": 0.4, "calibration": 0.3, "test": 0.3}),
        (24, {"train": 0.34, "calibration": 0.33, "test": 0.33}),
    ],
)
def test_the_suggested_division_is_accepted(tmp_path, num_images, fractions):
    check_task(make_own(tmp_path, num_images, fractions=fractions), NO_LIMIT)


def test_no_way_out_is_named_that_is_refused_too(tmp_path):
    """Training takes one image and validation another, so three images are too few even to try."""
    task = make_own(tmp_path, 3)
    with pytest.raises(ValueError) as refusal:
        check_task(task, NO_LIMIT)
    assert "allow_small" not in str(refusal.value)
    with pytest.raises(ValueError, match="even with allow_small=true 2 train / 1 calibration / 1 test"):
        check_task(task, NO_LIMIT, allow_small=True)


def test_a_split_that_is_not_asked_for_is_no_mistake(tmp_path):
    task = make_own(tmp_path, 120, fractions={"test": 1.0})
    check_task(task, NO_LIMIT)
    task = make_own(tmp_path, 120)
    check_task(task, {**NO_LIMIT, "test": 0})
    with pytest.raises(ValueError, match=r"/ 0 test; at least 8 of each are needed: raise limit\.test$"):
        check_task(task, {**NO_LIMIT, "test": 0}, needed=("train", "calibration", "test"))
    with pytest.raises(ValueError, match=r"raise limit\.train and limit\.calibration, or"):
        check_task(task, {"train": 2, "calibration": 7, "test": None})


def test_labels_are_counted_in_images_without_reading_outcomes(tmp_path):
    sizes: dict[Split, int] = {"train": 30, "calibration": 7, "test": 40}
    write_labels(tmp_path / "labels", {split: make_labels(size, 0) for split, size in sizes.items()})
    for path in (tmp_path / "labels" / "outcomes").iterdir():
        path.unlink()
    folder = tmp_path / "labels"
    assert {split: len(list_images(folder, split)) for split in sizes} == sizes
    check_labels(folder, ("train", "test"), allow_small=False)
    check_labels(folder, ("train", "calibration", "test"), allow_small=True)
    with pytest.raises(ValueError, match="are about 7 calibration images; at least 8 are needed"):
        check_labels(folder, ("calibration",), allow_small=False)
    texts = [banner.text.split(":")[0] for banner in find_label_banners(folder, ("train", "test"), "mine")]
    assert texts == ["40 test images of mine"]  # 30 images with 4 questions each are 120 training samples


@pytest.mark.parametrize(
    ("number", "start", "is_loud"),
    [(1, "Only 1 test image: ", True), (29, "Only 29 test images: ", True), (30, "30 test images: ", False)],
)
def test_banners(number, start, is_loud):
    (banner,) = find_banners(test_images=number, calibration_images=100, training_samples=5000)
    assert banner.text.startswith(start) and banner.is_loud == is_loud
    lines = frame_banners([banner]).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == (3 if is_loud else 1)


def test_loud_banners_come_first_and_many_images_need_none():
    assert find_banners(test_images=100, calibration_images=100, training_samples=100) == []
    assert frame_banners([]) == ""
    loud = [banner.is_loud for banner in find_banners(test_images=99, calibration_images=1)]
    assert loud == [True, False]


def test_the_most_frequent_types_are_shown_in_their_order():
    assert pick_frequent({"a": 1, "b": 3, "c": 2, "d": 3}, most=2) == ["b", "d"]
    assert pick_frequent({"a": 1, "b": 1, "c": 1}, most=2) == ["a", "b"]
    assert pick_frequent({"a": 1, "b": 1}, most=2) == ["a", "b"]
    assert describe_left_out(50) == ""
    assert describe_left_out(2360) == "The 50 most frequent of 2,360 question types are shown."


@pytest.mark.parametrize(
    ("num_images", "counts"), [(3, (1, 1, 1)), (12, (7, 1, 4)), (100, (60, 10, 30)), (199, (119, 20, 60))]
)
def test_few_images_are_divided_by_rounded_counts(tmp_path, num_images, counts):
    """By largest remainders (199 images are 119.4, 19.9 and 59.7), with an image in every split."""
    task = make_own(tmp_path, num_images)
    splits = ("train", "calibration", "test")
    images = [{sample.image_id for sample in task.samples(split)} for split in splits]
    assert tuple(map(len, images)) == counts
    assert len(set.union(*images)) == num_images


def test_a_calibration_split_is_carved_out_of_few_train_images(tmp_path):
    """A seventh of 21 train images; rows that name their splits leave no fractions to set."""
    lines = [
        {"question_id": number, "image": f"{number}.png", "text": "What?", "answer": "a"}
        | {"split": "train" if number < 21 else "test"}
        for number in range(30)
    ]
    task = make_task(tmp_path, lines)
    counts = {
        split: len({sample.image_id for sample in task.samples(split)})
        for split in ("train", "calibration", "test")
    }
    assert counts == {"train": 18, "calibration": 3, "test": 9}
    assert task.divided_by is None
    with pytest.raises(ValueError, match="at least 8 of each are needed: bring more images, or"):
        check_task(task, NO_LIMIT)


def test_metrics_keep_all_types_and_the_report_shows_fifty():
    table = make_outcomes("test", 60)
    kind = np.array([f"id {row % 120}" for row in range(len(table))], dtype=object)
    table = replace(table, kind=kind, score=np.zeros_like(table.score))
    assert len(split_by_type(table)) == 120
    assert len(tabulate_types(table, np.zeros(len(table), int))) == 51
    assert len(pick_failures(table, 0, per_kind=1, seed=0)) == 50
