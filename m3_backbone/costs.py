"""Floating-point operations of decoders, counted as in PyTorch: a multiply-add is two operations.

Only matrix products are counted. Attention is counted in full, as if every token attended to every other.
Norms, activations and embeddings, together below one percent, are not counted. The vision pass of a family of
backbones is counted beside it, in the same way.
"""

from typing import Any


def prefill_flops(config: Any, num_tokens: int) -> int:
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


def read_heads(config: Any) -> list[tuple[int, int]]:
    """Return the number of key-value heads and their size in each layer of a decoder with keys of its own.

    Layers that reuse the keys and values of others are left out (Gemma 4).
    """
    text: Any = config.get_text_config()
    num_layers = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", None) or 0)
    settings = getattr(text, "per_layer_config", None)
    if settings is not None:
        layers = [settings[layer] for layer in range(num_layers)]
        return [(layer.num_key_value_heads, layer.head_dim) for layer in layers]
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return [(getattr(text, "num_key_value_heads", None) or heads, size)] * num_layers


def decoder_flops_per_token(config: Any) -> int:
    """Operations of one more token in the decoder's linear layers, without attention and output layer."""
    vocabulary = 2 * config.get_text_config().hidden_size * config.get_text_config().vocab_size
    # Only attention is not linear in n: f(2) - f(1) = linear + 3 a, f(3) - f(2) = linear + 5 a.
    one, two, three = (prefill_flops(config, n) - vocabulary for n in (1, 2, 3))
    attention = (three - two - (two - one)) // 2
    return one - attention
