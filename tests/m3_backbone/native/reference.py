"""What tests of native backbones share: pictures, `generate` of transformers, counted vision passes."""

import math

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode


def draw_noise(sizes):
    """Pictures of random pixels; `sizes` are (width, height)."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes
    ]


def generate_greedily(model, inputs, max_new_tokens):
    """Token ids, log-probability and smallest margin of the greedy answer of `generate`."""
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    log_probs = torch.cat(output.logits).log_softmax(-1)
    best = log_probs.topk(2).values
    return ids, log_probs[range(len(ids)), ids].sum().item(), (best[:, 0] - best[:, 1]).min().item()


def make_prompt(backbone, question, placeholder, expanded):
    """Inputs of the text of a question; the placeholder of the image is replaced by that of its tokens."""
    tokenizer = backbone.processor.tokenizer
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace(placeholder, expanded)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    types = (ids == backbone.checkpoint.config.image_token_id).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}


@torch.no_grad()
def score_reference(backbone, inputs, reference):
    """Mean negative log-likelihood of the token ids of a reference after a prompt."""
    length, inputs = inputs["input_ids"].shape[1], dict(inputs)
    for name, value in (("input_ids", reference), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            more = torch.tensor(value).expand(1, len(reference))
            inputs[name] = torch.cat([inputs[name], more], dim=1)
    log_probs = backbone.model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
    return -log_probs[range(len(reference)), reference].mean().item()


@torch.no_grad()
def check_flops(backbone, inputs, image_size, question, scale):
    """Vision and prefill FLOPs of a backbone are those that PyTorch counts for `inputs` of the model."""
    with FlopCounterMode(display=False) as whole:
        backbone.model(**inputs, logits_to_keep=1)
    with FlopCounterMode(display=False) as vision:
        backbone.model.get_image_features(inputs["pixel_values"])
    assert vision.get_total_flops() == backbone.vision_flops(image_size, scale)
    prefill = whole.get_total_flops() - vision.get_total_flops()
    assert prefill == backbone.prefill_flops(image_size, question, scale)


def downsample_by_hand(image, num_tokens, patch_size):
    """The image shrunk by Pillow to `num_tokens` patches of pixels and enlarged; a smaller one as it is."""
    share = num_tokens * patch_size**2 / math.prod(image.size)
    if share >= 1:
        return image
    small = [round(side * share**0.5) for side in image.size]
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def check_downsampled(plain, downsampled, images, scale, *, questions, patch_size):
    """A downsampled image costs what the image does, and is answered and shown as one shrunk by hand.

    Returns the images shrunk and enlarged by hand.
    """
    small = []
    for image in images:
        num_tokens = plain.num_visual_tokens(image.size, scale)
        assert downsampled.num_visual_tokens(image.size, scale) == num_tokens
        assert downsampled.vision_flops(image.size, scale) == plain.vision_flops(image.size, scale)
        small.append(downsample_by_hand(image, num_tokens, patch_size))
    expected = plain.answer(plain.encode(small), questions, scale)
    answers = downsampled.answer(downsampled.encode(images), questions, scale)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    views = plain.view_image(small[0], scale), downsampled.view_image(images[0], scale)
    assert [panel.image.tobytes() for panel in views[0]] == [panel.image.tobytes() for panel in views[1]]
    return small
