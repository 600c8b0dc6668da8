"""Floating-point operations of the vision pass of M3 and MQT-LLaVA, counted as in `m3_backbone.costs`."""

from typing import Any

from transformers import LlavaConfig, LlavaNextConfig

from m3_backbone.llava.modeling import feature_layer_of
from m3_backbone.llava.queries import num_queries_of, query_transformer_flops


def vision_flops(config: LlavaConfig | LlavaNextConfig, num_tiles: int = 1, side: int | None = None) -> int:
    """Operations of vision tower and projector on an image of `num_tiles` tiles; the same at every scale.

    `side` is the number of patches along each side of a tile, by default that of the tower. Layers after
    `vision_feature_layer` are not counted: they need not run. All learned queries are counted.
    """
    vision: Any = config.vision_config
    num_layers = feature_layer_of(config)
    hidden, patches = vision.hidden_size, (side or vision.image_size // vision.patch_size) ** 2
    tokens = patches + 1
    embedding = 2 * patches * vision.num_channels * vision.patch_size**2 * hidden
    per_layer = (
        8 * tokens * hidden**2 + 4 * tokens**2 * hidden + 4 * tokens * hidden * vision.intermediate_size
    )
    width = config.get_text_config().hidden_size
    if num_queries := num_queries_of(config):
        projector = query_transformer_flops(patches, hidden, width, num_queries)
    else:
        projector = 2 * patches * (hidden * width + width**2)
    return num_tiles * (embedding + num_layers * per_layer + projector)
