"""Untrained M3 models of any size, and a tokenizer trained on given texts."""

from collections.abc import Iterable
from math import isqrt

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
)

from m3_backbone.llava.modeling import M3LlavaForConditionalGeneration
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.llava.processing import M3Processor
from m3_backbone.llava.prompts import IMAGE

# Words with the preceding space; every digit is a separate token.
_PIECES = r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"
PAD, END = "<pad>", "</s>"
Tower = CLIPVisionModel


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocab_size` tokens, with `<pad>`, `</s>` and `<image>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, *, image_size: int, patch_size: int, prompt: str = "short"
) -> M3Processor:
    """Build a processor that pads images to squares and resizes them to `image_size` pixels a side."""
    return M3Processor(tokenizer, ImagePreprocessor(image_size=image_size, patch_size=patch_size), prompt)


def build_tower_config(
    *, image_size: int, patch_size: int, hidden_size: int, num_layers: int, num_heads: int
) -> CLIPVisionConfig:
    """Build the configuration of a CLIP vision tower with `image_size / patch_size` patches a side."""
    return CLIPVisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        projection_dim=hidden_size,
        # CLIP's quick_gelu is slower: PyTorch has no fused kernel for it.
        hidden_act="gelu",
    )


def set_wave_positions(tower: CLIPVisionModel) -> None:
    """Initialise the position embeddings of a tower, in place, with sines and cosines of both axes.

    CLIP's initialisation makes them a few hundredths as large as the patch embeddings, so that a tower needs
    many images to learn which patches are adjacent.
    """
    side, quarter = isqrt(tower.embeddings.num_patches), tower.config.hidden_size // 4
    frequencies = 10_000 ** -(torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, hidden_size / 2]
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = torch.cat([rows, columns], dim=2).flatten(0, 1) / 2


def set_whitening_patches(tower: CLIPVisionModel, pixel_values: Tensor, floor: float = 2e-3) -> None:
    """Initialise the patch embedding of a tower with the whitening of image patches.

    Nearly all of the variance of patches is that of their mean colour; shapes and strokes contribute about a
    hundredth. With random weights, a tower needs several times as many images to tell shapes apart.

    Args:
        tower: changed in place.
        pixel_values: `[num_images, 3, height, width]` from the processor; a few hundred images.
        floor: added to the variances, so that directions without variance are not amplified.
    """
    weight = tower.embeddings.patch_embedding.weight
    side, width = weight.shape[-1], len(weight)
    patches = pixel_values.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
    variances, directions = torch.linalg.eigh(patches.flatten(0, 2).T.cov())
    variances, directions = variances.flip(0)[:width], directions.flip(1)[:, :width]
    # A random rotation spreads every direction over all coordinates for the layer norm.
    rotation, _ = torch.linalg.qr(torch.randn(width, len(variances)))
    with torch.no_grad():
        weight.copy_((rotation @ (directions / (variances + floor).sqrt()).T).view_as(weight))


def build_model(
    tower: CLIPVisionConfig,
    processor: M3Processor,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    max_length: int = 1024,
) -> M3LlavaForConditionalGeneration:
    """Build a LLaVA model with random weights whose embeddings and output layer share their weights.

    Raises ValueError if `hidden_size` is not a multiple of `num_heads`.
    """
    config = build_config(
        tower,
        processor,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        vocab_size=len(processor.tokenizer),
        max_length=max_length,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = M3LlavaForConditionalGeneration(config)
    set_wave_positions(model.model.vision_tower)
    return model


def build_config(
    tower: CLIPVisionConfig,
    processor: M3Processor,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    vocab_size: int,
    max_length: int,
    vision_feature_layer: int,
    tie_word_embeddings: bool,
) -> LlavaConfig:
    """Build the configuration of a LLaVA model from a tower, the shape of a decoder and a processor.

    Raises ValueError if `hidden_size` is not a multiple of `num_heads`.
    """
    if hidden_size % num_heads:
        raise ValueError(f"a decoder of width {hidden_size} cannot have {num_heads} heads: use a divisor")
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=tie_word_embeddings,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=processor.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tie_word_embeddings,
    )
