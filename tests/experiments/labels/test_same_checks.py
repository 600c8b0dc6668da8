"""What labelling skips, use refuses, with the same reason."""

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.labels.labelling import label
from experiments.tasks.base import SPLITS, Sample, Task
from experiments.tasks.images import UnreadableImage
from m3_backbone.backbone import NOT_FINITE
from m3_backbone.llava.backbone import LlavaBackbone
from predictor.adaptive.model import AdaptiveM3
from predictor.classical.baselines import FixedScale
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.paths import FIXTURES

CHECKPOINT = FIXTURES / "official_m3" / "llava15" / "checkpoint"
GOOD = Image.new("RGB", (30, 20), "red")


class FewSamples(Task):
    """One sample in every split, and one bad sample in train."""

    name = "few"
    fingerprint = "few"

    def __init__(self, picture, question, references=("it",)):
        self.picture, self.question, self.references, self.skipped = picture, question, references, []

    def samples(self, split):
        yield Sample(f"{split}-good", f"{split}-good", self.name, split, "What?", ("it",), "exact")
        if split == "train":
            yield Sample("bad", "bad", self.name, split, self.question, self.references, "exact")

    def image(self, image_id):
        return self.picture if image_id == "bad" else GOOD


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone(CHECKPOINT, name="small", dtype="float32", device="cpu", max_new_tokens=1)


@pytest.fixture(scope="module")
def adaptive(backbone):
    predictor = FixedScale(scale=1)
    predictor.scales, predictor.fingerprints = (
        backbone.scales,
        {**backbone.fingerprints, "data": "few"},
    )
    point = OperatingPoint(0.0, 576, 1.0, 0.5)
    return AdaptiveM3(backbone, predictor, PriceList(point, (point,)))


def find_reason(backbone, folder, *sample):
    """The reason for which labelling skips the one bad sample."""
    summary = label(task=FewSamples(*sample), backbone=backbone, folder=folder, num_workers=0)
    assert summary.counts == dict.fromkeys(SPLITS, 1)
    (reason,) = summary.skipped
    return reason


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty: ask something"),
        (" \n", "the question is empty: ask something"),
        ("word " * 5000, "the question is too long: with 576 visual tokens and 1 for an answer it needs"),
        ("what </s> is it?", "the question contains '</s>', a control token of the model: remove it"),
        ("what <image> is it?", "the question contains '<image>', the placeholder of the image"),
    ],
)
def test_questions(backbone, adaptive, tmp_path, question, message):
    reason = find_reason(backbone, tmp_path, GOOD, question)
    assert reason.startswith(message)
    for ask in (
        lambda: adaptive.answer(GOOD, question),
        lambda: backbone.answer(backbone.encode([GOOD]), [question], 576),
        lambda: adaptive.answer_at(backbone.encode([GOOD]), [question], adaptive.prices.default),
    ):
        with pytest.raises(ValueError) as caught:
            ask()
        # At a scale of fewer visual tokens a question needs fewer places.
        assert str(caught.value).partition(":")[0] == reason.partition(":")[0]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (0, 4)), "it has no pixels: 0 x 4"),
        (Image.new("F", (4, 4)), "floating-point pixels: their range is not known"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "pixels of more than 16 bits"),
    ],
)
def test_pictures(backbone, adaptive, tmp_path, picture, message):
    reason = find_reason(backbone, tmp_path, picture, "What?")
    assert reason.startswith(f"cannot read image 'bad': {message}")
    for see in (lambda: adaptive.answer(picture, "What?"), lambda: backbone.encode([picture])):
        with pytest.raises(UnreadableImage) as caught:
            see()
        assert caught.value.reason == reason.partition("'bad': ")[2]


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (("word " * 5000,), "a reference is too long: with 576 visual tokens, the question and its own"),
        (("it", "an <image>"), "a reference contains '<image>', the placeholder of the image"),
        (("</s>",), "a reference contains '</s>', a control token of the model"),
        ((), "the sample has no references"),
    ],
)
def test_references_that_cannot_be_scored_do_not_end_labelling(backbone, tmp_path, references, message):
    assert find_reason(backbone, tmp_path, GOOD, "What?", references).startswith(message)


def test_pictures_of_other_modes_are_labelled_as_they_are_in_use(backbone, tmp_path):
    """Transparent black lies on white: features and answers are those of the white picture."""
    see_through = FewSamples(Image.new("RGBA", (30, 20), (0, 0, 0, 0)), "What?")
    white = FewSamples(Image.new("RGB", (30, 20), "white"), "What?")
    for task, name in ((see_through, "a"), (white, "b")):
        label(task=task, backbone=backbone, folder=tmp_path / name, num_workers=0)
    first, second = ((tmp_path / name / "outcomes" / "00000.parquet").read_bytes() for name in "ab")
    assert first == second


def test_numbers_that_are_not_finite_are_refused_alike(tmp_path):
    """Weights that are finite, and activations that overflow float16's range once they are multiplied."""
    broken = LlavaBackbone(CHECKPOINT, name="small", dtype="float32", device="cpu", max_new_tokens=1)
    broken.model.lm_head.weight.data.fill_(3e38)
    with pytest.raises(ValueError, match="not one sample could be labelled") as caught:
        label(task=FewSamples(GOOD, "What?"), backbone=broken, folder=tmp_path, num_workers=0)
    assert NOT_FINITE in str(caught.value)
    predictor = FixedScale(scale=1)
    predictor.scales, predictor.fingerprints = tuple(broken.scales), {**broken.fingerprints, "data": "few"}
    point = OperatingPoint(0.0, 576, 1.0, 0.5)
    with pytest.raises(ValueError) as caught:
        AdaptiveM3(broken, predictor, PriceList(point, (point,))).answer(GOOD, "What?")
    assert str(caught.value) == NOT_FINITE
    assert torch.isfinite(broken.model.lm_head.weight).all()


def test_a_class_that_is_no_task_is_refused_before_anything_is_labelled(backbone, tmp_path):
    class Plain:
        name = fingerprint = "plain"

    with pytest.raises(ValueError, match=r"Plain is not derived from experiments\.tasks\.base\.Task"):
        label(task=Plain(), backbone=backbone, folder=tmp_path / "labels")  # type: ignore[arg-type]
    assert not (tmp_path / "labels").exists()
