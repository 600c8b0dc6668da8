"""Labels and inputs of a backbone with another resolution, and vision pass, at every scale."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.labels.block_labels import BlockLabels, answer_at_scales
from experiments.labels.blocks import Block, ImageQuestions
from experiments.labels.folder import KeptInputs
from experiments.labels.resampling import DrawnAnswers, ResampleJob
from experiments.tasks.base import Sample
from m3_backbone.backbone import Answer, Backbone, check_scale
from m3_backbone.features import GROUPS, ImageFeatures, describe_image
from predictor.adaptive.inputs import make_inputs
from predictor.features import Features


class Thumbnails:
    """An encoded image: visual tokens `[num_tokens, 3]` of the scales that were needed so far."""

    def __init__(self, image):
        self.image, self.tokens = image, {}

    @property
    def size(self):
        return self.image.size


class NativeBackbone(Backbone):
    """A scale is the largest number of 8 x 8 pixels; answers are the number of visual tokens."""

    name, scales, family = "native", (70, 140), "native"
    feature_scales = (70,)
    fingerprints = {"weights": "0", "prompt": "0", "decoding": "0"}  # noqa: RUF012

    def __init__(self):
        self.vision_passes = []
        self.answered = []

    def _grid(self, image_size, scale):
        check_scale(scale, self.scales)
        shrink = min(1.0, (64 * scale / (image_size[0] * image_size[1])) ** 0.5)
        return tuple(max(1, int(shrink * side) // 8) for side in image_size)

    def _see(self, encoded, scale):
        for image in encoded:
            if scale not in image.tokens:
                self.vision_passes.append(scale)
                pixels = np.asarray(image.image.resize(self._grid(image.size, scale)))
                image.tokens[scale] = torch.from_numpy(pixels.reshape(-1, 3) / 255)
        return [image.tokens[scale] for image in encoded]

    def num_visual_tokens(self, image_size, scale):
        columns, rows = self._grid(image_size, scale)
        return rows * columns

    def vision_flops(self, image_size, scale):
        return 100 * self.num_visual_tokens(image_size, scale)

    def prefill_flops(self, image_size, question, scale):
        return 10 * (len(question) + self.num_visual_tokens(image_size, scale))

    def decode_flops_per_token(self):
        return 10

    def check_image(self, image_size):
        if max(image_size) > 200 * min(image_size):
            raise ValueError(f"an image of {image_size[0]} x {image_size[1]} pixels is too narrow")

    def encode(self, images):
        return [Thumbnails(image) for image in images]

    def compute_features(self, encoded, scales, groups=GROUPS):
        tokens = {scale: self._see(encoded, scale) for scale in scales}
        return [
            ImageFeatures(
                {scale: tokens[scale][row].half().numpy() for scale in scales},
                describe_image(image.image) if "image" in groups else {},
            )
            for row, image in enumerate(encoded)
        ]

    def answer(self, encoded, questions, scale, *, references=None, drafts=None, draws=None):
        self.answered += [(image.size, scale) for image in encoded]
        counts = [len(tokens) for tokens in self._see(encoded, scale)]
        return [Answer(str(count), [count], 0.5, 1.0, 0.1, 1) for count in counts]

    def check_question(self, question, references=(), scale=None):
        pass

    def question_ids(self, question):
        return [len(question)]

    def token_embeddings(self):
        return torch.zeros(100, 3)


IMAGES = {"large": Image.new("RGB", (160, 120), "red"), "small": Image.new("RGB", (40, 24), "blue")}


def test_labels_of_a_backbone_without_a_grid():
    backbone = NativeBackbone()
    samples = {
        image: [Sample(f"{image}{i}", image, "toy", "train", "How many?", ("140",), "exact") for i in (0, 1)]
        for image in IMAGES
    }
    labels = BlockLabels(backbone, KeptInputs(backbone.scales[:1]))
    block = Block("0", (*samples["large"], *samples["small"]))
    labels.add([ImageQuestions(block, samples[image], picture) for image, picture in IMAGES.items()])
    table = labels.to_table(
        backbone.fingerprints, lambda sample, answer: float(answer == sample.references[0])
    )
    assert table.scales == (70, 140) and table.family == "native" and not labels.skipped
    # 160 x 120 pixels shrink to 9 x 7 and to 13 x 10 tokens; 40 x 24 are 5 x 3 at every scale.
    assert table.visual_tokens.tolist() == [[63, 130]] * 2 + [[15, 15]] * 2
    assert table.answer == [["63", "130"]] * 2 + [["15", "15"]] * 2
    assert table.vision_flops is not None and table.vision_flops.tolist()[0] == [6300, 13000]
    assert table.prefill_flops.tolist()[0] == [10 * (9 + 63), 10 * (9 + 130)]
    assert labels.features["large"].visual[70].shape == (63, 3)
    # Both scales of the small image coincide: one vision pass, one answer per question.
    assert sorted(backbone.vision_passes) == [70, 70, 140]
    assert (
        sorted(backbone.answered) == [((40, 24), 70)] * 2 + [((160, 120), 70)] * 2 + [((160, 120), 140)] * 2
    )


def test_an_image_that_cannot_be_encoded_is_skipped_with_its_samples():
    backbone = NativeBackbone()
    images = {"narrow": Image.new("RGB", (2000, 1)), **IMAGES}
    samples = {
        image: [Sample(f"{image}{i}", image, "toy", "train", "How many?", ("15",), "exact") for i in (0, 1)]
        for image in images
    }
    labels = BlockLabels(backbone, KeptInputs((70,)))
    block = Block("0", tuple(sample for group in samples.values() for sample in group))
    labels.add([ImageQuestions(block, samples[image], picture) for image, picture in images.items()])
    reason = "an image of 2000 x 1 pixels is too narrow"
    assert labels.skipped == [
        {"sample_id": f"narrow{i}", "image_id": "narrow", "reason": reason} for i in (0, 1)
    ]
    assert not labels.unreadable and labels.features.keys() == IMAGES.keys()
    assert [row.sample.image_id for row in labels.answered] == ["large", "large", "small", "small"]


class DraftedBackbone(NativeBackbone):
    """Records the draft of each question by its scale."""

    scales: Any = (40, 70, 140)

    def answer(self, encoded, questions, scale, *, references=None, drafts=None, draws=None):
        texts = [draft.text for draft in drafts] if drafts else [None] * len(encoded)
        self.answered += [(image.size, scale, text) for image, text in zip(encoded, texts, strict=True)]
        return super().answer(encoded, questions, scale)


def test_a_draft_is_the_answer_at_the_next_finer_distinct_scale():
    backbone = DraftedBackbone()
    sample = Sample("a", "a", "toy", "train", "How many?", ("15",), "exact")
    # 40 x 24 pixels are 15 tokens at every scale, 80 x 48 are 32 tokens at 40 and 60 at both others.
    sizes = [(160, 120), (40, 24), (80, 48)]
    encoded = backbone.encode([Image.new("RGB", size) for size in sizes])
    answers = answer_at_scales(backbone, [(image, sample) for image in encoded], backbone.scales)
    counts = [[backbone.num_visual_tokens(size, scale) for scale in backbone.scales] for size in sizes]
    assert [[int(answer.text) for answer in row] for row in answers] == counts
    coarse, fine = counts[2][0], counts[2][1]
    assert coarse < fine == counts[2][2]
    assert [call for call in backbone.answered if len(call) == 3] == [
        ((160, 120), 140, None),
        ((160, 120), 70, "130"),
        ((80, 48), 70, None),
        ((160, 120), 40, "63"),
        ((80, 48), 40, str(fine)),
        ((40, 24), 40, None),
    ]
    subset = answer_at_scales(backbone, [(image, sample) for image in encoded], (70, 140))
    assert [[answer.text for answer in row] for row in subset] == [
        [str(count) for count in row[1:]] for row in counts
    ]


class CountedDraws(NativeBackbone):
    """Answers number the draws, so that two draws never agree."""

    def answer(self, encoded, questions, scale, *, references=None, drafts=None, draws=None):
        answers = super().answer(encoded, questions, scale)
        start = len(self.answered) - len(encoded)
        return [replace(answer, text=str(start + row)) for row, answer in enumerate(answers)]


@pytest.mark.parametrize("num_runs", [2, 3])
def test_coinciding_scales_share_one_sampled_answer_per_run(num_runs):
    backbone = CountedDraws()
    sample = {image: Sample(image, image, "toy", "test", "How many?", ("1",), "exact") for image in IMAGES}
    task: Any = SimpleNamespace(score=lambda sample, answer: float(answer))
    folder: Any = None
    job = ResampleJob(
        task=task,
        backbone=backbone,
        images_per_batch=2,
        num_workers=0,
        folder=folder,
        variation=DrawnAnswers(),
        samples=list(sample.values()),
        guesses=dict.fromkeys(IMAGES, ()),
        num_images=None,
        num_runs=num_runs,
    )
    block = Block("0", tuple(sample.values()))
    batch = [ImageQuestions(block, [sample[image]], picture) for image, picture in IMAGES.items()]
    scores = job.score_runs(batch)
    assert scores.shape == (num_runs, 2, 2)
    assert len(backbone.answered) == 3 * num_runs and sorted(backbone.vision_passes) == [70, 70, 140]
    assert len(np.unique(scores)) == 3 * num_runs
    np.testing.assert_array_equal(scores[:, 1, 0], scores[:, 1, 1])  # small: both scales coincide
    assert (scores[:, 0, 0] != scores[:, 0, 1]).all()


def test_inputs_of_a_predictor_run_no_finer_vision_pass_than_they_show():
    backbone = NativeBackbone()
    encoded = backbone.encode([*IMAGES.values(), IMAGES["large"]])
    inputs = make_inputs(
        backbone,
        encoded,
        ["a", "b", "c"],
        Features(visual=70, statistics="image"),
        token_embeddings=backbone.token_embeddings(),
    )
    assert inputs.visual[70].mask.sum(axis=1).tolist() == [63, 15, 63]
    assert inputs.visual_tokens.tolist() == [[63, 130], [15, 15], [63, 130]]
    assert set(backbone.vision_passes) == {70}
