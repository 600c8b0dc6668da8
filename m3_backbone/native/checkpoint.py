"""Checkpoints of published vision-language models, in the layout of transformers."""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from m3_backbone.loading.checkpoint import without_progress_bars
from m3_backbone.loading.weights import (
    INDEX_FILES,
    check_finite,
    count_weights,
    download_weights,
    fetch,
    find_folder,
    fingerprint_weights,
    weight_files,
)
from m3_backbone.native.chat import ChatProcessor
from m3_backbone.reading import check_settings, find_kernels, read_json

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class ModelFamily:
    """The classes of transformers for one `model_type`, by name, and the placeholder of an image.

    Image processors are those on Pillow: they need no torchvision. `image_markers` are the texts before and
    after the tokens of an image, where the processor of the model adds them and not the chat template.
    """

    model: str
    image_processor: str
    image_text: str
    image_markers: tuple[str, str] = ("", "")


@dataclass(frozen=True, eq=False)
class NativeCheckpoint:
    """A checkpoint of which only the configuration, the tokenizer and the image settings have been read."""

    source: str
    folder: Path
    config: Any
    processor: ChatProcessor
    image_processor: Any
    family: ModelFamily

    @classmethod
    def open(cls, checkpoint: str | Path, families: Mapping[str, ModelFamily]) -> Self:
        """Read the small files of a folder or hub id.

        `families` are the families that the caller knows, by `model_type`. Raises ValueError for another
        model type and for damaged settings; OSError for a checkpoint that cannot be found.
        """
        folder = find_folder(checkpoint)
        is_hub_id = not Path(checkpoint).is_dir()
        for name in _SMALL_FILES if is_hub_id else ():
            fetch(str(checkpoint), name)
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise FileNotFoundError(f"no config.json in {folder}: is this the folder of a checkpoint?")
        raw = read_json(config_file)
        check_settings(config_file, raw, {"model_type": str | None})
        for problem in find_kernels(raw):
            raise ValueError(f"{config_file}: {problem}, and no code is fetched for a checkpoint")
        model_type = str(raw.get("model_type"))
        if model_type not in families:
            raise ValueError(
                f"{config_file}: the model_type is {model_type!r}, and this backbone takes "
                f"{' or '.join(map(repr, families))}: choose the backbone of that model"
            )
        family = families[model_type]
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            image_processor = getattr(transformers, family.image_processor).from_pretrained(folder)
            generation = _read_generation(folder, config)
        except Exception as error:  # transformers raises errors of many types
            raise ValueError(f"{folder} cannot be opened: {' '.join(str(error).split())}") from error
        template_file = folder / "chat_template.json"
        if tokenizer.chat_template is None and template_file.is_file():
            content = read_json(template_file)
            check_settings(template_file, content, {"chat_template": str})
            tokenizer.chat_template = content.get("chat_template")
        ends = generation.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [tokenizer.eos_token_id])
        processor = ChatProcessor(tokenizer, family.image_text, ends, family.image_markers)
        return cls(str(checkpoint), folder, config, processor, image_processor, family)

    @property
    def context_length(self) -> int:
        """Largest number of positions of the decoder."""
        return self.config.get_text_config().max_position_embeddings

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a local folder and not a hub id."""
        return Path(self.source).is_dir()

    @cached_property
    def files(self) -> list[Path]:
        """The weight files, safetensors only. Those of a hub id are downloaded first."""
        if not self.is_local:
            download_weights(self.source, self.folder)
        files = weight_files(self.folder)
        for path in files:
            if path.suffix != ".safetensors":
                raise ValueError(f"{path} is pickled and is not read: save the weights as safetensors")
        return files

    @cached_property
    def fingerprint(self) -> str:
        """Hash of configuration and weights, 16 hex digits. It is computed from the files without a model."""
        return fingerprint_weights(self.config, self.files)

    def copy_to(self, folder: Path) -> None:
        """Copy the checkpoint to `folder`, replacing its content."""
        files = self.files
        if self.folder.resolve() == folder.resolve():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in (*_SMALL_FILES, INDEX_FILES[0], *(path.name for path in files)):
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, folder)

    def count_weights(self) -> int:
        """Return the number of weights of the model, from its configuration alone."""
        model_class: Any = getattr(transformers, self.family.model)
        with torch.device("meta"):
            return count_weights(model_class(copy.deepcopy(self.config)))

    def load_model(
        self,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization: Mapping[str, Any] | None = None,
    ) -> Any:
        """Build the model and load its weights, in evaluation mode.

        `quantization` are the settings of a quantisation method as in a `quantization_config` of
        transformers. Raises ValueError that names weights that are missing, unexpected or not finite.
        """
        model_class: Any = getattr(transformers, self.family.model)
        options = {} if quantization is None else {"quantization_config": dict(quantization)}
        assert self.files
        with without_progress_bars():
            model, report = model_class.from_pretrained(
                self.folder,
                config=copy.deepcopy(self.config),
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        problems = [
            f"{kind.removesuffix('_keys')}: {name}"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            for name in sorted(map(str, report.get(kind, ())))
        ]
        if problems:
            raise ValueError(
                f"the weights in {self.folder} do not fit its config.json:\n  " + "\n  ".join(problems[:20])
            )
        check_finite(model.named_parameters(), self.folder)
        settings = model.generation_config
        settings.eos_token_id = self.processor.end_ids
        if settings.pad_token_id is None:
            settings.pad_token_id = self.processor.end_id
        return model.eval()


def _read_generation(folder: Path, config: Any) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config)
