"""Floating-point operations of the vision pass of M3, counted as in `m3_backbone.costs`.

Only matrix products are counted. Attention is counted in full, as if every token attended to every other.
Norms, activations and embeddings, together below one percent, are not counted.
"""

from typing import Any

from transformers import LlavaConfig, LlavaNextConfig

from m3_backbone.llava.modeling import feature_layer_of


def vision_flops(config: LlavaConfig | LlavaNextConfig, num_tiles: int = 1) -> int:
    """Operations of vision tower and projector on an image of `num_tiles` tiles; the same at every scale.

    Layers after `vision_feature_layer` are not counted: they need not run.
    """
    vision: Any = config.vision_config
    num_layers = feature_layer_of(config)
    hidden, patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
    tokens = patches + 1
    embedding = 2 * patches * vision.num_channels * vision.patch_size**2 * hidden
    per_layer = (
        8 * tokens * hidden**2 + 4 * tokens**2 * hidden + 4 * tokens * hidden * vision.intermediate_size
    )
    width = config.get_text_config().hidden_size
    projector = 2 * patches * (hidden * width + width**2)
    return num_tiles * (embedding + num_layers * per_layer + projector)
