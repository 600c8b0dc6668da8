"""Conversion of configuration files in the layout of LLaVA (M3, MQT-LLaVA) to those of this package."""

import ast
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

from m3_backbone.arguments import PositiveFloat, PositiveInt
from m3_backbone.llava.preprocessing import CLIP_MEAN, CLIP_STD, Aspect, ImagePreprocessor, parse_resolutions
from m3_backbone.llava.processing import M3Processor
from m3_backbone.llava.queries import NUM_HEADS, NUM_QUERIES, QueryPreprocessor
from m3_backbone.loading.tokenization import load_tokenizer
from m3_backbone.loading.weights import fetch, weight_names
from m3_backbone.reading import check_settings, find_kernels, read_json

MODEL_TYPE = "llava_llama"
# The vision tower of the published checkpoints. Its shape is known here, so that a local copy of such a
# checkpoint, which contains the tower's weights, needs no network.
CLIP_L_336 = "clip-vit-large-patch14-336"
LLAMA_FIELDS = {*LlamaConfig.__annotations__, "rope_theta", "rope_scaling"}

_DTYPES = Literal["float32", "bfloat16", "float16"]
_CONFIG_TYPES = {
    **dict.fromkeys(("mm_vision_tower", "mm_projector_type"), str),
    **dict.fromkeys(("mm_patch_merge_type", "image_aspect_ratio"), str),
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers"), PositiveInt),
    **dict.fromkeys(("num_attention_heads", "vocab_size", "max_position_embeddings"), PositiveInt),
    "num_key_value_heads": PositiveInt | None,
    "mm_vision_select_layer": int,
    "rms_norm_eps": PositiveFloat,
    "rope_theta": PositiveFloat,
    "rope_scaling": dict[str, Any] | None,
    "tie_word_embeddings": bool,
    "torch_dtype": _DTYPES | None,
    "dtype": _DTYPES | None,
}
_Pixels = PositiveInt | Annotated[dict[str, PositiveInt], Len(1)]
_TOWER_TYPES = {
    "size": _Pixels,
    "crop_size": _Pixels,
    "resample": Annotated[int, Ge(0), Le(5)],
    "image_mean": tuple[float, float, float],
    "image_std": tuple[PositiveFloat, PositiveFloat, PositiveFloat],
}


def convert(folder: Path, raw: dict[str, Any]) -> tuple[LlavaConfig | LlavaNextConfig, M3Processor]:
    """Configuration and processor of a checkpoint folder whose `config.json` contains `raw`.

    Raises ValueError that names the file for a configuration that is not supported.
    """
    has_queries = _has_queries(raw, folder)
    _check(raw, folder, has_queries)
    vision: Any
    vision, settings = _read_tower(raw["mm_vision_tower"], folder)
    is_tiled = raw.get("mm_patch_merge_type", "flat") == "spatial_unpad"
    resolutions = _read_resolutions(raw, folder) if is_tiled else ()
    aspect: Aspect = "anyres" if is_tiled else "pad" if raw.get("image_aspect_ratio") == "pad" else "crop"
    images_class = QueryPreprocessor if has_queries else ImagePreprocessor
    images = images_class(
        image_size=_side(settings.get("crop_size", vision.image_size)),
        patch_size=vision.patch_size,
        aspect=aspect,
        resolutions=resolutions,
        resize=_side(settings.get("size", vision.image_size)),
        resample=settings.get("resample", ImagePreprocessor.resample),
        mean=tuple(settings.get("image_mean", CLIP_MEAN)),
        std=tuple(settings.get("image_std", CLIP_STD)),
    )
    if images.image_size != vision.image_size:
        raise ValueError(
            f"the vision tower {raw['mm_vision_tower']} takes {vision.image_size} pixels, but its"
            f" preprocessor_config.json makes {images.image_size}"
        )
    processor = M3Processor(load_tokenizer(folder), images, "vicuna_v1")
    common: dict[str, Any] = {
        "vision_config": vision,
        "text_config": _read_decoder(raw, folder),
        "image_token_index": processor.image_token_id,
        "image_seq_length": NUM_QUERIES if has_queries else images.grid**2,
        "vision_feature_layer": raw["mm_vision_select_layer"],
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "matryoshka_vis_token_scale": raw.get("matryoshka_vis_token_scale"),
        "dtype": raw.get("torch_dtype") or raw.get("dtype"),
    }
    if has_queries:
        common |= {"num_queries": NUM_QUERIES, "num_query_heads": NUM_HEADS}
    if is_tiled:
        return LlavaNextConfig(**common, image_grid_pinpoints=[[h, w] for w, h in resolutions]), processor
    return LlavaConfig(**common), processor


def _has_queries(raw: dict[str, Any], folder: Path) -> bool:
    """Whether a checkpoint has the query transformer of MQT-LLaVA in place of a projector.

    The authors' training code writes `query_abstractor_type`. Their model code ignores the configuration and
    always builds the query transformer, so the names of local weights decide too.
    """
    return raw.get("query_abstractor_type") is not None or any(
        name.startswith("model.query_abstractor.") for name in weight_names(folder)
    )


def _check(raw: dict[str, Any], folder: Path, has_queries: bool) -> None:
    """Raise ValueError for missing keys, and for values that this code does not support."""
    supported = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch",),
        "mm_use_im_start_end": (False,),
        "query_abstractor_type": ("matry_query",),
    }
    required = ["mm_vision_tower", "mm_vision_select_layer", "mm_projector_type"]
    if has_queries:
        # It is in the configuration, but there is no projector.
        required.remove("mm_projector_type")
        supported.pop("mm_projector_type")
    for key in required:
        if key not in raw:
            raise ValueError(f"{folder / 'config.json'} lacks {key}: is this a LLaVA checkpoint?")
    check_settings(folder / "config.json", raw, _CONFIG_TYPES)
    for key, values in supported.items():
        if raw.get(key, values[0]) not in values:
            raise ValueError(f"{folder / 'config.json'} has {key}={raw[key]!r}; supported: {values[0]!r}")
    merge, aspect = raw.get("mm_patch_merge_type", "flat"), raw.get("image_aspect_ratio", "square")
    if (merge == "spatial_unpad") != (aspect == "anyres") or merge not in ("flat", "spatial_unpad"):
        raise ValueError(
            f"{folder / 'config.json'} has mm_patch_merge_type={merge!r}, image_aspect_ratio={aspect!r};"
            " supported: 'flat' with 'pad' or 'square', 'spatial_unpad' with 'anyres'"
        )
    if aspect == "anyres" and has_queries:
        raise ValueError(f"{folder / 'config.json'} has tiles and learned queries, which is not supported")
    if aspect == "anyres" and "image_grid_pinpoints" not in raw:
        raise ValueError(f"{folder / 'config.json'} lacks image_grid_pinpoints, which 'anyres' needs")


def _read_resolutions(raw: dict[str, Any], folder: Path) -> tuple[tuple[int, int], ...]:
    pinpoints = raw["image_grid_pinpoints"]
    try:
        return parse_resolutions(ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: image_grid_pinpoints is {pinpoints!r}: {error}"
        ) from error


def _read_decoder(raw: dict[str, Any], folder: Path) -> LlamaConfig:
    try:
        return LlamaConfig(**{key: value for key, value in raw.items() if key in LLAMA_FIELDS})
    except Exception as error:  # transformers and huggingface_hub raise errors of many types
        raise ValueError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from error


def find_tower(name: str, folder: Path) -> Path | None:
    """Local folder of `mm_vision_tower`: in the checkpoint, beside it, or in the working directory."""
    candidates = (folder / name, folder.parent / name, Path(name))
    return next((candidate for candidate in candidates if (candidate / "config.json").is_file()), None)


def _read_tower(name: str, folder: Path) -> tuple[CLIPVisionConfig, dict[str, Any]]:
    """Configuration and image settings of the tower: from a local folder, for CLIP-L/336, or from the hub."""
    local = find_tower(name, folder)
    if local is None and Path(name).name == CLIP_L_336:
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        )
        return vision, {}
    source = str(local or name)
    try:
        vision = CLIPVisionConfig.from_pretrained(source)
        file = (
            fetch(source, "preprocessor_config.json") if local is None else local / "preprocessor_config.json"
        )
    except OSError as error:
        raise OSError(
            f"the vision tower {name!r} of {folder} is neither in it nor beside it, and cannot be fetched"
            f" from the hub: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # as in `_read_decoder`
        raise ValueError(
            f"config.json of the vision tower {source}: {' '.join(str(error).split())}"
        ) from error
    for problem in find_kernels({"attn_implementation": vision._attn_implementation}):
        raise ValueError(
            f"config.json of the vision tower {source}: {problem}, and no code is fetched for a checkpoint"
        )
    if file is None or not file.is_file():
        return vision, {}
    settings = read_json(file)
    check_settings(file, settings, _TOWER_TYPES)
    return vision, settings


def _side(value: int | dict[str, int]) -> int:
    """Return 336 for 336, {"shortest_edge": 336} or {"height": 336, "width": 336}."""
    return value if isinstance(value, int) else next(iter(value.values()))
