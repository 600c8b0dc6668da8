"""easy_vqa as installed: its own division kept, every row a sample, pictures where the questions say."""

import sys
from collections import Counter

import easy_vqa
import pytest

from experiments.tasks.base import SPLITS, Task
from experiments.tasks.easy_vqa import EasyVqa, classify
from experiments.tasks.images import UnreadableImage


@pytest.fixture(scope="module")
def task() -> EasyVqa:
    return EasyVqa()


@pytest.fixture(scope="module")
def samples(task):
    return {split: list(task.samples(split)) for split in SPLITS}


@pytest.mark.long
def test_every_row_of_the_package_is_a_sample(samples):
    for own_split, splits in {"train": ("train", "calibration"), "test": ("test",)}.items():
        ours = Counter((s.question, s.references[0], s.image_id) for split in splits for s in samples[split])
        questions, answers, numbers = getattr(easy_vqa, f"get_{own_split}_questions")()
        images = [f"{own_split}/{number}" for number in numbers]
        assert ours == Counter(zip(questions, answers, images, strict=True))


def test_no_image_is_in_two_splits(samples):
    images = {split: {sample.image_id for sample in samples[split]} for split in SPLITS}
    assert len(images["test"]) == 1000
    assert (
        len(images["train"]) + len(images["calibration"])
        == len(images["train"] | images["calibration"])
        == 4000
    )
    assert len(images["calibration"]) == pytest.approx(400, abs=60)
    assert not images["test"] & (images["train"] | images["calibration"])


def test_questions_of_an_image_lie_together_under_distinct_ids(samples):
    for rows in samples.values():
        runs = [
            row.image_id
            for row, before in zip(rows, [None, *rows], strict=False)
            if not before or before.image_id != row.image_id
        ]
        assert len(runs) == len(set(runs))
    ids = [sample.sample_id for rows in samples.values() for sample in rows]
    assert len(ids) == len(set(ids)) == 48_248


def test_pictures_show_what_the_questions_say(task, samples):
    """The colour asked for is among the picture's colours: picture and questions belong together."""
    expected = {"red": (255, 0, 0), "black": (0, 0, 0), "blue": (0, 0, 255)}
    told = [s for s in samples["test"] if s.attributes["kind"] == "color" and s.references[0] in expected]
    for sample in told[:20]:
        image = task.image(sample.image_id)
        assert (image.mode, image.size) == ("RGB", (64, 64))
        colours = {colour for _, colour in image.getcolors(maxcolors=64 * 64)}
        assert (
            min(
                sum(abs(a - b) for a, b in zip(c, expected[sample.references[0]], strict=True))
                for c in colours
            )
            < 120
        )


def test_kinds(samples):
    assert classify("what color is the shape?") == classify("what is the color of the circle?") == "color"
    assert classify("what is the blue shape?") == classify("what shape is present?") == "shape"
    assert classify("is there a triangle?") == "shape is present"
    assert classify("does the image contain a gray shape?") == "color is present"
    assert classify("is there not a red shape in the image?") == "color is absent"
    assert classify("is no rectangle present?") == "shape is absent"
    answers = {
        kind: {s.references[0] for s in samples["test"] if s.attributes["kind"] == kind}
        for kind in ("color", "shape")
    }
    assert len(answers["color"]) == 8 and answers["shape"] == {"circle", "rectangle", "triangle"}


def test_order_and_fingerprint_are_stable(samples):
    again = EasyVqa()
    assert isinstance(again, Task)
    assert list(again.samples("test")) == samples["test"]
    assert again.fingerprint == EasyVqa().fingerprint
    assert again.fingerprint != EasyVqa(suffix="\nShort.").fingerprint
    other = EasyVqa(seed=1)
    assert again.fingerprint == other.fingerprint and again.division != other.division


def test_suffix_ends_the_question():
    assert next(EasyVqa(suffix="\nShort.").samples("test")).question.endswith("?\nShort.")


@pytest.mark.parametrize("image_id", ["val/1", "test/9999", "../1", "test/../../train/images/1"])
def test_unknown_images_are_unreadable(task, image_id):
    with pytest.raises(UnreadableImage):
        task.image(image_id)


def test_a_missing_package_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match="pip install easy-vqa"):
        EasyVqa()


def test_mistakes_in_arguments_are_named(task):
    with pytest.raises(ValueError, match="calibration_fraction=1"):
        EasyVqa(calibration_fraction=1.0)
    with pytest.raises(ValueError, match="unknown split 'val'"):
        next(task.samples("val"))
