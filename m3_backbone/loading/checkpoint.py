"""Loading: the authors' checkpoints as they are published, and those that this project writes."""

import copy
import hashlib
import json
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

from m3_backbone.llava.modeling import (
    M3LlavaForConditionalGeneration,
    M3LlavaNextForConditionalGeneration,
    M3Model,
    grid_of,
    scales_of,
)
from m3_backbone.llava.pooling import grid_scales
from m3_backbone.llava.preprocessing import parse_resolutions
from m3_backbone.llava.processing import PROCESSOR_FILE, M3Processor
from m3_backbone.loading import authors
from m3_backbone.loading.weights import (
    INDEX_FILES,
    KEY_MAPPING,
    PACKAGED,
    SMALL_FILES,
    authors_name,
    check_finite,
    check_weights,
    download_weights,
    find_folder,
    hash_weights,
    weight_files,
    weight_shapes,
)
from m3_backbone.reading import check_settings, find_kernels, read_json


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers: the program that loads a model shows its own."""
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
    """The model, in evaluation mode, and its processor.

    `checkpoint` is a folder, a hub id or `tiny_m3`, in the authors' layout or in this project's. `dtype`,
    `device_map` and `attn_implementation` are those of `from_pretrained`; `image_grid_pinpoints` replaces the
    grids of tiles of a tiled checkpoint, as (width, height) in pixels, and `scales` the scales that it names
    itself. ValueError names weights that are missing, unexpected, wrongly shaped or not finite, and what in
    the configuration is no M3.
    """
    opened = Checkpoint.open(checkpoint, image_grid_pinpoints, scales)
    model = opened.load_model(dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
    return model, opened.processor


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose configuration and tokenizer are read, and whose weights are not.

    `source` is its folder or hub id; `tower`, for the authors' layout, what `mm_vision_tower` names;
    `given_scales` take the place of those that its configuration names.
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
        folder = find_folder(checkpoint)
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise FileNotFoundError(f"no config.json in {folder}: is it the folder of a checkpoint?")
        raw = read_json(config_file)
        check_settings(config_file, raw, {"model_type": str | None})
        for problem in find_kernels(raw):
            raise ValueError(f"{config_file}: {problem}, and no code is fetched for a checkpoint")
        config: LlavaConfig | LlavaNextConfig
        if raw.get("model_type") == authors.MODEL_TYPE:
            config, processor = authors.convert(folder, raw)
        elif (folder / PROCESSOR_FILE).is_file():
            config_class = LlavaNextConfig if raw.get("model_type") == "llava_next" else LlavaConfig
            try:
                config = config_class.from_pretrained(folder)
            except Exception as error:  # whatever transformers raises, as in `authors._read_decoder`
                raise ValueError(f"{config_file}: {' '.join(str(error).split())}") from error
            processor = M3Processor.from_pretrained(folder)
        else:
            raise ValueError(
                f"{folder} holds no M3: the model_type in its config.json is {raw.get('model_type')!r}, not"
                f" {authors.MODEL_TYPE!r}, and it has no {PROCESSOR_FILE}"
            )
        if image_grid_pinpoints is not None:
            _replace_resolutions(config, processor, image_grid_pinpoints)
        given = None if scales is None else tuple(scales)
        opened = cls(
            str(checkpoint), folder, config, processor, raw.get("mm_vision_tower"), given_scales=given
        )
        try:
            own_scales = opened.scales
        except ValueError as error:
            raise ValueError(f"{config_file}: {error}") from error
        if given is None and raw.get("matryoshka_vis_token_scale") is None and opened.tower is not None:
            raise ValueError(
                f"{config_file} names no scales of visual tokens (matryoshka_vis_token_scale), so this is a "
                "LLaVA that was not trained for any but the finest. If it was, give them: "
                f"backbone.scales={list(own_scales)}"
            )
        return opened

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that were given, or those that the configuration names. Errors as in `scales_of`."""
        if self.given_scales is None:
            return scales_of(self.config)
        try:
            return grid_scales(grid_of(self.config), self.given_scales)
        except ValueError as error:
            raise ValueError(f"backbone.scales={list(self.given_scales)}: {error}") from error

    @property
    def context_length(self) -> int:
        """Positions that the decoder was made for."""
        return self.config.get_text_config().max_position_embeddings

    @cached_property
    def files(self) -> list[Path]:
        """The weight files, downloaded first where the checkpoint is a hub id."""
        if not Path(self.source).is_dir() and self.source not in PACKAGED:
            download_weights(self.source, self.folder)
        return weight_files(self.folder)

    @cached_property
    def tower_files(self) -> list[Path]:
        """The weight files of a tower that lies in a folder of its own and is not in `files`."""
        folder = authors.find_tower(self.tower, self.folder) if self.tower else None
        if folder is None or any("vision_tower." in name for name in weight_shapes(self.files)):
            return []
        return weight_files(folder)

    @property
    def is_local(self) -> bool:
        """Whether it lies in a folder of this machine, which nobody else can name."""
        return Path(self.source).is_dir()

    def copy_to(self, folder: Path) -> None:
        """A copy that opens as this one does, in place of what `folder` held.

        ValueError where weights are pickled, or the tower lies in a folder that a copy cannot hold.
        """
        tower = authors.find_tower(self.tower, self.folder) if self.tower else None
        _refuse_pickled(self.files)
        _refuse_pickled(self.tower_files)  # whether there are any is read from the others
        if self.folder.resolve() == folder.resolve():
            return
        if tower is not None and not (folder / str(self.tower)).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"the tower of {self.folder} lies outside of it ({self.tower}): put it into that folder, and"
                " its name there into mm_vision_tower of config.json"
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
        """16 hex digits over configuration and weights, from the files; no model is built."""
        settings = self.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "dtype", "architectures"):
            settings.pop(name, None)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        hash_weights([*self.files, *self.tower_files], digest)
        return digest.hexdigest()[:16]

    def load_model(
        self,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
    ) -> M3Model:
        """The model with its weights, each read once, straight to its place. Errors as in `load_m3`."""
        is_tiled = isinstance(self.config, LlavaNextConfig)
        model_class: Any = (
            M3LlavaNextForConditionalGeneration if is_tiled else M3LlavaForConditionalGeneration
        )
        has_tower = self._check_weights(model_class)
        config = copy.deepcopy(self.config)
        if self.given_scales is not None:
            config.matryoshka_vis_token_scale = list(self.given_scales)
        with _without_progress_bars():
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
        """Compare files and configuration before anything is loaded; True where the files hold the tower."""
        found = weight_shapes(self.files)
        parts: list[Any] = [self.config.get_text_config()]
        parts += [] if self.tower else [self.config.vision_config]
        # Without weights for them a model of a billion layers would be built, and take all memory.
        for num_layers in (part.num_hidden_layers for part in parts):
            if num_layers > len(found):
                raise ValueError(
                    f"{self.folder / 'config.json'}: num_hidden_layers is {num_layers:,}, and there are "
                    f"{len(found):,} weights in all"
                )
        with torch.device("meta"):
            weights = model_class(self.config).state_dict()
        rename = authors_name if self.tower else str
        expected = {rename(name): weight.shape for name, weight in weights.items()}
        if self.config.tie_word_embeddings:
            expected.pop("lm_head.weight")
            found.pop("lm_head.weight", None)
        # A tower in the checkpoint always wins; older checkpoints hold none and name theirs only.
        tower = {name for name in expected if name.startswith("model.vision_tower.")}
        has_tower = self.tower is None or bool(tower & found.keys())
        if not has_tower:
            expected = {name: shape for name, shape in expected.items() if name not in tower}
        check_weights(found, expected, self.folder)
        return has_tower


def _refuse_pickled(files: Iterable[Path]) -> None:
    for path in files:
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is pickled, and nothing pickled is copied: convert the checkpoint to safetensors, or"
                " give it by hub id"
            )


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
