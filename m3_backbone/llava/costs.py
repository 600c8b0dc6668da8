"""Floating-point operations of M3 and MQT-LLaVA models.

They are counted as in PyTorch: a multiply-add is two operations. Only matrix products are counted. Attention
is counted in full, as if every token attended to every other. Norms, activations and embeddings, together
below one percent, are not counted.
"""

from typing import Any

from transformers import LlavaConfig, LlavaNextConfig

from m3_backbone.llava.modeling import feature_layer_of
from m3_backbone.llava.queries import num_queries_of, query_transformer_flops


def prefill_flops(config: LlavaConfig | LlavaNextConfig, num_tokens: int) -> int:
    """Operations of the decoder on a prompt of `num_tokens` tokens, until the first token of the answer.

    With L layers of width h, q query and k key-value heads of size d and an MLP of width m, over n tokens:
    `L (2 n h (2 q + 2 k) d + 4 n^2 q d + 6 n h m) + 2 h vocabulary`.
    """
    text: Any = config.get_text_config()
    hidden, heads = text.hidden_size, text.num_attention_heads
    size = getattr(text, "head_dim", None) or hidden // heads
    query, key = heads * size, (getattr(text, "num_key_value_heads", None) or heads) * size
    projections = 2 * num_tokens * hidden * (2 * query + 2 * key)
    attention = 4 * num_tokens**2 * query
    mlp = 6 * num_tokens * hidden * text.intermediate_size
    return text.num_hidden_layers * (projections + attention + mlp) + 2 * hidden * text.vocab_size


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


def decoder_flops_per_token(config: LlavaConfig | LlavaNextConfig) -> int:
    """Operations of one more token in the decoder's linear layers, without attention and output layer."""
    vocabulary = 2 * config.get_text_config().hidden_size * config.get_text_config().vocab_size
    # Only attention is not linear in n: f(2) - f(1) = linear + 3 a, f(3) - f(2) = linear + 5 a.
    one, two, three = (prefill_flops(config, n) - vocabulary for n in (1, 2, 3))
    attention = (three - two - (two - one)) // 2
    return one - attention
