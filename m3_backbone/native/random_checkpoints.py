"""Small checkpoints with random weights in the layout of published models, for tests and timings.

The classes, the files and the chat templates' structure are those of the published models; answers are
meaningless. Weights are larger than at initialisation, so that answers depend on image and question.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from m3_backbone.loading.checkpoint import without_progress_bars

_TEXTS = (
    "What color is the large square? How many small circles are there? Is there a red one? yes no left right",
    "The answer is a short text. 0 1 2 3 4 5 6 7 8 9 blue green yellow triangle star top bottom row column",
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
_IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_INTERNVL_TEMPLATE = _QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def train_chat_tokenizer(
    special: Mapping[str, str], template: str, *, eos_token: str, vocab_size: int = 384
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with special tokens and a chat template.

    `special` maps names such as `image_token` to tokens; `eos_token` is one of the tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(special.values())]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    named = {name: token for name, token in special.items() if name in ("bos_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={name: token for name, token in special.items() if name not in named},
        **named,
    )


def write_checkpoint(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    image_processor: Any,
    *,
    eos_token_ids: list[int],
    seed: int,
) -> None:
    """Draw the weights of a model and write it with tokenizer and image processor to `folder`."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            fan_in = weight[0].numel()
            torch.nn.init.normal_(weight, std=1.5 * fan_in**-0.5, generator=generator)
        elif "norm" not in name:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    model.generation_config.eos_token_id = eos_token_ids
    model.generation_config.pad_token_id = eos_token_ids[0]
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)


def _size_decoder(tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int) -> dict[str, Any]:
    """Return the settings of a small decoder with grouped queries and heads of 16 numbers."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 16,
        "num_key_value_heads": hidden_size // 32,
        "max_position_embeddings": 4096,
    }


def write_qwen_vl(
    folder: Path, model_type: str = "qwen3_vl", *, seed: int = 0, hidden_size: int = 64, num_layers: int = 3
) -> None:
    """Write a Qwen2.5-VL or Qwen3-VL with grouped queries; its decoder has heads of 16 numbers."""
    special = {
        "eos_token": "<|im_end|>",
        "end_token": "<|endoftext|>",
        "start_token": "<|im_start|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = train_chat_tokenizer(special, _QWEN_TEMPLATE, eos_token="<|im_end|>")
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    is_newer = model_type == "qwen3_vl"
    patch_size = 16 if is_newer else 14
    text: dict[str, Any] = {
        **_size_decoder(tokenizer, hidden_size, num_layers),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": ids["eos_token"],
    }
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
        "patch_size": patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if is_newer:
        text |= {"head_dim": 16}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    else:
        vision |= {"window_size": 112, "fullatt_block_indexes": [1]}
    prefix = "Qwen3VL" if is_newer else "Qwen2_5_VL"
    config: Any = getattr(transformers, f"{prefix}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_start_token"],
        vision_end_token_id=ids["vision_end_token"],
        tie_word_embeddings=False,
    )
    image_processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        size={"shortest_edge": 4 * (2 * patch_size) ** 2, "longest_edge": 2**14 * (2 * patch_size) ** 2},
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    ends = [ids["eos_token"], ids["end_token"]]
    write_checkpoint(folder, model, tokenizer, image_processor, eos_token_ids=ends, seed=seed)


def write_gemma4(
    folder: Path, model_type: str = "gemma4", *, seed: int = 0, hidden_size: int = 64, like: str = "e2b"
) -> None:
    """Write a Gemma 4 with grouped queries and the architecture of a published size.

    `like` is "e2b" (per-layer inputs, layers that share keys and values, audio tower), "31b" (bidirectional
    attention within an image in sliding layers, keys equal to values in the others) or "26b_a4b" (the same
    with experts). The sliding window is shorter than an image.
    """
    special = {
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "turn_token": "<|turn>",
        "end_token": "<turn|>",
        "boi_token": "<|image>",
        "image_token": "<|image|>",
        "eoi_token": "<image|>",
        "boa_token": "<|audio>",
        "audio_token": "<|audio|>",
        "eoa_token": "<audio|>",
        "video_token": "<|video|>",
    }
    tokenizer = train_chat_tokenizer(special, _GEMMA_TEMPLATE, eos_token="<eos>")
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    is_small = like == "e2b"
    text: dict[str, Any] = {
        **_size_decoder(tokenizer, hidden_size, num_layers=6),
        "vocab_size_per_layer_input": len(tokenizer),
        "head_dim": 16,
        "global_head_dim": 32,
        "layer_types": [*["sliding_attention", "full_attention"] * 2, "sliding_attention", "full_attention"],
        "sliding_window": 32,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 0,
        "tie_word_embeddings": is_small,
        **{f"{name}_token_id": ids[f"{name}_token"] for name in ("pad", "eos", "bos")},
    }
    vision: dict[str, Any] = {
        **_TOWER,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "position_embedding_size": 3360,
    }
    audio = None
    if is_small:
        text |= {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
        vision |= {"use_clipped_linears": True}
        audio = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [4, 2],
            "output_proj_dims": 32,
        }
    else:
        text |= {
            "use_bidirectional_attention": "vision",
            "attention_k_eq_v": True,
            "num_global_key_value_heads": hidden_size // 64,
        }
        vision |= {"standardize": True}
    if like == "26b_a4b":
        text |= {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": hidden_size,
        }
    config = transformers.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        **{
            f"{name}_token_id": ids[f"{name}_token"]
            for name in ("boi", "eoi", "image", "video", "boa", "audio")
        },
        eoa_token_index=ids["eoa_token"],
        # A random output layer that is tied to the embeddings mostly repeats the last token.
        tie_word_embeddings=is_small,
    )
    model = transformers.Gemma4ForConditionalGeneration(config)
    image_processor = transformers.Gemma4ImageProcessorPil()
    ends = [ids["eos_token"], ids["end_token"]]
    write_checkpoint(folder, model, tokenizer, image_processor, eos_token_ids=ends, seed=seed)


def write_idefics3(
    folder: Path, model_type: str = "idefics3", *, seed: int = 0, hidden_size: int = 64, num_layers: int = 3
) -> None:
    """Write an Idefics3 or SmolVLM with grouped queries and tiles of 32 pixels and 4 visual tokens."""
    special = {
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    sides = range(1, 7)
    special |= {f"row_{row}_col_{col}": f"<row_{row}_col_{col}>" for row in sides for col in sides}
    tokenizer = train_chat_tokenizer(special, _IDEFICS_TEMPLATE, eos_token="<end_of_utterance>")
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    tile, patch_size = 32, 8
    text = {
        "model_type": "llama",
        **_size_decoder(tokenizer, hidden_size, num_layers),
        "head_dim": 16,
        "bos_token_id": ids["bos_token"],
        "eos_token_id": ids["eos_token"],
        "pad_token_id": ids["pad_token"],
    }
    vision = {**_TOWER, "image_size": tile, "patch_size": patch_size}
    prefix = "SmolVLM" if model_type == "smolvlm" else "Idefics3"
    config: Any = getattr(transformers, f"{prefix}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_token"],
        scale_factor=2,
        tie_word_embeddings=False,
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    image_processor = getattr(transformers, f"{prefix}ImageProcessorPil")(
        size={"longest_edge": 4 * tile}, max_image_size={"longest_edge": tile}
    )
    ends = [ids["eos_token"]]
    write_checkpoint(folder, model, tokenizer, image_processor, eos_token_ids=ends, seed=seed)


def write_internvl(
    folder: Path, model_type: str = "internvl", *, seed: int = 0, hidden_size: int = 64, num_layers: int = 3
) -> None:
    """Write an InternVL with grouped queries and tiles of 32 pixels and 4 visual tokens."""
    special = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "start_token": "<|im_start|>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = train_chat_tokenizer(special, _INTERNVL_TEMPLATE, eos_token="<|im_end|>")
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    tile = 32
    text = {
        "model_type": "qwen2",
        **_size_decoder(tokenizer, hidden_size, num_layers),
        "bos_token_id": None,
        "eos_token_id": ids["eos_token"],
        "pad_token_id": ids["pad_token"],
    }
    config = transformers.InternVLConfig(
        text_config=text,
        vision_config={**_TOWER, "image_size": tile, "patch_size": 8},
        image_token_id=ids["context_image_token"],
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = transformers.InternVLForConditionalGeneration(config)
    image_processor = transformers.GotOcr2ImageProcessorPil(size={"height": tile, "width": tile})
    ends = [ids["eos_token"]]
    write_checkpoint(folder, model, tokenizer, image_processor, eos_token_ids=ends, seed=seed)


_WRITERS: Mapping[str, Callable[..., None]] = {
    "qwen2_5_vl": write_qwen_vl,
    "qwen3_vl": write_qwen_vl,
    "gemma4": write_gemma4,
    "idefics3": write_idefics3,
    "smolvlm": write_idefics3,
    "internvl": write_internvl,
}


def write_random_checkpoint(folder: str | Path, model_type: str, **sizes: Any) -> Path:
    """Write a small random checkpoint of a model type to `folder`, and return it.

    `sizes` are the keyword arguments of the writer of that type. Raises ValueError that lists the known types
    for an unknown one.
    """
    if model_type not in _WRITERS:
        raise ValueError(f"no random {model_type!r}: choose one of {', '.join(_WRITERS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[model_type](folder, model_type, **sizes)
    (folder / "random.json").write_text(json.dumps({"model_type": model_type, **sizes}) + "\n")
    return folder
