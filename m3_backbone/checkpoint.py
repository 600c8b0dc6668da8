"""Loading: the authors' checkpoints as they are published, and those that this project writes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel, LlavaConfig, LlavaNextConfig
from transformers.utils import cached_file

from m3_backbone import authors
from m3_backbone.modeling import M3LlavaForConditionalGeneration, M3LlavaNextForConditionalGeneration, M3Model
from m3_backbone.processing import PROCESSOR_FILE, M3Processor
from m3_backbone.tiles import parse_resolutions
from m3_backbone.weights import (
    INDEX_FILES,
    KEY_MAPPING,
    WEIGHT_FILES,
    authors_name,
    check_weights,
    shard_names,
    weight_files,
    weight_shapes,
)

PACKAGED = ("tiny_m3",)
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    PROCESSOR_FILE,
)


def load_m3(
    checkpoint: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
) -> tuple[M3Model, M3Processor]:
    """The model, in evaluation mode, and its processor.

    `checkpoint` is a folder, a hub id or `tiny_m3`, in the authors' layout or in this project's. `dtype`,
    `device_map` and `attn_implementation` are those of `from_pretrained`; `image_grid_pinpoints` replaces the
    grids of tiles of a tiled checkpoint, as (width, height) in pixels. ValueError names weights that are
    missing, unexpected or wrongly shaped, and what in the configuration is no M3.
    """
    folder = fetch(checkpoint)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"no config.json in {folder}: is it the folder of a checkpoint?")
    raw: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    config: LlavaConfig | LlavaNextConfig
    if raw.get("model_type") == authors.MODEL_TYPE:
        config, processor = authors.convert(folder, raw)
    elif (folder / PROCESSOR_FILE).is_file():
        config_class = LlavaNextConfig if raw.get("model_type") == "llava_next" else LlavaConfig
        config, processor = config_class.from_pretrained(folder), M3Processor.from_pretrained(folder)
    else:
        raise ValueError(
            f"{folder} holds no M3: the model_type in its config.json is {raw.get('model_type')!r}, not"
            f" {authors.MODEL_TYPE!r}, and it has no {PROCESSOR_FILE}"
        )
    if image_grid_pinpoints is not None:
        _replace_resolutions(config, processor, image_grid_pinpoints)
    model = _load_model(folder, raw, config, dtype, device_map, attn_implementation)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = processor.pad_token_id
    return model, processor


def _replace_resolutions(
    config: LlavaConfig | LlavaNextConfig, processor: M3Processor, pinpoints: Sequence[Sequence[int]]
) -> None:
    if not isinstance(config, LlavaNextConfig):
        raise ValueError(
            "image_grid_pinpoints is for tiled checkpoints, and this one sees one grid per image"
        )
    resolutions = parse_resolutions(pinpoints)
    processor.images = replace(processor.images, resolutions=resolutions)
    config.image_grid_pinpoints = [[height, width] for width, height in resolutions]


def fetch(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint, downloaded first where it is a hub id. OSError where there is none."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint in PACKAGED:
        return Path(str(files("m3_backbone"))) / "assets" / str(checkpoint)
    name = str(checkpoint)
    folder = Path(str(cached_file(name, "config.json"))).parent
    for optional in (*TOKENIZER_FILES, *INDEX_FILES[:1], *WEIGHT_FILES[:1]):
        cached_file(name, optional, _raise_exceptions_for_missing_entries=False)
    if not any((folder / file).is_file() for file in (INDEX_FILES[0], WEIGHT_FILES[0])):
        for optional in (INDEX_FILES[1], WEIGHT_FILES[1]):
            cached_file(name, optional, _raise_exceptions_for_missing_entries=False)
    for index in INDEX_FILES:
        if (folder / index).is_file():
            for shard in shard_names(folder / index):
                cached_file(name, shard)
    return folder


def _load_model(
    folder: Path,
    raw: dict[str, Any],
    config: LlavaConfig | LlavaNextConfig,
    dtype: str | torch.dtype,
    device_map: Any,
    attn_implementation: str | None,
) -> M3Model:
    model_class: Any = (
        M3LlavaNextForConditionalGeneration
        if isinstance(config, LlavaNextConfig)
        else M3LlavaForConditionalGeneration
    )
    rename = authors_name if raw["model_type"] == authors.MODEL_TYPE else str
    with torch.device("meta"):
        expected = {rename(name): weight.shape for name, weight in model_class(config).state_dict().items()}
    found = weight_shapes(weight_files(folder))
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
        found.pop("lm_head.weight", None)
    # Checkpoints trained before the tower was stored name it only; a tower in the checkpoint always wins.
    tower_names = {name for name in expected if name.startswith("model.vision_tower.")}
    has_tower = bool(tower_names & found.keys())
    if not has_tower and "mm_vision_tower" in raw:
        expected = {name: shape for name, shape in expected.items() if name not in tower_names}
    check_weights(found, expected, folder)
    model = model_class.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        key_mapping=KEY_MAPPING,
    )
    if not has_tower:
        name = raw["mm_vision_tower"]
        tower = CLIPVisionModel.from_pretrained(authors.find_tower(name, folder) or name, dtype=model.dtype)
        model.model.vision_tower.load_state_dict(tower.state_dict())
    return model
