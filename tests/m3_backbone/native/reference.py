"""What tests of native backbones share: pictures, `generate` of transformers, counted vision passes."""

import numpy as np
import torch
from PIL import Image


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


def record_vision(backbone, monkeypatch):
    """A list to which every vision pass appends (size of the picture, scale)."""
    passes: list[tuple[tuple[int, int], int]] = []
    run_vision = backbone.run_vision

    def record(images, scale):
        passes.extend((image.size, scale) for image in images)
        return run_vision(images, scale)

    monkeypatch.setattr(backbone, "run_vision", record)
    return passes
