"""FLOPs by formula against PyTorch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from m3_backbone.costs import decoder_flops_per_token, prefill_flops
from m3_backbone.llava.costs import vision_flops
from m3_backbone.loading.checkpoint import load_m3
from tests.paths import FIXTURES

REFERENCE = FIXTURES / "reference_m3"


def load_eager(folder):
    """The counter does not know the kernel that PyTorch's attention takes on a CPU."""
    model, _ = load_m3(folder / "checkpoint", scales=[1], dtype=torch.float32, attn_implementation="eager")
    return model


def test_the_vision_pass_of_an_image_is_that_of_its_tiles_at_every_scale(recording):
    backbone, config = recording.backbone, recording.backbone.checkpoint.config
    for image, encoded in zip(recording.images, recording.encoded, strict=True):
        one = vision_flops(config)
        for scale in backbone.scales:
            assert backbone.vision_flops(image.size, scale) == len(encoded.tokens) * one > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["grouped_query_bin", "tiled_other_grids"])
def test_grouped_query_attention_is_counted(name):
    model = load_eager(REFERENCE / name)
    text = model.config.get_text_config()
    assert text.num_key_value_heads < text.num_attention_heads
    with FlopCounterMode(display=False) as counter:
        hidden = model.model.language_model(inputs_embeds=torch.randn(1, 9, text.hidden_size))[0]
        model.lm_head(hidden[:, -1])
    assert counter.get_total_flops() == prefill_flops(model.config, 9)


def test_a_further_token_costs_the_linear_layers_alone(plain):
    text = plain.backbone.model.config.get_text_config()
    weights = sum(
        module.weight.numel()
        for module in plain.backbone.model.model.language_model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert decoder_flops_per_token(plain.backbone.model.config) == 2 * weights
    assert text.num_hidden_layers > 1
