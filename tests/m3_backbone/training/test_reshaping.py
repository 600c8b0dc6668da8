"""Another shape for a trained model: what is added changes nothing, what goes is what was named."""

from typing import Any

import pytest
import torch
from torch import nn

from m3_backbone.llava.processing import M3Processor
from m3_backbone.loading.checkpoint import load_m3
from m3_backbone.training.reshaping import reshape
from m3_backbone.training.scratch import build_model, build_processor, build_tower_config, train_tokenizer

IDS = torch.tensor([[9, 7, 8, 5]])


@pytest.fixture(scope="module")
def processor() -> M3Processor:
    return build_processor(train_tokenizer(["What color is it? red"], 270), image_size=48, patch_size=16)


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    tower = build_tower_config(image_size=48, patch_size=16, hidden_size=16, num_layers=4, num_heads=2)
    decoder = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 3, "num_heads": 2}
    model = build_model(tower, processor, **decoder).eval()
    for parameter in model.parameters():  # biases and norms too: they start as zeros and ones
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def pictures():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def tokens(model):
    return model.encode_images(pictures())


def continuation(model: Any, use_cache: bool) -> Any:
    return model.generate(input_ids=IDS, use_cache=use_cache, max_new_tokens=3, do_sample=False)


def test_a_larger_decoder_says_the_same_until_it_is_trained(model):
    before = logits(model)
    reshape(model, num_decoder_layers=5, intermediate_size=40)
    assert torch.allclose(logits(model), before, atol=1e-5)
    layers = model.model.language_model.layers
    silent = [not layer.mlp.down_proj.weight.any() for layer in layers]
    assert silent == [False, False, True, False, True]  # spread between the old ones
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    for layer in layers:
        assert layer.mlp.down_proj.weight.grad[:, 24:].abs().sum() > 0
        assert layer.self_attn.o_proj.weight.grad.abs().sum() > 0


def test_a_smaller_tower_is_the_layers_that_were_named(model):
    tower = model.model.vision_tower
    with torch.no_grad():
        states = tower.pre_layrnorm(tower.embeddings(pictures()))
        for index in (0, 3):
            states = tower.encoder.layers[index](states, None)
        expected = model.model.multi_modal_projector(states[:, 1:])
    reshape(model, tower_layers=[0, 3])
    assert torch.allclose(tokens(model), expected, atol=1e-5)


def test_what_was_reshaped_is_saved_and_loaded(model, processor, tmp_path):
    reshape(model, tower_layers=[1, 2, 3], num_decoder_layers=4, intermediate_size=32)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_m3(tmp_path, dtype=torch.float32)
    assert torch.equal(tokens(loaded), tokens(model))
    assert torch.equal(logits(loaded), logits(model))
    # Its layers know their places: decoding with a cache gives what one pass gives.
    with_cache = continuation(loaded, use_cache=True)
    assert torch.equal(with_cache, continuation(loaded, use_cache=False))
    assert torch.equal(with_cache, continuation(model, use_cache=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tower_layers": [0, 4]}, r"\[0, 4\] cannot be kept: give some of 0 to 3"),
        ({"tower_layers": [2, 1]}, "in order"),
        ({"tower_layers": []}, "cannot be kept"),
        ({"num_decoder_layers": 2}, "has 3 layers and cannot shrink to 2"),
        ({"intermediate_size": 8}, "24 units and cannot shrink to 8"),
    ],
)
def test_shapes_that_cannot_be_had_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        reshape(model, **arguments)
