from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.llava.modeling import M3LlavaForConditionalGeneration, scales_of


@torch.no_grad()
def test_generate_gives_the_official_answers(recording):
    model, processor = recording.backbone.model, recording.backbone.processor
    for case in recording.cases_at(36):
        inputs = processor(recording.images[int(case["image"][5])], case["prompt"], 36)
        ids = model.generate(**inputs, token_scale=36, max_new_tokens=12, do_sample=False)
        assert ids[0, inputs["input_ids"].shape[1] :].tolist() == case["generated_ids"][1:]


@torch.no_grad()
def test_a_batch_gives_the_official_answers(recording):
    model, processor, cases = recording.backbone.model, recording.backbone.processor, recording.cases_at(9)
    inputs = processor(recording.images, [case["prompt"] for case in cases], 9)
    ids = model.generate(**inputs, token_scale=9, max_new_tokens=12, do_sample=False)
    for row, case in zip(ids[:, inputs["input_ids"].shape[1] :], cases, strict=True):
        expected = case["generated_ids"][1:]
        assert row[: len(expected)].tolist() == expected


@torch.no_grad()
def test_images_of_several_scales_in_one_batch(recording):
    """Precomputed features of mixed scales give what each gives alone."""
    model, processor, images = recording.backbone.model, recording.backbone.processor, recording.images
    scales, prompt = (1, 9, 36), recording.cases[0]["prompt"]
    alone = [processor(images[0], prompt, scale) for scale in scales]
    sizes = {k: v for k, v in alone[0].items() if k == "image_sizes"}
    tokens = model.encode_images(alone[0]["pixel_values"], **sizes)
    features: Any = [model.pool_images(tokens, scale, **sizes)[0] for scale in scales]
    length = max(inputs["input_ids"].shape[1] for inputs in alone)
    ids = torch.full((3, length), processor.pad_token_id)
    for row, inputs in enumerate(alone):
        ids[row, length - inputs["input_ids"].shape[1] :] = inputs["input_ids"][0]
    mask = torch.stack([torch.arange(length) >= length - i["input_ids"].shape[1] for i in alone]).long()
    outputs = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    logits = model(input_ids=ids, attention_mask=mask, mm_encoder_outputs=outputs).logits[:, -1]
    for row, scale in enumerate(scales):
        expected = recording.tensors[f"image0.scale{scale}.last_logits"]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_vision_pass_serves_every_scale(recording):
    model = recording.backbone.model
    inputs = recording.backbone.processor.preprocess(recording.images)
    passes = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    tokens = model.encode_images(**inputs)
    sizes = inputs.get("image_sizes")
    for scale in model.scales:
        for number, pooled in enumerate(model.pool_images(tokens, scale, sizes)):
            expected = recording.tensors[f"image{number}.scale{scale}.visual_tokens"]
            torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=0)
    hook.remove()
    assert len(passes) == 1


def test_the_scale_is_in_no_configuration(plain):
    model = plain.backbone.model
    before = model.config.to_json_string() + model.generation_config.to_json_string()
    inputs = plain.backbone.processor(plain.images[0], plain.cases[0]["prompt"], 9)
    model.generate(**inputs, token_scale=9, max_new_tokens=1, do_sample=False)
    assert model.config.to_json_string() + model.generation_config.to_json_string() == before


def test_mistakes_with_the_scale_are_named(recording):
    model = recording.backbone.model
    inputs = recording.backbone.processor(recording.images[0], "<image>", 9)
    with pytest.raises(ValueError, match="token_scale must be given"):
        model(**inputs)
    with pytest.raises(ValueError, match="1, 4, 9, 16, 36, 64, 144, 576"):
        model(**inputs, token_scale=100)
    with pytest.raises(ValueError, match=r"image placeholders for \d+ visual tokens"):
        model(**inputs, token_scale=36)
    with pytest.raises(ValueError, match="token_scale"):
        model.generate(**inputs, max_new_tokens=1)


def test_a_tiled_model_needs_the_sizes(tiled):
    inputs = tiled.backbone.processor(tiled.images[0], "<image>", 9)
    del inputs["image_sizes"]
    with pytest.raises(ValueError, match="image_sizes"):
        tiled.backbone.model(**inputs, token_scale=9)


@torch.no_grad()
def test_visual_tokens_come_from_the_layer_that_the_configuration_names(plain):
    """Counted from either end, on every supported release of transformers."""
    config = type(plain.backbone.checkpoint.config)(**plain.backbone.checkpoint.config.to_dict())
    model = M3LlavaForConditionalGeneration(config).model
    pixels = plain.backbone.processor(plain.images[0], plain.cases[0]["prompt"], 9)["pixel_values"]
    states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for layer in (1, len(states) - 1, -1, -2):
        config.vision_feature_layer = layer
        expected = model.multi_modal_projector(states[layer][:, 1:])
        torch.testing.assert_close(model.encode_images(pixels), expected, rtol=0, atol=0)


def test_gradients_reach_the_vision_tower(plain):
    model = M3LlavaForConditionalGeneration(plain.backbone.checkpoint.config)
    inputs = plain.backbone.processor(plain.images[0], plain.cases[0]["prompt"], 9)
    model(
        **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == 512, -100), token_scale=9
    ).loss.backward()
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


def test_the_ladder_is_the_named_one_and_nothing_else(plain):
    config = type(plain.backbone.checkpoint.config)(**plain.backbone.checkpoint.config.to_dict())
    config.matryoshka_vis_token_scale = [64, 1]
    assert scales_of(config) == (1, 64)
    config.matryoshka_vis_token_scale = [1, 10, 64]
    with pytest.raises(
        ValueError, match="scale 10 is not possible on a 24x24 grid: choose one of 1, 4, 9, 16"
    ):
        scales_of(config)
    config.matryoshka_vis_token_scale = None
    assert scales_of(config) == (1, 9, 36, 144, 576)
    config.vision_config.image_size = 224
    assert scales_of(config) == (1, 4, 16, 64, 256)


def test_a_class_token_is_refused(plain):
    config = type(plain.backbone.checkpoint.config)(**plain.backbone.checkpoint.config.to_dict())
    config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="class token"):
        M3LlavaForConditionalGeneration(config)
