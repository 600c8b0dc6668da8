"""Labels and inputs of a backbone with another resolution, and vision pass, at every scale."""

import numpy as np
import torch
from PIL import Image

from experiments.labels.block_labels import BlockLabels
from experiments.labels.blocks import Block, ImageQuestions
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
        return None

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
    labels = BlockLabels(backbone, backbone.scales[:1])
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
    assert sorted(backbone.vision_passes) == [70, 70, 140, 140]


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
