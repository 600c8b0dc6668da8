"""Changes of the shape of a trained M3: fewer tower layers, more and wider decoder layers.

Additions to the decoder have no effect at first, so that training continues from the trained model: blocks
whose outputs are zero (LLaMA Pro, Wu et al. 2024), and hidden units of the MLPs with zero output weights.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from m3_backbone.llava.modeling import M3Model


def reshape(
    model: M3Model,
    *,
    tower_layers: Sequence[int] | None = None,
    num_decoder_layers: int | None = None,
    intermediate_size: int | None = None,
) -> None:
    """Change the shape of `model` in place. None leaves a part unchanged.

    Args:
        model: an M3 with a Llama decoder.
        tower_layers: indices of the vision tower's layers to keep, in ascending order. Every removed layer
            changes the outputs of the tower.
        num_decoder_layers: number of decoder blocks, at least the present number. New blocks are spread
            evenly between the old ones; each is a copy of the previous block with zero output.
        intermediate_size: width of the decoder's MLPs, at least the present width. New units have random
            input weights and zero output weights.

    Raises ValueError for layers that the tower lacks and for a decoder that would shrink.
    """
    if tower_layers is not None:
        _keep_tower_layers(model, tower_layers)
    if intermediate_size is not None:
        _widen_mlps(model, intermediate_size)
    if num_decoder_layers is not None:
        _add_decoder_layers(model, num_decoder_layers)


def _keep_tower_layers(model: M3Model, kept: Sequence[int]) -> None:
    tower: Any = model.model.vision_tower
    number = tower.config.num_hidden_layers
    if not kept or sorted(set(kept)) != list(kept) or not 0 <= kept[0] <= kept[-1] < number:
        raise ValueError(
            f"tower layers {list(kept)} cannot be kept: give some of 0 to {number - 1}, each once, in order"
        )
    layers = tower.encoder.layers
    tower.encoder.layers = nn.ModuleList(layers[index] for index in kept)
    tower.config.num_hidden_layers = len(kept)


def _widen_mlps(model: M3Model, width: int) -> None:
    config = model.config.get_text_config()
    added = width - config.intermediate_size
    if added < 0:
        raise ValueError(
            f"the decoder's MLPs have {config.intermediate_size} units and cannot shrink to {width}"
        )
    decoder: Any = model.model.language_model
    for layer in decoder.layers:
        mlp = layer.mlp
        for name in ("gate_proj", "up_proj"):
            old = getattr(mlp, name).weight
            new = torch.empty(added, old.shape[1]).normal_(std=config.initializer_range)
            _set_weight(getattr(mlp, name), torch.cat([old, new.to(old)]))
        old = mlp.down_proj.weight
        _set_weight(mlp.down_proj, torch.cat([old, old.new_zeros(len(old), added)], dim=1))
        mlp.intermediate_size = width
    config.intermediate_size = width


def _add_decoder_layers(model: M3Model, number: int) -> None:
    config = model.config.get_text_config()
    decoder: Any = model.model.language_model
    old = decoder.layers
    if number < len(old):
        raise ValueError(f"the decoder has {len(old)} layers and cannot shrink to {number}")
    layers = []
    for index, layer in enumerate(old):
        layers.append(layer)
        # Spread the new blocks evenly.
        while len(layers) < (index + 1) * number // len(old):
            layers.append(_copy_as_identity(layer))
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    decoder.layers = nn.ModuleList(layers)
    config.num_hidden_layers = number


def _copy_as_identity(layer: Any) -> Any:
    """Return a copy of a decoder block whose residual branches output zero."""
    copy = deepcopy(layer)
    with torch.no_grad():
        copy.self_attn.o_proj.weight.zero_()
        copy.mlp.down_proj.weight.zero_()
    return copy


def _set_weight(linear: nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = nn.Parameter(weight.detach().clone())
    linear.out_features, linear.in_features = weight.shape
