"""Loading of the authors' published checkpoints and of those that this project writes."""

import copy
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from transformers import CLIPVisionModel, LlavaConfig, LlavaNextConfig
from transformers.utils import logging

from m3_backbone.arguments import PositiveInt
from m3_backbone.llava.modeling import M3Model, make_ladder, model_class_of, scales_of
from m3_backbone.llava.preprocessing import parse_resolutions
from m3_backbone.llava.processing import PROCESSOR_FILE, M3Processor
from m3_backbone.llava.queries import check_shape, num_heads_of, num_queries_of
from m3_backbone.loading import authors
from m3_backbone.loading.weights import (
    INDEX_FILES,
    KEY_MAPPING,
    PACKAGED,
    SMALL_FILES,
    authors_name,
    check_finite,
    check_weights,
    count_weights,
    download_weights,
    find_folder,
    fingerprint_weights,
    weight_files,
    weight_shapes,
)
from m3_backbone.reading import check_settings, find_kernels, read_json

_CONFIG_TYPES = {"model_type": str | None, "num_queries": PositiveInt, "num_query_heads": PositiveInt}


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, since the calling program shows its own."""
    is_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_enabled:
            logging.enable_progress_bar()


def load_m3(
    checkpoint: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
    scales: Sequence[int] | None = None,
) -> tuple[M3Model, M3Processor]:
    """Load a model, in evaluation mode, and its processor.

    Args:
        checkpoint: folder, hub id or `tiny_m3`, in the authors' layout or in that of this project.
        dtype, device_map, attn_implementation: as in `from_pretrained`.
        image_grid_pinpoints: other grids of tiles for a tiled checkpoint, (width, height) in pixels.
        scales: scales that replace those in the checkpoint's configuration.

    Raises ValueError that names weights that are missing, unexpected, wrongly shaped or not finite, or
    settings that are not those of an M3; OSError for a checkpoint that cannot be found.
    """
    opened = Checkpoint.open(checkpoint, image_grid_pinpoints, scales)
    model = opened.load_model(dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
    return model, opened.processor


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint of which only the configuration and the tokenizer have been read.

    `source` is the folder or hub id. `tower` is `mm_vision_tower` in the authors' layout, otherwise None.
    `given_scales` replace the scales in the configuration.
    """

    source: str
    folder: Path
    config: LlavaConfig | LlavaNextConfig
    processor: M3Processor
    tower: str | None
    given_scales: tuple[int, ...] | None = field(default=None, kw_only=True)

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
        scales: Sequence[int] | None = None,
    ) -> Self:
        """Read the configuration and the tokenizer of a checkpoint. Arguments and errors as in `load_m3`."""
        folder = find_folder(checkpoint)
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise FileNotFoundError(f"no config.json in {folder}: is this the folder of a checkpoint?")
        raw = read_json(config_file)
        check_settings(config_file, raw, _CONFIG_TYPES)
        for problem in find_kernels(raw):
            raise ValueError(f"{config_file}: {problem}, and no code is fetched for a checkpoint")
        config: LlavaConfig | LlavaNextConfig
        if raw.get("model_type") == authors.MODEL_TYPE:
            config, processor = authors.convert(folder, raw)
        elif (folder / PROCESSOR_FILE).is_file():
            config_class = LlavaNextConfig if raw.get("model_type") == "llava_next" else LlavaConfig
            try:
                config = config_class.from_pretrained(folder)
            except Exception as error:  # transformers raises errors of many types
                raise ValueError(f"{config_file}: {' '.join(str(error).split())}") from error
            processor = M3Processor.from_pretrained(folder)
        else:
            raise ValueError(
                f"{folder} is not an M3: the model_type in its config.json is {raw.get('model_type')!r}, not"
                f" {authors.MODEL_TYPE!r}, and it has no {PROCESSOR_FILE}"
            )
        if image_grid_pinpoints is not None:
            _replace_resolutions(config, processor, image_grid_pinpoints)
        given_scales = None if scales is None else tuple(scales)
        opened = cls(
            str(checkpoint), folder, config, processor, raw.get("mm_vision_tower"), given_scales=given_scales
        )
        try:
            ladder = opened.scales
            if num_queries := num_queries_of(config):
                vision: Any = config.vision_config
                check_shape(vision.hidden_size, num_queries, num_heads_of(config))
        except ValueError as error:
            raise ValueError(f"{config_file}: {error}") from error
        if (
            given_scales is None
            and raw.get("matryoshka_vis_token_scale") is None
            and opened.tower is not None
            and num_queries_of(config) is None
        ):
            raise ValueError(
                f"{config_file} names no scales of visual tokens (matryoshka_vis_token_scale), so this is a "
                "LLaVA that was trained for the finest scale only. If it was trained for more, give them: "
                f"backbone.scales={list(ladder)}"
            )
        return opened

    @property
    def scales(self) -> tuple[int, ...]:
        """`given_scales`, or the scales of the configuration if None. Errors as in `scales_of`."""
        if self.given_scales is None:
            return scales_of(self.config)
        try:
            return make_ladder(self.config, self.given_scales)
        except ValueError as error:
            raise ValueError(f"backbone.scales={list(self.given_scales)}: {error}") from error

    @property
    def context_length(self) -> int:
        """Largest number of positions of the decoder."""
        return self.config.get_text_config().max_position_embeddings

    @cached_property
    def files(self) -> list[Path]:
        """The weight files. Those of a hub id are downloaded first."""
        if not Path(self.source).is_dir() and self.source not in PACKAGED:
            download_weights(self.source, self.folder)
        return weight_files(self.folder)

    @cached_property
    def tower_files(self) -> list[Path]:
        """The weight files of a tower in a separate folder; empty if `files` contain the tower."""
        folder = authors.find_tower(self.tower, self.folder) if self.tower else None
        if folder is None or any("vision_tower." in name for name in weight_shapes(self.files)):
            return []
        return weight_files(folder)

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a local folder and not a hub id or a packaged model."""
        return Path(self.source).is_dir()

    def copy_to(self, folder: Path) -> None:
        """Copy the checkpoint to `folder`, replacing its content.

        Raises ValueError if weights are pickled, or if the tower is in a folder outside of the checkpoint.
        """
        tower = authors.find_tower(self.tower, self.folder) if self.tower else None
        _check_not_pickled(self.files)
        _check_not_pickled(self.tower_files)  # this property reads `files`, which are checked first
        if self.folder.resolve() == folder.resolve():
            return
        if tower is not None and not (folder / str(self.tower)).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"the tower of {self.folder} lies outside of it ({self.tower}): move it into that folder, and"
                " set mm_vision_tower in config.json to its new name"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("config.json", INDEX_FILES[0], *SMALL_FILES, *(path.name for path in self.files)):
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, folder)
        if tower is not None:
            keep = shutil.ignore_patterns("*.bin", "*.pt", "*.pth", "*.msgpack", "*.h5")
            shutil.copytree(tower, folder / str(self.tower), ignore=keep, dirs_exist_ok=True)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of configuration and weights, 16 hex digits. It is computed from the files without a model."""
        return fingerprint_weights(self.config, [*self.files, *self.tower_files])

    def count_weights(self) -> int:
        """Return the number of weights of the model, from its configuration alone."""
        model_class: Any = model_class_of(self.config)
        with torch.device("meta"):
            return count_weights(model_class(self.config))

    def load_model(
        self,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
    ) -> M3Model:
        """Build the model and load its weights. Arguments and errors as in `load_m3`."""
        model_class: Any = model_class_of(self.config)
        has_tower = self._check_weights(model_class)
        config = copy.deepcopy(self.config)
        if self.given_scales is not None:
            config.matryoshka_vis_token_scale = list(self.given_scales)
        with without_progress_bars():
            model = model_class.from_pretrained(
                self.folder,
                config=config,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                key_mapping=KEY_MAPPING,
            )
        if not has_tower:
            source = authors.find_tower(str(self.tower), self.folder) or self.tower
            tower = CLIPVisionModel.from_pretrained(source, dtype=model.dtype)
            model.model.vision_tower.load_state_dict(tower.state_dict())
        check_finite(model.named_parameters(), self.folder)
        settings = model.generation_config
        if settings.pad_token_id is None:
            settings.pad_token_id = self.processor.pad_token_id
        if settings.eos_token_id is None:
            settings.eos_token_id = self.processor.tokenizer.eos_token_id
        return model

    def _check_weights(self, model_class: Any) -> bool:
        """Check the weight files against the configuration. Returns whether they contain the tower."""
        stored = weight_shapes(self.files)
        parts: list[Any] = [self.config.get_text_config()]
        parts += [] if self.tower else [self.config.vision_config]
        # A wrong number of layers could otherwise take all memory when the model is built.
        for num_layers in (part.num_hidden_layers for part in parts):
            if num_layers > len(stored):
                raise ValueError(
                    f"{self.folder / 'config.json'}: num_hidden_layers is {num_layers:,}, but there are "
                    f"{len(stored):,} weights in all"
                )
        with torch.device("meta"):
            weights = model_class(self.config).state_dict()
        rename = authors_name if self.tower else str
        expected = {rename(name): weight.shape for name, weight in weights.items()}
        if self.config.tie_word_embeddings:
            expected.pop("lm_head.weight")
            stored.pop("lm_head.weight", None)
        # A tower in the checkpoint takes precedence; older checkpoints only name their tower.
        tower = {name for name in expected if name.startswith("model.vision_tower.")}
        has_tower = self.tower is None or bool(tower & stored.keys())
        if not has_tower:
            expected = {name: shape for name, shape in expected.items() if name not in tower}
        check_weights(stored, expected, self.folder)
        return has_tower


def _check_not_pickled(files: Iterable[Path]) -> None:
    for path in files:
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is pickled, and pickled files are not copied: convert the checkpoint to safetensors,"
                " or give its hub id"
            )


def _replace_resolutions(
    config: LlavaConfig | LlavaNextConfig, processor: M3Processor, pinpoints: Sequence[Sequence[int]]
) -> None:
    if not isinstance(config, LlavaNextConfig):
        raise ValueError("image_grid_pinpoints is for tiled checkpoints, and this one has one grid per image")
    resolutions = parse_resolutions(pinpoints)
    processor.images = replace(processor.images, resolutions=resolutions)
    config.image_grid_pinpoints = [[height, width] for width, height in resolutions]
