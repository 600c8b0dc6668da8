"""Images that are shrunk and enlarged before they are encoded: equal to the backbone on Pillow's images."""

import pytest
import torch
from PIL import Image

from experiments.serving.adapters import ImageArguments
from m3_backbone.images import shrink_and_enlarge
from m3_backbone.native.random_backbone import open_random_backbone
from tests.m3_backbone.native.reference import check_downsampled, draw_noise

QUESTIONS = ("What color is the square?", "How many circles are there?")
SCALES = {"qwen3_vl": (16, 64), "gemma4": (70, 140), "smolvlm": (4, 68), "internvl": (4, 12, 52)}
PATCH_SIZES = {"qwen3_vl": 16, "gemma4": 16, "smolvlm": 8, "internvl": 8}


def open_backbone(model_type, **arguments):
    settings = {"scales": SCALES[model_type], "device": "cpu", "max_new_tokens": 4, **arguments}
    return open_random_backbone(model_type=model_type, name=model_type, **settings)


@pytest.mark.long
@pytest.mark.parametrize("model_type", SCALES)
def test_a_downsampled_image_is_encoded_as_usual(model_type):
    plain, downsampled = open_backbone(model_type), open_backbone(model_type, downsampling="enlarged")
    images = draw_noise(((640, 480), (90, 150), (40, 40)))
    encoded = downsampled.encode(images)
    assert downsampled.family == "native"
    num_changed = 0
    for scale in plain.scales:
        questions, patch_size = QUESTIONS[:1] * len(images), PATCH_SIZES[model_type]
        small = check_downsampled(
            plain, downsampled, images, scale, questions=questions, patch_size=patch_size
        )
        num_changed += sum(after is not before for before, after in zip(images, small, strict=True))
        seen = [plain.visual_tokens(plain.encode(small), scale), downsampled.visual_tokens(encoded, scale)]
        for wanted, tokens in zip(*seen, strict=True):
            torch.testing.assert_close(tokens, wanted)
        inputs = [
            b.generate_inputs(i, QUESTIONS[:1] * 3, scale) for b, i in ((plain, small), (downsampled, images))
        ]
        assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
    assert num_changed
    assert downsampled.saved_arguments() == {**plain.saved_arguments(), "downsampling": "enlarged"}
    assert downsampled.fingerprints["decoding"] != plain.fingerprints["decoding"]
    with pytest.raises(
        ValueError, match=f"^{model_type} shrinks images itself, .* leave out backbone.downsampling"
    ):
        ImageArguments().check_backbone(downsampled)


def test_an_image_keeps_its_size_and_loses_pixels():
    (image,) = draw_noise(((200, 50),))
    assert shrink_and_enlarge(image, 200 * 50) is image
    small = image.resize((20, 5), Image.Resampling.BICUBIC)
    expected = small.resize((200, 50), Image.Resampling.BICUBIC)
    assert shrink_and_enlarge(image, 100).tobytes() == expected.tobytes()
    assert shrink_and_enlarge(image, 1).size == (200, 50)
